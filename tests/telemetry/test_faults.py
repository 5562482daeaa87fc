"""Faults of a running stack are told by exactly the alerts that name them, and are told no more once mended.

One full stack under light load for all of them; time goes twenty times faster for the rules, by configuration.
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
    """A fault, the alerts that must fire, and those that may be told beside them, as they depend on the moment."""

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
    case("replica-lags", faults.replica_lags, "ReplicaLags/s1"),
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
