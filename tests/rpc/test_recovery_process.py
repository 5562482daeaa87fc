"""recovery_svc as a process: killed at each of its fault points, started again, stopped in order."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from contextlib import ExitStack
from pathlib import Path

import httpx
import pytest

from chassis import faults
from chassis.testing import eventually
from ops import ports
from recovery_svc import probe, sweep
from tests.rpc.recovery_mesh import MeshScript, Trust, new_order, scripted, served
from tests.upstreams import simulated

POINTS = sorted(
    value
    for module in (sweep, probe)
    for value in vars(module).values()
    if isinstance(value, str) and value in faults.declared()
)


@pytest.fixture(scope="module")
def trust(tmp_path_factory) -> Trust:
    return Trust.make(tmp_path_factory.mktemp("trust"))


class Process:
    """`python -m recovery_svc` with settings for a test."""

    def __init__(self, directory: Path, trust: Trust, proxy: str, payments: str) -> None:
        self.fired = directory / "fired"
        self.admin = f"127.0.0.1:{ports.free_port()}"
        self._environment = os.environ | {
            "ORDERMESH_PROXY_TARGET": proxy,
            "ORDERMESH_UPSTREAMS": json.dumps({"payments": payments}),
            "ORDERMESH_TLS_DIR": str(trust.tls_dir),
            "ORDERMESH_SUBJECT_DIR": str(trust.subject_dir),
            "ORDERMESH_PROFILE": "local",
            "ORDERMESH_SWEEP_PERIOD_S": "0.1",
            "ORDERMESH_ADMIN_LISTEN": self.admin,
            "ORDERMESH_FAULTS_FIRED": str(self.fired),
        }

    def start(self, **settings: str) -> subprocess.Popen[bytes]:
        """Start it; the log goes away."""
        return subprocess.Popen(
            [sys.executable, "-m", "recovery_svc"],
            env=self._environment | settings,
            stdout=subprocess.DEVNULL,
        )


def test_all_fault_points_of_recovery_are_covered_here() -> None:
    assert POINTS == [
        "probe.after_call",
        "probe.before_call",
        "report.after_call",
        "report.before_call",
        "sweep.after_claim",
    ]


@pytest.mark.parametrize("point", POINTS)
async def test_a_process_killed_at_any_point_leaves_an_order_that_the_next_one_reports(
    tmp_path: Path, trust: Trust, point: str
) -> None:
    mesh = scripted("s1")
    mesh.lends_again = True
    order_id = new_order()
    async with (
        served(mesh, trust) as proxy,
        simulated(tmp_path, trust.tls_dir, name="payments") as payments,
    ):
        executed = await payments.execute(order_id)
        mesh.owe("s1", order_id=order_id)
        process = Process(tmp_path, trust, proxy, payments.target)
        with ExitStack() as stack:
            first = process.start(ORDERMESH_FAULTS=f"{point}=kill")
            stack.callback(first.kill)
            await eventually(lambda: _ended(first), within_s=20)
            second = process.start()
            stack.callback(second.kill)
            await eventually(lambda: mesh.taken_about(order_id), within_s=20)

        assert first.returncode == -9
        assert process.fired.read_text().startswith(f"{point}=kill")
        assert mesh.report_of(order_id).answer == executed
        assert len(payments.executions()) == 1
        assert len({report.event_id for report in mesh.reports}) == 1


async def test_a_stop_finishes_what_was_claimed_and_exits_cleanly(tmp_path: Path, trust: Trust) -> None:
    mesh: MeshScript = scripted("s1", "s2")
    async with (
        served(mesh, trust) as proxy,
        simulated(tmp_path, trust.tls_dir, name="payments") as payments,
        httpx.AsyncClient() as http,
    ):
        await payments.misbehave("SLOW", duration_s=0.5)
        process = Process(tmp_path, trust, proxy, payments.target)
        with ExitStack() as stack:
            running = process.start()
            stack.callback(running.kill)
            await eventually(lambda: _ready(http, process.admin), within_s=20)
            order_id = mesh.owe("s2")
            await eventually(lambda: _claimed(mesh))
            running.terminate()
            await eventually(lambda: _ended(running), within_s=20)

        assert running.returncode == 0
        assert await mesh.taken_about(order_id)


async def test_probes_claims_and_sweeps_are_counted(tmp_path: Path, trust: Trust) -> None:
    mesh = scripted("s1")
    async with (
        served(mesh, trust) as proxy,
        simulated(tmp_path, trust.tls_dir, name="payments") as payments,
        httpx.AsyncClient() as http,
    ):
        process = Process(tmp_path, trust, proxy, payments.target)
        order_id = mesh.owe("s1")
        with ExitStack() as stack:
            running = process.start()
            stack.callback(running.kill)
            await eventually(lambda: mesh.taken_about(order_id), within_s=20)
            exposed = (await http.get(f"http://{process.admin}/metrics", timeout=5)).text

    probed = (
        'ordermesh_recovery_probes_total{probe_class="ANSWERED",upstream="payments",verdict="NOT_FOUND"} 1.0'
    )
    assert probed in exposed
    assert 'ordermesh_recovery_claims_total{shard="s1"} 1.0' in exposed
    assert 'ordermesh_recovery_sweeps_total{code="OK",shard="s1"}' in exposed
    assert 'ordermesh_recovery_swept_until_seconds{shard="s1"}' in exposed


async def _ended(process: subprocess.Popen[bytes]) -> bool:
    return process.poll() is not None


async def _claimed(mesh: MeshScript) -> bool:
    return not mesh.shards["s2"].due


async def _ready(http: httpx.AsyncClient, admin: str) -> bool:
    try:
        answer = await http.get(f"http://{admin}/readyz", timeout=1)
    except httpx.TransportError:
        return False
    return answer.status_code == 200
