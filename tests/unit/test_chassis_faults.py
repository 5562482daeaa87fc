"""Fault points: they fire once, at the pass they were told, on the record; unarmed they cost nothing."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from chassis import faults

POINT = faults.declare("test.here", "nothing is on disk")
OTHER = faults.declare("test.there", "nothing is on disk either")


@pytest.fixture(autouse=True)
def disarmed() -> Iterator[None]:
    yield
    faults.arm("")


@pytest.fixture
def fired(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    path = tmp_path / "fired"
    monkeypatch.setenv("ORDERMESH_FAULTS_FIRED", str(path))
    return path


async def test_a_point_fires_at_the_nth_pass_once_and_is_recorded_before_it_acts(fired: Path) -> None:
    faults.arm(f"{POINT}=raise:3")
    await faults.point(POINT)
    await faults.point(POINT)
    assert not fired.exists()
    assert faults.armed() == (POINT,)
    with pytest.raises(faults.FaultFired, match=POINT):
        await faults.point(POINT)
    assert fired.read_text().startswith(f"{POINT}=raise pid=")
    await faults.point(POINT)
    assert faults.armed() == ()
    assert len(fired.read_text().splitlines()) == 1


async def test_several_points_are_armed_at_once_and_each_counts_for_itself(fired: Path) -> None:
    faults.arm(f"{POINT}=raise;{OTHER}=raise:2")
    await faults.point(OTHER)
    with pytest.raises(faults.FaultFired):
        await faults.point(POINT)
    with pytest.raises(faults.FaultFired):
        await faults.point(OTHER)


async def test_a_pause_holds_for_its_seconds_and_goes_on() -> None:
    faults.arm(f"{POINT}=pause:1:0.05")
    began = time.monotonic()
    await faults.point(POINT)
    assert time.monotonic() - began >= 0.05


@pytest.mark.parametrize(
    "specification",
    ["test.nowhere=kill", "kill", f"{POINT}=explode", f"{POINT}=kill:x", f"{POINT}=pause:1:x", POINT],
)
async def test_a_wrong_specification_is_refused_and_disarms_nothing(specification: str) -> None:
    faults.arm(f"{POINT}=raise")
    with pytest.raises(ValueError, match=r".+"):
        faults.arm(f"{OTHER}=raise;{specification}")
    assert faults.armed() == (POINT,)


def test_an_unknown_point_is_answered_with_those_there_are() -> None:
    with pytest.raises(faults.UnknownFaultPoint, match=rf"{POINT}.*{OTHER}"):
        faults.arm("test.nowhere=kill")


def test_a_killed_process_is_really_gone_and_the_record_is_on_disk(fired: Path) -> None:
    program = (
        "import asyncio; from chassis import faults\n"
        "faults.declare('p', '-'); faults.arm('p=kill')\n"
        "try: asyncio.run(faults.point('p'))\n"
        "finally: print('cleaned up')\n"
    )
    ended = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=30, check=False
    )
    assert ended.returncode == -signal.SIGKILL
    assert ended.stdout == "", "SIGKILL runs no finally"
    assert fired.read_text().startswith("p=kill pid=")


async def test_unarmed_points_are_free() -> None:
    began = time.perf_counter()
    for _ in range(20_000):
        await faults.point(POINT)
    assert time.perf_counter() - began < 0.2, "a pass costs a fraction of a microsecond, not a look-up"
