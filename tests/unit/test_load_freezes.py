"""A process that stands still for a while, and is let go on however the run ends."""

import asyncio
import os
import signal
import sys
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest

from chassis.testing import eventually
from ops.load.freezes import Freezer, Frozen
from ops.load.kills import processes
from ops.load.plan import Freeze, PlanRefused
from ops.stack.endpoints import Endpoints, Grpc, Service, Tls


def endpoints(*services: Service) -> Endpoints:
    return Endpoints(
        state="ready",
        stack_pid=os.getpid(),
        gateway="http://127.0.0.1:1",
        grpc=Grpc(plain="127.0.0.1:1", mtls="127.0.0.1:1"),
        tls=Tls(ca="", cert="", key=""),
        services=services,
        databases=(),
        upstreams=(),
        issuer="http://127.0.0.1:1",
    )


def stands_still(pid: int) -> bool:
    return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[-1].split()[0] == "T"


async def until(true: Callable[[], bool]) -> None:
    async def ask() -> bool | None:
        return true() or None

    await eventually(ask, within_s=10.0, every_s=0.005)


@pytest.fixture
async def child() -> AsyncIterator[asyncio.subprocess.Process]:
    process = await asyncio.create_subprocess_exec(sys.executable, "-c", "import signal; signal.pause()")
    yield process
    if process.returncode is None:
        process.kill()
        await process.wait()


def freezer(tmp_path: Path, for_s: float, pid: int) -> Freezer:
    endpoints(Service(name="kafka", target="127.0.0.1:1", pid=pid)).write(tmp_path)
    return Freezer(tmp_path, Freeze("kafka", 0.05, for_s), [])


async def test_a_process_stands_still_and_goes_on_again_and_again(tmp_path, child):
    one = freezer(tmp_path, 0.2, child.pid)
    running = asyncio.create_task(one.run())
    await until(lambda: stands_still(child.pid))
    await until(lambda: len(one.done) >= 2)
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)
    assert {(each.service, each.pid) for each in one.done} == {("kafka", child.pid)}
    assert not stands_still(child.pid)


async def test_a_run_that_is_cut_off_leaves_nothing_frozen(tmp_path, child):
    one = freezer(tmp_path, 60.0, child.pid)
    running = asyncio.create_task(one.run())
    await until(lambda: stands_still(child.pid))
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)
    await until(lambda: not stands_still(child.pid))
    assert one.done == []


async def test_a_process_that_is_killed_while_frozen_is_left_alone(tmp_path, child):
    one = freezer(tmp_path, 0.5, child.pid)
    running = asyncio.create_task(one.run())
    await until(lambda: stands_still(child.pid))
    child.send_signal(signal.SIGKILL)
    await child.wait()
    await until(lambda: len(one.done) == 1)
    # Its number is nobody's now, so nothing more is frozen.
    assert isinstance(one.done[0], Frozen)
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)


@pytest.mark.parametrize("option", ["--kill", "--freeze"])
def test_a_name_is_a_process_or_every_shards_process_of_a_service(option):
    found = endpoints(
        *(Service(name="order_svc", shard=shard, target="127.0.0.1:1", pid=0) for shard in ("s1", "s2")),
        Service(name="postgres.control", target="127.0.0.1:1", pid=0),
    )
    assert [each.shard for each in processes(found, "order_svc", option)] == ["s1", "s2"]
    assert [each.shard for each in processes(found, "order_svc.s2", option)] == ["s2"]
    assert len(processes(found, "postgres.control", option)) == 1
    with pytest.raises(PlanRefused, match=f"{option} nobody: the stack has order_svc, postgres"):
        processes(found, "nobody", option)
