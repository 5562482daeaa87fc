"""How documents that the read model takes only later are waited for: never in silence."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import structlog.testing

from chassis.testing import FakeClock
from history_svc.projector.bulk import BulkWriter
from history_svc.readmodel.port import Outcome, Verdict, Write

WRITES = [Write("orders-v1-2026.11", {"order_id": str(number)}) for number in range(3)]


class Busy:
    """Takes one document more with every request."""

    def __init__(self) -> None:
        self.asked: list[int] = []

    async def write(self, writes: Sequence[Write], *, timeout_s: float) -> list[Outcome]:
        self.asked.append(len(writes))
        later = Outcome(Verdict.LATER, "cluster_block_exception: the disk is full")
        return [Outcome(Verdict.STORED), *[later] * (len(writes) - 1)]


async def test_documents_that_have_to_wait_are_sent_again_and_each_wait_says_why() -> None:
    busy: Any = Busy()
    with structlog.testing.capture_logs() as logs:
        outcomes = await BulkWriter(busy, FakeClock(), lambda: 0.5).write(WRITES)
    assert [outcome.verdict for outcome in outcomes] == [Verdict.STORED] * 3
    assert busy.asked == [3, 2, 1]
    said = [(line["documents"], line["because"]) for line in logs if line["event"] == "documents_wait"]
    assert said == [(waiting, "cluster_block_exception: the disk is full") for waiting in (2, 1)]
