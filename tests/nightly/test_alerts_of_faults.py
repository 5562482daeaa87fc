"""Faults of a running stack are told by exactly the alerts that name them, and are told no more once mended.

One full stack under light load for all of them; time goes twenty times faster for the rules.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.telemetry import faults
from tests.telemetry.faults import Fault
from tests.telemetry.rig import Rig, ready

pytestmark = pytest.mark.timeout(600)


@dataclass(frozen=True)
class Case:
    """A fault, the alerts that must fire, and those that may be told beside them, if the moment is so."""

    name: str
    fault: Fault
    fires: frozenset[str]
    may: frozenset[str] = frozenset()

    def __str__(self) -> str:
        return self.name


def case(name: str, fault: Fault, fires: str, may: str = "") -> Case:
    return Case(name, fault, frozenset(fires.split()), frozenset(may.split()))


CASES = [
    case("upstream-down", faults.upstream_down, "UpstreamFails/payments ProbesFail/payments"),
    case(
        "order-svc-killed-again-and-again",
        faults.killed_again_and_again,
        "ProcessRestarts/order_svc.s1 RequestsFail SomeRequestsFail",
        may="ShardAway/s1 ProcessAway/order_svc.s1 RecoveryStands/s1",
    ),
    case("replica-lags", faults.replica_lags, "ReplicaLags/s1"),
    case("replica-gone", faults.held("postgres.s1.replica"), "ReplicaAway/s1"),
    case(
        "kafka-down",
        faults.held("kafka"),
        "ChangesWait/s1 ChangesWait/s2 ChangesWait/v1"
        " ReadModelBehind/s1 ReadModelBehind/s2 ReadModelBehind/v1",
    ),
    case(
        "elasticsearch-down",
        faults.elasticsearch_down,
        "ReadModelAway ReadModelBehind/s1 ReadModelBehind/s2 ReadModelBehind/v1",
    ),
    case("control-database-down", faults.held("postgres.control"), "ControlDatabaseAway"),
    # What it is allowed to have under way at once is more than its shard has connections.
    case("one-noisy-user", faults.one_noisy_user, "OneUserTakesTooMuch", may="ConnectionsWait/s2"),
    case("archive-stuck", faults.archive_stuck, "ArchiveStuck/s1"),
    case("upstream-lies", faults.upstream_lies, "MoneyMayBeWrong CasesPileUp"),
]


@pytest.fixture(scope="module")
async def rig(server_dir: Path) -> AsyncIterator[Rig]:
    async with ready(server_dir / "eyes") as opened:
        yield opened


@pytest.mark.parametrize("case", CASES, ids=str)
async def test_a_fault_is_told_by_its_alerts_alone_and_no_more_when_it_is_mended(
    rig: Rig, case: Case
) -> None:
    await rig.until_quiet()
    over = asyncio.Event()
    watching = asyncio.create_task(rig.watch(over))
    try:
        async with case.fault(rig):
            await rig.until_firing(case.fires)
        await rig.until_quiet()
    finally:
        over.set()
        told = await watching
    assert case.fires <= told <= case.fires | case.may
