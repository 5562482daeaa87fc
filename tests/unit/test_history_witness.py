"""Who asks which indices there are is answered by a look that began afterwards, and shares it."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from chassis.es import EsUnavailable
from history_svc.readmodel.witness import Witness

WAIT_S = 5.0


class Slow:
    """A cluster whose looks end when they are told to."""

    def __init__(self) -> None:
        self.uuids: dict[str, str] = {}
        self.asked: list[str] = []
        self.begun = asyncio.Semaphore(0)
        self.may_end = asyncio.Semaphore(0)
        self.fails = False

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


async def test_nobody_is_answered_by_a_look_that_began_before_the_question() -> None:
    cluster = Slow()
    witness = Witness(cluster)  # type: ignore[arg-type]
    cluster.uuids = {"a": "old"}
    first = asyncio.create_task(witness.uuids(["a"], timeout_s=WAIT_S))
    await asyncio.wait_for(cluster.begun.acquire(), WAIT_S)

    cluster.uuids = {"a": "new"}
    later = [asyncio.create_task(witness.uuids([name], timeout_s=WAIT_S)) for name in ("a", "b", "a")]
    await settled()
    assert cluster.asked == ["a"], "one look at a time"

    cluster.may_end.release()
    assert await first == {"a": "old"}
    await asyncio.wait_for(cluster.begun.acquire(), WAIT_S)
    cluster.may_end.release()
    assert await asyncio.gather(*later) == [{"a": "new"}] * 3
    assert cluster.asked == ["a", "a,b"], "and one for all who wait"


async def test_a_look_that_fails_or_takes_too_long_is_no_answer_and_hinders_no_later_one() -> None:
    cluster = Slow()
    witness = Witness(cluster)  # type: ignore[arg-type]
    with pytest.raises(EsUnavailable):
        await witness.uuids(["a"], timeout_s=0.01)
    cluster.fails = True
    waiting = [asyncio.create_task(witness.uuids(["a"], timeout_s=WAIT_S)) for _ in range(2)]
    cluster.may_end.release()
    cluster.may_end.release()
    for each in waiting:
        with pytest.raises(EsUnavailable):
            await each

    cluster.fails, cluster.uuids = False, {"a": "u"}
    cluster.may_end.release()
    assert await witness.uuids(["a"], timeout_s=WAIT_S) == {"a": "u"}


async def test_a_caller_who_goes_away_takes_no_answer_from_the_others() -> None:
    cluster = Slow()
    witness = Witness(cluster)  # type: ignore[arg-type]
    cluster.uuids = {"a": "u"}
    leaves, stays = (asyncio.create_task(witness.uuids(["a"], timeout_s=WAIT_S)) for _ in range(2))
    await asyncio.wait_for(cluster.begun.acquire(), WAIT_S)
    leaves.cancel()
    cluster.may_end.release()
    assert await stays == {"a": "u"}
