"""A real shard_proxy process whose control database dies: orders go on, from memory, and after a restart
from disk.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import asyncpg
import grpc
import httpx
import pytest
from grpc import StatusCode
from grpc_health.v1 import health_pb2 as health  # type: ignore[import-untyped]

from chassis.errors import Reason, ShardUnavailable, StaleRoute
from chassis.ids import user_bucket
from chassis.testing import eventually
from chassis.tls import TlsFiles
from ops import places, ports
from ops.postgres import PostgresServer
from ordermesh.order.v1 import order_service_pb2 as pb
from tests.listeners import Scripted, Trust, orders_of, orders_served, raw_channel, refused
from tests.proxies import order_of

SCHEMA = Path(__file__).parents[2] / "db" / "control" / "schema.sql"
ALICE, BOB = "alice", "bob"
assert user_bucket(ALICE) < 2048 <= user_bucket(BOB)


@dataclass
class Mesh:
    """A control database of its own, two lanes over mTLS, and a proxy process."""

    directory: Path
    trust: Trust
    control: PostgresServer
    lanes: dict[str, Scripted]
    port: int
    plain_port: int
    admin_port: int
    environment: dict[str, str] = field(repr=False)
    process: asyncio.subprocess.Process | None = None

    @property
    def map_file(self) -> Path:
        return self.directory / "state" / "map"

    async def start(self) -> None:
        log = (self.directory / "proxy.log").open("ab")
        self.process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "shard_proxy"),
            env={**os.environ, **self.environment},
            stdout=log,
            stderr=log,
        )
        log.close()
        await eventually(self.listens, within_s=60)

    async def stop(self) -> int:
        """SIGTERM; gives the exit code."""
        assert self.process is not None
        if self.process.returncode is None:
            self.process.send_signal(signal.SIGTERM)
        return await asyncio.wait_for(self.process.wait(), 15)

    async def listens(self) -> bool:
        assert self.process is not None
        assert self.process.returncode is None, self.log()
        return await self.ready() is not None

    async def ready(self) -> bool | None:
        """What /readyz says; None while nobody answers."""
        try:
            async with httpx.AsyncClient(trust_env=False) as http:
                response = await http.get(f"http://127.0.0.1:{self.admin_port}/readyz", timeout=2)
        except httpx.TransportError:
            return None
        return response.status_code == 200

    def log(self) -> str:
        return (self.directory / "proxy.log").read_text()

    def events(self) -> list[str]:
        lines = [json.loads(line) for line in self.log().splitlines() if line.startswith("{")]
        return [str(line.get("message", line.get("event"))) for line in lines]

    @asynccontextmanager
    async def orders(self) -> AsyncIterator[Any]:
        """The proxy's mTLS door, called as `ops`."""
        name = (("grpc.ssl_target_name_override", "shard-proxy.ordermesh"),)
        identity = TlsFiles(self.trust.tls, "ops").read()
        async with raw_channel(f"127.0.0.1:{self.port}", identity, options=name) as channel:
            yield orders_of(channel)

    async def create(self, user_id: str) -> str:
        """Create an order; gives the shard that served it."""
        async with self.orders() as orders:
            call = orders.CreateOrder(pb.CreateOrderRequest(user_id=user_id), timeout=8, wait_for_ready=True)
            await call
            return str(dict(await call.trailing_metadata())["x-ordermesh-shard"])

    async def get(self, user_id: str) -> str:
        """Get an order of a user; gives the shard that served it."""
        async with self.orders() as orders:
            request = pb.GetOrderRequest(order_id=order_of(user_id))
            call = orders.GetOrder(request, timeout=8, wait_for_ready=True)
            await call
            return str(dict(await call.trailing_metadata())["x-ordermesh-shard"])

    async def sql(self, statement: str) -> Any:
        connection = await asyncpg.connect(
            self.control.dsn("control"), server_settings={"search_path": "ordermesh"}
        )
        try:
            return await connection.fetchval(statement)
        finally:
            await connection.close()


def fenced(lane: str, owners: dict[int, str], answer: type[Any]) -> Any:
    """Serves the buckets that are this lane's and refuses all others as a fence that never heard of them."""

    async def behaviour(request: Any, call: Any) -> Any:
        bucket = int(call.metadata["x-ordermesh-bucket"])
        if owners.get(bucket) != lane:
            raise StaleRoute(bucket=bucket)
        if call.method.name == "CreateOrder" and call.metadata["x-ordermesh-epoch"] != "1":
            raise StaleRoute(bucket=bucket, epoch=1, owner=lane, state="OWNED")
        return answer()

    return behaviour


@pytest.fixture
async def mesh(server_dir: Path, tmp_path: Path) -> AsyncIterator[Mesh]:
    async with AsyncExitStack() as stack:
        trust = Trust.make(tmp_path)
        data = places.data_directory(server_dir, f"control-{tmp_path.name}")
        control = await PostgresServer.started(data, ports.free_port(), durable=False)
        stack.push_async_callback(control.stop)
        await control.create_database("control")
        await control.run_sql("control", SCHEMA.read_text())
        owners = {user_bucket(ALICE): "s1", user_bucket(BOB): "s2"}
        lanes, seeds = {}, []
        for name in ("s1", "s2"):
            lanes[name] = Scripted(
                CreateOrder=fenced(name, owners, pb.CreateOrderResponse),
                GetOrder=fenced(name, owners, pb.GetOrderResponse),
            )
            server = await stack.enter_async_context(orders_served(trust, lanes[name]))
            target = f"127.0.0.1:{server.port}"
            seeds.append(f"SELECT ordermesh.put_shard('{name}', false, '{target}', '{target}');")
        await control.run_sql("control", "".join(seeds) + "SELECT ordermesh.deal_buckets('s1', 's2')")
        port, plain, admin = (ports.free_port() for _ in range(3))
        environment = {
            "ORDERMESH_DSN": control.dsn("control"),
            "ORDERMESH_MAP_FILE": str(tmp_path / "state" / "map"),
            "ORDERMESH_LISTEN": f"127.0.0.1:{port}",
            "ORDERMESH_PLAIN_LISTEN": f"127.0.0.1:{plain}",
            "ORDERMESH_ADMIN_LISTEN": f"127.0.0.1:{admin}",
            "ORDERMESH_TLS_DIR": str(trust.tls),
            "ORDERMESH_SUBJECT_DIR": str(trust.subjects),
            "ORDERMESH_PROFILE": "local",
            "ORDERMESH_DRAIN_S": "2",
        }
        mesh = Mesh(tmp_path, trust, control, lanes, port, plain, admin, environment)
        await mesh.start()
        stack.push_async_callback(mesh.stop)
        yield mesh


async def test_orders_go_on_without_the_control_database_and_after_a_restart_from_disk(mesh: Mesh) -> None:
    assert (await mesh.create(ALICE), await mesh.create(BOB)) == ("s1", "s2")
    await mesh.control.stop()

    async def noticed() -> bool:
        return "control_database_gone" in mesh.events()

    await eventually(noticed)
    assert (await mesh.create(ALICE), await mesh.get(BOB)) == ("s1", "s2")
    assert await mesh.ready()

    assert await mesh.stop() == 0
    await mesh.start()
    assert "map_from_disk" in mesh.events()
    assert (await mesh.create(ALICE), await mesh.get(BOB)) == ("s1", "s2")

    await mesh.control.start()
    await mesh.sql("SELECT put_service('recovery_svc', '127.0.0.1:1')")

    async def found() -> bool:
        return mesh.events().count("map_installed") >= 3

    await eventually(found)


async def test_a_corrupt_file_is_ignored_and_the_proxy_waits_for_a_map(mesh: Mesh) -> None:
    await mesh.stop()
    await mesh.control.stop()
    whole = mesh.map_file.read_bytes()
    mesh.map_file.write_bytes(whole.replace(b'"s1"', b'"s2"'))
    await mesh.start()
    assert "map_file_corrupt" in mesh.events()
    assert await mesh.ready() is False
    with refused(StatusCode.UNAVAILABLE, Reason.SHARD_UNAVAILABLE):
        await mesh.create(ALICE)
    assert not any(lane.calls for lane in mesh.lanes.values())

    await mesh.control.start()

    async def ready() -> bool:
        return bool(await mesh.ready())

    await eventually(ready)
    assert (await mesh.create(ALICE), await mesh.create(BOB)) == ("s1", "s2")


async def test_a_map_corrupted_at_its_source_is_healed_by_the_first_refused_calls(mesh: Mesh) -> None:
    assert await mesh.create(ALICE) == "s1"
    await mesh.sql(
        "UPDATE buckets SET epoch = epoch + 1, shard = CASE shard WHEN 's1' THEN 's2' ELSE 's1' END"
    )

    async def loaded() -> bool:
        return mesh.events().count("map_installed") >= 2

    await eventually(loaded)
    assert await mesh.get(BOB) == "s2"
    assert await mesh.create(ALICE) == "s1"
    assert "route_adopted" in mesh.events()

    asked = [len(lane.calls) for lane in mesh.lanes.values()]
    assert (await mesh.get(BOB), await mesh.create(ALICE)) == ("s2", "s1")
    assert [len(lane.calls) for lane in mesh.lanes.values()] == [count + 1 for count in asked]


async def test_a_stop_ends_health_watches_and_exits_clean(mesh: Mesh) -> None:
    async with grpc.aio.insecure_channel(f"127.0.0.1:{mesh.plain_port}") as channel:
        watch: Any = channel.unary_stream(
            "/grpc.health.v1.Health/Watch",
            request_serializer=health.HealthCheckRequest.SerializeToString,
            response_deserializer=health.HealthCheckResponse.FromString,
        )(health.HealthCheckRequest())
        assert (await watch.read()).status == health.HealthCheckResponse.SERVING
        stopping = asyncio.create_task(mesh.stop())
        assert (await watch.read()).status == health.HealthCheckResponse.NOT_SERVING
        with pytest.raises(grpc.aio.AioRpcError):
            await watch.read()
        assert await stopping == 0
    assert ShardUnavailable.__name__ not in mesh.log()
