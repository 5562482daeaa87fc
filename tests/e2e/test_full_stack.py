"""`ordermesh dev --full` as a person runs it: up, looked at, broken, stopped, and nothing is left."""

import asyncio
import json
import os
import signal
import sys
from pathlib import Path

import pytest

from chassis.testing import eventually
from ops import places
from ops.stack.endpoints import Endpoints

pytestmark = pytest.mark.timeout(300)  # Eight servers on the JVM and of Postgres, beside whatever else runs.


async def ordermesh(state_dir: Path, *words: str) -> tuple[int, str, str]:
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "ops", *words, "--state-dir", str(state_dir)),
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    out, err = await process.communicate()
    return await process.wait(), out.decode(), err.decode()


async def psql(dsn: str, sql: str) -> str:
    process = await asyncio.create_subprocess_exec(
        *(places.postgres_bin() / "psql", "-Atc", sql, dsn), stdout=asyncio.subprocess.PIPE
    )
    out, _ = await process.communicate()
    return out.decode().strip()


def lives(pid: int) -> bool:
    return Path(f"/proc/{pid}/cmdline").exists() and Path(f"/proc/{pid}/cmdline").read_bytes() != b""


async def checks(state_dir: Path) -> dict[str, str]:
    """What the doctor says of each thing it looks at."""
    _, out, err = await ordermesh(state_dir, "doctor", "-o", "json")
    assert err == ""
    return {each["check"]: each["word"] for each in json.loads(out)}


async def test_the_full_stack_comes_up_heals_and_leaves_nothing(server_dir: Path) -> None:
    state_dir = server_dir / "full"
    code, out, err = await ordermesh(state_dir, "dev", "--full", "--detach", "--port-base", "0")
    assert code == 0, err
    assert all(f"{part} " in out for part in ("took", "postgres", "replicas", "kafka", "elasticsearch", "s3"))
    endpoints = Endpoints.read(state_dir)
    try:
        assert endpoints.kafka
        assert endpoints.elasticsearch
        assert set(endpoints.replica_dsns()) == set(endpoints.shard_dsns()) == {"s1", "s2", "v1"}
        for shard, dsn in endpoints.replica_dsns().items():
            assert await psql(dsn, "SELECT pg_is_in_recovery(), shard FROM shard_identity") == f"t|{shard}"
        healthy = await checks(state_dir)
        assert {healthy[name] for name in ("processes", "replicas", "kafka", "elasticsearch", "s3")} == {"ok"}

        code, _, err = await ordermesh(state_dir, "stop", "kafka")
        assert code == 0, err
        killed = endpoints.service("postgres.s1.replica").pid
        os.kill(killed, signal.SIGKILL)

        async def healed() -> bool:
            now = Endpoints.read(state_dir)
            return now.service("kafka").pid == 0 and now.service("postgres.s1.replica").pid not in (0, killed)

        assert await eventually(healed, within_s=30, every_s=0.2)
        assert (await checks(state_dir))["kafka"] == "bad"
        endpoints = Endpoints.read(state_dir)
    finally:
        code, _, err = await ordermesh(state_dir, "down")
    assert code == 0, err
    pids = [endpoints.stack_pid, *(each.pid for each in endpoints.services if each.pid)]
    assert len(pids) > 15
    assert [pid for pid in pids if lives(pid)] == []

    code, _, err = await ordermesh(state_dir, "dev", "--detach", "--port-base", "0")
    assert code != 0
    assert err.strip().endswith("start it with the flag, or name another --state-dir")
    assert err.count("\n") == 1
