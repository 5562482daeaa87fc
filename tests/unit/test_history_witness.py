"""Who asks which indices there are hears of a recent look, or of one that begins then, and shares it."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from chassis.es import EsUnavailable
from history_svc.readmodel.witness import AGE_S_MAX, Witness

WAIT_S = 5.0


class Slow:
    """A cluster whose looks end when they are told to."""

    def __init__(self) -> None:
        self.uuids: dict[str, str] = {}
        self.asked: list[str] = []
        self.begun = asyncio.Semaphore(0)
        self.may_end = asyncio.Semaphore(0)
        self.fails = False
        self.at = 0.0

    async def call(self, method: str, path: str, **how: Any) -> dict[str, Any]:
        self.asked.append(path.split("/")[1])
        seen = {name: {"settings": {"index.uuid": uuid}} for name, uuid in self.uuids.items()}
        self.begun.release()
        await self.may_end.acquire()
        if self.fails:
            raise EsUnavailable("by a test")
        return seen


async def settled() -> None:
    """Let every task run until it waits for something."""
    for _ in range(10):
        await asyncio.sleep(0)


def witness_of(cluster: Slow) -> Witness:
    return Witness(cluster, lambda: cluster.at)  # type: ignore[arg-type]


async def uuids(witness: Witness, *names: str, timeout_s: float = WAIT_S) -> dict[str, str]:
    found = await witness.uuids(witness.begin(names), timeout_s=timeout_s)
    return {name: uuid for name in names if (uuid := found[name]) is not None}


async def test_a_look_is_shared_by_all_who_wait_and_there_is_one_at_a_time() -> None:
    cluster = Slow()
    witness = witness_of(cluster)
    cluster.uuids = {"a": "old"}
    first = asyncio.create_task(uuids(witness, "a"))
    await asyncio.wait_for(cluster.begun.acquire(), WAIT_S)

    cluster.uuids = {"a": "new"}
    later = [asyncio.create_task(uuids(witness, name)) for name in ("a", "b", "a")]
    await settled()
    assert cluster.asked == ["a"], "one look at a time"

    cluster.may_end.release()
    assert await first == {"a": "old"}
    await asyncio.wait_for(cluster.begun.acquire(), WAIT_S)
    cluster.may_end.release()
    assert await asyncio.gather(*later) == [{"a": "new"}, {}, {"a": "new"}]
    assert cluster.asked == ["a", "a,b"], "and one for all who wait"


async def test_what_was_seen_holds_for_a_second_from_when_the_look_began() -> None:
    cluster = Slow()
    witness = witness_of(cluster)
    cluster.uuids = {"a": "u"}
    asking = asyncio.create_task(uuids(witness, "a", "gone"))
    await asyncio.wait_for(cluster.begun.acquire(), WAIT_S)
    cluster.at = 0.4
    cluster.may_end.release()
    assert await asking == {"a": "u"}

    cluster.uuids = {"a": "another", "b": "v"}
    cluster.at = AGE_S_MAX
    assert await uuids(witness, "a") == await uuids(witness, "a", "gone") == {"a": "u"}
    assert cluster.asked == ["a,gone"]
    cluster.may_end.release()
    assert await uuids(witness, "a", "b") == {"a": "another", "b": "v"}, "one of them was never seen"
    cluster.at = 2 * AGE_S_MAX + 0.1
    cluster.may_end.release()
    assert await uuids(witness, "b") == {"b": "v"}
    assert cluster.asked == ["a,gone", "a,b", "b"]


async def test_a_look_that_fails_or_takes_too_long_is_no_answer_and_hinders_no_later_one() -> None:
    cluster = Slow()
    witness = witness_of(cluster)
    with pytest.raises(EsUnavailable):
        await uuids(witness, "a", timeout_s=0.01)
    cluster.fails = True
    waiting = [asyncio.create_task(uuids(witness, "a")) for _ in range(2)]
    cluster.may_end.release()
    cluster.may_end.release()
    for each in waiting:
        with pytest.raises(EsUnavailable):
            await each

    cluster.fails, cluster.uuids = False, {"a": "u"}
    cluster.may_end.release()
    assert await uuids(witness, "a") == {"a": "u"}


async def test_a_caller_who_goes_away_takes_no_answer_from_the_others() -> None:
    cluster = Slow()
    witness = witness_of(cluster)
    cluster.uuids = {"a": "u"}
    leaves, stays = (asyncio.create_task(uuids(witness, "a")) for _ in range(2))
    await asyncio.wait_for(cluster.begun.acquire(), WAIT_S)
    leaves.cancel()
    cluster.may_end.release()
    assert await stays == {"a": "u"}
