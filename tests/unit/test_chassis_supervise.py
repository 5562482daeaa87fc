"""Loops that may not die quietly, writes that outlive their callers, and an orderly stop."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from functools import partial
from typing import Any

import pytest

from chassis.errors import Overloaded, Stopping
from chassis.supervise import DEATH_DRAIN_S, LoopDied, OwnedTasks, StopSignal, until_stopped


@dataclass
class Waits:
    """A loop that works until it is cancelled."""

    name: str = "waits"
    cancelled: bool = False

    async def run(self) -> None:
        try:
            await asyncio.Event().wait()
        finally:
            self.cancelled = True


@dataclass
class Dies:
    """A loop that ends by itself."""

    error: Exception | None
    name: str = "dies"

    async def run(self) -> None:
        await asyncio.sleep(0)
        if self.error is not None:
            raise self.error


@pytest.mark.parametrize("error", [ValueError("boom"), None], ids=["raises", "returns"])
async def test_a_loop_that_ends_stops_the_process_within_a_second(error: Exception | None) -> None:
    other, drained = Waits(), []

    async def drain() -> None:
        drained.append("drained")

    began = time.monotonic()
    with pytest.raises(LoopDied, match="dies"):
        await until_stopped(other, Dies(error), drain=(drain,))
    assert time.monotonic() - began < 1
    assert drained == ["drained"], "what runs is finished even then"
    assert other.cancelled


async def test_after_a_death_every_step_is_taken_but_none_for_long() -> None:
    owned, written, closed = OwnedTasks(), [], []
    go = asyncio.Event()

    async def refuse() -> None:
        closed.append("server")
        go.set()
        await asyncio.Event().wait()

    async def write() -> None:
        await go.wait()
        written.append("order")

    owned.start(write(), name="write")
    stuck = owned.start(asyncio.Event().wait(), name="stuck")
    began = time.monotonic()
    with pytest.raises(LoopDied):
        await until_stopped(Dies(None), drain=(refuse, partial(owned.drain, 30.0)))
    assert time.monotonic() - began < 1.5
    assert (closed, written) == (["server"], ["order"])
    assert stuck.cancelled()
    with pytest.raises(Stopping):
        owned.start(write(), name="too late")


async def test_a_stop_that_was_asked_for_takes_the_time_it_was_given() -> None:
    stop, patience, steps = StopSignal(), asyncio.Event(), []
    loop = asyncio.get_running_loop()

    async def long_step() -> None:
        loop.call_later(DEATH_DRAIN_S * 1.2, patience.set)
        await patience.wait()
        steps.append("done")

    stop.set()
    await until_stopped(drain=(long_step,), stop=stop)
    assert steps == ["done"]


async def test_a_stop_drains_in_the_given_order_before_loops_are_cancelled() -> None:
    loop, stop, steps = Waits(), StopSignal(), []

    def step(name: str) -> Any:
        async def note() -> None:
            steps.append((name, loop.cancelled))

        return note

    stop.set()
    await until_stopped(loop, drain=(step("readiness"), step("server"), step("writes")), stop=stop)
    assert steps == [("readiness", False), ("server", False), ("writes", False)]
    assert loop.cancelled


async def test_a_failing_drain_step_still_ends_the_loops() -> None:
    loop, stop = Waits(), StopSignal()

    async def fails() -> None:
        raise OSError("port is gone")

    stop.set()
    with pytest.raises(OSError, match="port is gone"):
        await until_stopped(loop, drain=(fails,), stop=stop)
    assert loop.cancelled


async def test_the_signals_are_given_back_at_the_end() -> None:
    """Whoever runs a service inside another program keeps their Ctrl-C."""
    before = signal.getsignal(signal.SIGINT)
    stop = StopSignal()
    stop.set()
    await until_stopped(stop=stop)
    loop = asyncio.get_running_loop()
    assert not loop.remove_signal_handler(signal.SIGTERM)
    assert not loop.remove_signal_handler(signal.SIGINT)
    signal.signal(signal.SIGINT, before)


PROGRAM = """
import asyncio
from chassis import supervise

class Beat:
    name = "beat"
    async def run(self):
        print("running", flush=True)
        try:
            await asyncio.Event().wait()
        finally:
            print("loop ended", flush=True)

def step(name):
    async def note():
        print(name, flush=True)
    return note

asyncio.run(supervise.until_stopped(Beat(), drain=(step("not ready"), step("server stopped"))))
print("bye", flush=True)
"""


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_stops_a_process_in_order_and_with_exit_code_0(number: signal.Signals) -> None:
    process = subprocess.Popen(
        [sys.executable, "-c", PROGRAM], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == "running\n"
        os.kill(process.pid, number)
        out, err = process.communicate(timeout=10)
    finally:
        process.kill()
    steps = [line for line in out.splitlines() if "stopping" not in line]
    assert steps == ["not ready", "server stopped", "loop ended", "bye"]
    assert (process.returncode, err) == (0, "")


async def test_a_write_goes_on_when_its_caller_is_cancelled() -> None:
    owned, go, written = OwnedTasks(), asyncio.Event(), []

    async def write() -> str:
        await go.wait()
        written.append("order")
        return "done"

    caller = asyncio.create_task(owned.run(write(), name="create"))
    await asyncio.sleep(0)
    caller.cancel()
    await asyncio.gather(caller, return_exceptions=True)
    assert caller.cancelled()
    assert len(owned) == 1
    go.set()
    await owned.drain(5)
    assert written == ["order"]
    assert len(owned) == 0


async def test_an_owned_write_returns_its_result_and_raises_its_error() -> None:
    owned = OwnedTasks()

    async def gives() -> int:
        return 42

    async def fails() -> None:
        raise ZeroDivisionError

    assert await owned.run(gives(), name="gives") == 42
    with pytest.raises(ZeroDivisionError):
        await owned.run(fails(), name="fails")


async def test_the_error_of_a_write_nobody_waits_for_is_logged(capsys: pytest.CaptureFixture[str]) -> None:
    owned = OwnedTasks()

    async def fails() -> None:
        raise ZeroDivisionError

    owned.start(fails(), name="settle")
    await owned.drain(1)
    out = capsys.readouterr().out
    assert "owned_task_failed" in out
    assert "settle" in out


async def test_after_drain_began_no_write_starts_and_late_ones_are_cut_off() -> None:
    owned = OwnedTasks()
    stuck = owned.start(asyncio.Event().wait(), name="stuck")
    await owned.drain(0.01)
    assert stuck.cancelled()
    with pytest.raises(Stopping):
        await owned.run(asyncio.Event().wait(), name="too late")


async def test_owned_writes_are_bounded() -> None:
    owned = OwnedTasks(limit=1)
    go = asyncio.Event()
    owned.start(go.wait(), name="first")
    with pytest.raises(Overloaded) as refused:
        owned.start(go.wait(), name="second")
    assert refused.value.facts == {"limiter": "owned_tasks"}
    go.set()
    await owned.drain(1)
