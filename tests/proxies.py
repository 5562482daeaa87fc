"""A proxy in the test's own process, over real sockets, with lanes that do what the test says.

The map comes from a source that the test holds in its hand; everything between caller and lane is the real
thing.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from uuid import UUID

import grpc
import pytest

from chassis import auth, pg, rpc
from chassis.auth import Role
from chassis.clock import SYSTEM_CLOCK
from chassis.errors import ShardUnavailable, StaleRoute
from chassis.ids import OrderIds, user_bucket
from chassis.rpc.health import Health
from chassis.testing import eventually
from ops import ca
from shard_proxy import methods
from shard_proxy.app import Door, Routes, limits_of, routes_of
from shard_proxy.book import RouteBook
from shard_proxy.domain import MapSnapshot, Owner, Shard, VipUser
from shard_proxy.lanes import ORDER, Lanes
from shard_proxy.settings import ProxySettings
from shard_proxy.vitals import Vitals
from tests import echo

VIP = "vip.1"
VIP_BUCKET = 4096
ON_S1, ON_S2 = "alice", "vip.1"
"""alice's bucket is 701, in s1's half; vip.1's hashed bucket is 4088, in that of s2."""
CALL_S = 10.0
_ids = OrderIds(lambda: int(SYSTEM_CLOCK.now().timestamp() * 1000))


def order_in(bucket: int) -> UUID:
    """A new order id in a bucket."""
    return _ids.new(bucket)


def order_of(user_id: str) -> str:
    """A new order id in the hashed bucket of a user."""
    return str(order_in(user_bucket(user_id)))


@dataclass
class Source:
    """The control database as the book sees it. gone: it does not answer."""

    map: MapSnapshot
    gone: bool = False
    reads: int = 0

    async def version(self) -> int:
        if self.gone:
            raise ShardUnavailable
        return self.map.version

    async def read(self) -> MapSnapshot:
        if self.gone:
            raise ShardUnavailable
        self.reads += 1
        return self.map

    def move(self, bucket: int, shard: str, epoch: int) -> None:
        """Give a bucket another owner, as the next version of the map."""
        owners = {**self.map.owners, bucket: Owner(shard, epoch)}
        self.map = replace(self.map, version=self.map.version + 1, owners=owners)


@dataclass
class Saved:
    """The file with the last map, in memory."""

    map: MapSnapshot | None = None

    def save(self, map_: MapSnapshot) -> None:
        self.map = map_

    def load(self) -> MapSnapshot | None:
        return self.map


class Lane(grpc.GenericRpcHandler):
    """One process behind the proxy: a real server, whose methods do what the test says.

    calls: invocation metadata of each call that came, in order. running: calls at work now.
    """

    def __init__(self, name: str) -> None:
        self.name = name
        self.port = 0
        self.calls: list[dict[str, Any]] = []
        self.deadlines: list[float] = []
        self.running = 0
        self.behave: dict[str, Callable[..., Any]] = {}
        self._server: grpc.aio.Server | None = None

    @property
    def target(self) -> str:
        return f"127.0.0.1:{self.port}"

    async def start(self) -> None:
        self._server = grpc.aio.server(handlers=[self], options=[("grpc.so_reuseport", 0)])
        self.port = self._server.add_insecure_port(f"127.0.0.1:{self.port}")
        await self._server.start()

    async def stop(self) -> None:
        if self._server is not None:
            await self._server.stop(0)
            self._server = None

    def service(self, handler_call_details: grpc.HandlerCallDetails) -> Any:
        method = echo.METHODS.get(handler_call_details.method)
        if method is None:
            return None
        make: Any = {
            "unary": grpc.unary_unary_rpc_method_handler,
            "server_stream": grpc.unary_stream_rpc_method_handler,
            "client_stream": grpc.stream_unary_rpc_method_handler,
            "bidi_stream": grpc.stream_stream_rpc_method_handler,
        }[method.arity]
        return make(
            self._noted(self.behave.get(method.name, getattr(self, method.arity))),
            request_deserializer=echo.EchoRequest.FromString,
            response_serializer=echo.EchoResponse.SerializeToString,
        )

    def _noted(self, behaviour: Callable[..., Any]) -> Callable[..., Any]:
        async def noted(request: Any, context: Any) -> Any:
            self.calls.append(dict(context.invocation_metadata()))
            self.deadlines.append(context.time_remaining() or 0.0)
            self.running += 1
            try:
                return await behaviour(request, context)
            finally:
                self.running -= 1

        return noted

    def answer(self, request: Any) -> Any:
        """Who answers, and what was said."""
        said = [f"{self.name}:{request.say}", *(f"{self.name}:{each}" for each in request.order_ids)]
        return echo.EchoResponse(said=said)

    async def unary(self, request: Any, context: Any) -> Any:
        return self.answer(request)

    async def server_stream(self, request: Any, context: Any) -> None:
        for number in range(3):
            await context.write(echo.EchoResponse(said=[f"{self.name}:{request.say}:{number}"]))

    async def client_stream(self, requests: Any, context: Any) -> Any:
        return echo.EchoResponse(said=[f"{self.name}:{request.say}" async for request in requests])

    async def bidi_stream(self, requests: Any, context: Any) -> None:
        async for request in requests:
            await context.write(self.answer(request))


def refusing(code_message_trailers: tuple[Any, ...], *, at_once: bool = False) -> Callable[..., Any]:
    """A behaviour that ends every call with this status, once its requests are there unless `at_once`.

    A call that ends while its requests are still being written fails at whoever writes, and gRPC then says
    INTERNAL before it has read the status.
    """

    async def refuse(request: Any, context: Any) -> None:
        if hasattr(request, "__aiter__") and not at_once:
            async for _ in request:
                pass
        await context.abort(*code_message_trailers)

    return refuse


def stale(**facts: object) -> Callable[..., Any]:
    """A behaviour that refuses every call as its fence would."""
    return refusing(rpc.to_status(StaleRoute(**facts)))


async def for_ever(_: Any, context: Any) -> None:
    """A behaviour that never ends by itself."""
    await asyncio.Event().wait()


@dataclass
class Proxy:
    """A listening proxy with its lanes; as a caller it is `dev` on the plain listener."""

    source: Source
    saved: Saved
    routes: Routes
    health: Health
    channel: grpc.aio.Channel
    target: str
    s1: Lane
    s2: Lane
    v1: Lane
    stack: AsyncExitStack = field(repr=False)

    @property
    def lanes(self) -> tuple[Lane, Lane, Lane]:
        return self.s1, self.s2, self.v1

    def call(self, name: str, request: Any = None, **options: Any) -> Any:
        """Begin a call of the echo service; a request for a unary one, an iterator or none for a stream."""
        method = echo.METHODS[echo.path_of(name)]
        kind = f"{'stream' if method.client_streaming else 'unary'}_"
        kind += "stream" if method.server_streaming else "unary"
        multicallable = getattr(self.channel, kind)(
            echo.path_of(name),
            request_serializer=echo.EchoRequest.SerializeToString,
            response_deserializer=echo.EchoResponse.FromString,
        )
        return multicallable(request, **{"timeout": CALL_S, **options})

    async def raw(self, path: str, request: bytes) -> bytes:
        """One unary call of bytes."""
        call: Any = self.channel.unary_unary(path)
        answer: bytes = await call(request, timeout=CALL_S)
        return answer

    async def say(self, user_id: str = ON_S1, name: str = "Unary", **options: Any) -> str:
        """One unary call; gives who answered and what."""
        answer = await self.call(name, echo.EchoRequest(user_id=user_id, say="hi"), **options)
        return str(answer.said[0])

    async def poll(self) -> None:
        """Have the book look at its source now, as it does each second."""
        await self.routes.book.reread()

    async def until_up(self, *lanes: Lane) -> None:
        """Wait until the proxy is connected to these lanes, or all."""

        async def connected() -> bool:
            states = self.routes.lanes.states()
            return all(states.get(lane.name) for lane in lanes or self.lanes)

        await eventually(connected)


def map_of(lanes: tuple[Lane, Lane, Lane]) -> MapSnapshot:
    """4096 hashed buckets halved between s1 and s2; vip.1 on v1."""
    return MapSnapshot(
        version=1,
        shards={lane.name: Shard(lane.name, lane.name == "v1", lane.target, lane.target) for lane in lanes},
        services={"recovery_svc": lanes[0].target},
        owners={
            **{bucket: Owner("s1" if bucket < 2048 else "s2", 1) for bucket in range(4096)},
            VIP_BUCKET: Owner("v1", 1),
        },
        vips={VIP: VipUser(VIP, (VIP_BUCKET,), datetime(2026, 1, 1, tzinfo=UTC))},
        ever={VIP: (VIP_BUCKET, user_bucket(VIP))},
        read_at=datetime(2026, 1, 1, tzinfo=UTC),
    )


def settings_of(directory: Path, **changes: Any) -> ProxySettings:
    """Settings of a proxy in the test's process."""
    values: dict[str, Any] = {
        "dsn": "postgresql://127.0.0.1:1/control",
        "map_file": directory / "map",
        "tls_dir": directory / "tls",
        "subject_dir": directory / "subject",
        "profile": "local",
        "bridge_s": 5.0,
    }
    return ProxySettings(**{**values, **changes})


@asynccontextmanager
async def opened(
    directory: Path, monkeypatch: pytest.MonkeyPatch, *, behind: str = ORDER, **changes: Any
) -> AsyncIterator[Proxy]:
    """A proxy for the echo service, with three lanes that are up."""
    for path in echo.METHODS:
        monkeypatch.setitem(auth.MATRIX, path, frozenset(Role))
    monkeypatch.setattr(methods, "BEHIND", {**methods.BEHIND, echo.SERVICE: behind})
    settings = settings_of(directory, **changes)
    ca.ensure_subject_keys(settings.subject_dir)
    async with AsyncExitStack() as stack:
        s1, s2, v1 = lanes = (Lane("s1"), Lane("s2"), Lane("v1"))
        for lane in lanes:
            await lane.start()
            stack.push_async_callback(lane.stop)
        source, saved = Source(map_of(lanes)), Saved()
        behind_us = await stack.enter_async_context(Lanes(None, limits_of(settings)).opened())
        book = RouteBook(source, saved, SYSTEM_CLOCK, changed=behind_us.follow)
        await book.open()
        control = pg.PgSettings(dsn=settings.dsn.get_secret_value())
        moving = await stack.enter_async_context(pg.open_database(control))
        routes = routes_of(settings, book, behind_us, moving)
        health = Health()
        Vitals(health, book, behind_us, SYSTEM_CLOCK).look()
        server = await stack.enter_async_context(Door(settings, routes, health).plain("127.0.0.1:0", None))
        target = f"127.0.0.1:{server.port}"
        channel = await stack.enter_async_context(
            grpc.aio.insecure_channel(target, options=[("grpc.enable_retries", 0)])
        )
        proxy = Proxy(source, saved, routes, health, channel, target, s1, s2, v1, stack)
        await proxy.until_up()
        yield proxy
