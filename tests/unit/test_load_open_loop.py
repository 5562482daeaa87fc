"""The open loop against a sender of the test's own: arrivals, retries on the same key, honest counting."""

import asyncio
import json
import os
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from chassis.testing import eventually
from ops.load import open_loop
from ops.load.asks import Ask, asks
from ops.load.kills import is_child
from ops.load.log import AckLog, Kind
from ops.load.open_loop import OpenLoop
from ops.load.plan import Plan, Transport
from ops.load.senders import Acknowledgement, NobodyKnows, RefusedForGood


@dataclass
class ScriptedSender:
    """Answers each try of a request with the next line of the script; the last line stays."""

    script: list[str]
    name: str = "scripted"
    tries: Counter[str] = field(default_factory=Counter)
    held: asyncio.Event = field(default_factory=asyncio.Event)

    async def create(self, ask: Ask, *, timeout_s: float) -> Acknowledgement:
        request_id = str(ask.request_id)
        line = self.script[min(self.tries[request_id], len(self.script) - 1)]
        self.tries[request_id] += 1
        if line == "hold":
            await self.held.wait()
        elif line == "refused":
            raise RefusedForGood("INVALID_FIELD")
        elif line == "lost":
            raise NobodyKnows("UNAVAILABLE")
        return Acknowledgement(
            f"order of {request_id}",
            ask.user_id,
            request_id,
            ask.amount_minor + (line == "changed"),
            ask.currency_code,
            "PENDING",
            replayed=False,
        )


def run_of(tmp_path: Path, *script: str, **plan: object) -> tuple[OpenLoop, ScriptedSender, list[Ask]]:
    wanted = Plan(**{"rate": 300, "seconds": 0.2, "transport": Transport.GRPC, "replay_share": 0, **plan})  # type: ignore[arg-type]
    sender = ScriptedSender(list(script))
    return (
        OpenLoop(wanted, grpc=sender, rest=sender, log=AckLog(tmp_path / "load" / "acks.jsonl")),
        sender,
        list(asks(wanted, "r1", [])),
    )


async def test_every_order_is_retried_with_its_key_until_it_is_acknowledged(tmp_path, monkeypatch):
    monkeypatch.setattr(open_loop, "BACKOFF_S", 0.01)
    loop, sender, wanted = run_of(tmp_path, "lost", "lost", "ok")
    with loop.log:
        await loop.run(wanted)

    assert loop.tally.acknowledged == loop.tally.arrived == len(wanted)
    assert set(sender.tries.values()) == {3}
    assert loop.tally.retries == 2 * len(wanted)
    assert loop.tally.failures == {"UNAVAILABLE": 2 * len(wanted)}
    written = [json.loads(line) for line in loop.log.path.read_text().splitlines()]
    assert {line["request_id"] for line in written} == {str(ask.request_id) for ask in wanted}
    assert {(line["kind"], line["tries"], line["said"]) for line in written} == {("ok", 3, "")}


@pytest.mark.parametrize(
    ("script", "kind", "counted"),
    [
        (["refused"], Kind.FAIL, "refused"),
        (["lost", "refused"], Kind.INFO, "unknown"),
        (["lost"], Kind.INFO, "unknown"),
    ],
)
async def test_a_refusal_is_final_only_when_no_earlier_try_may_have_happened(
    tmp_path, monkeypatch, script, kind, counted
):
    monkeypatch.setattr(open_loop, "BACKOFF_S", 0.01)
    loop, _, wanted = run_of(tmp_path, *script, give_up_s=1)
    with loop.log:
        await loop.run(wanted)

    assert {entry.kind for entry in loop.log.entries} == {kind}
    assert getattr(loop.tally, counted) == len(wanted)


async def test_arrivals_do_not_wait_for_a_stalled_mesh_and_what_is_too_much_is_counted(tmp_path, monkeypatch):
    monkeypatch.setattr(open_loop, "IN_FLIGHT_MAX", 10)
    loop, sender, wanted = run_of(tmp_path, "hold")
    running = asyncio.create_task(loop.run(wanted))

    async def all_arrived() -> bool:
        return loop.tally.arrived == len(wanted)

    await eventually(all_arrived)
    assert loop.in_flight == 10
    assert loop.tally.shed == len(wanted) - 10
    sender.held.set()
    with loop.log:
        await running
    assert loop.tally.acknowledged == 10
    assert loop.tally.figures()["all"].max_ms > 100


async def test_an_acknowledgement_of_something_else_is_written_down(tmp_path):
    loop, _, wanted = run_of(tmp_path, "changed")
    with loop.log:
        await loop.run(wanted)
    assert all(entry.said for entry in loop.log.entries)


async def test_an_acknowledged_request_sent_again_is_logged_beside_the_first(tmp_path):
    loop, _, wanted = run_of(tmp_path, "ok", replay_share=1.0)
    with loop.log:
        await loop.run(wanted)
    kinds = Counter(entry.kind for entry in loop.log.entries)
    assert kinds == {Kind.OK: len(wanted), Kind.REPLAY: len(wanted)}
    assert loop.tally.replayed == len(wanted)


async def test_only_living_children_of_the_stack_are_killed():
    child = await asyncio.create_subprocess_exec("sleep", "30")
    assert is_child(child.pid, os.getpid())
    assert not is_child(child.pid, os.getppid())
    assert not is_child(0, os.getpid())
    child.kill()
    await child.wait()
    assert not is_child(child.pid, os.getpid())
