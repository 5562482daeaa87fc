"""The proxy's two doors: who may come in, on whose behalf, and what a newcomer with grpcurl or buf sees."""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import grpc
import pytest
from google.protobuf import descriptor_pb2, json_format
from grpc import StatusCode
from grpc_health.v1 import health_pb2, health_pb2_grpc  # type: ignore[import-untyped]
from grpc_reflection.v1alpha import reflection_pb2 as v1alpha  # type: ignore[import-untyped]
from grpc_reflection.v1alpha import reflection_pb2_grpc as v1alpha_grpc

from chassis import jwks
from chassis.auth import MATRIX, SUBJECT_HEADER, Role, Subject, SubjectMinter, SubjectVerifier
from chassis.clock import SYSTEM_CLOCK
from chassis.errors import Reason
from chassis.rpc.health import Health
from chassis.testing import eventually
from chassis.tls import ServerIdentity, TlsFiles
from ops import ca, issuer
from ordermesh.grpc_reflection.v1 import reflection_pb2 as v1
from ordermesh.grpc_reflection.v1 import reflection_pb2_grpc as v1_grpc
from ordermesh.routing.v1 import options_pb2
from ordermesh.routing.v1 import routing_service_pb2 as routing_pb
from ordermesh.routing.v1.routing_service_pb2_grpc import RoutingServiceStub
from shard_proxy.app import Door
from shard_proxy.domain import VipUser
from shard_proxy.vitals import Vitals
from tests import echo, proxies
from tests.listeners import Trust, raw_channel, refused
from tests.proxies import ON_S1, VIP, VIP_BUCKET, Proxy, order_of, settings_of

BUF = Path(sys.executable).parent / "buf"


@pytest.fixture
async def proxy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Proxy]:
    async with proxies.opened(tmp_path, monkeypatch) as opened:
        yield opened


@asynccontextmanager
async def as_peer(proxy: Proxy, trust: Trust, caller: str | None = None, uri: str = "") -> AsyncIterator[Any]:
    """The proxy's mTLS listener, called with a certificate."""
    settings = settings_of(trust.tls.parent)
    identity = ServerIdentity(TlsFiles(trust.tls, "shard_proxy"))
    shown = trust.files(caller).read() if caller else trust.peer(uri)
    name = (("grpc.ssl_target_name_override", "shard-proxy.ordermesh"),)
    async with (
        Door(settings, proxy.routes, proxy.health).mtls(identity) as server,
        raw_channel(f"127.0.0.1:{server.port}", shown, options=name) as channel,
    ):
        yield channel.unary_unary(
            echo.path_of("Unary"),
            request_serializer=echo.EchoRequest.SerializeToString,
            response_deserializer=echo.EchoResponse.FromString,
        )


@pytest.fixture
def trust(tmp_path: Path) -> Trust:
    return Trust.make(tmp_path)


def subject_at(lane: proxies.Lane, trust: Trust) -> Subject:
    """On whose behalf the last call came."""
    return SubjectVerifier(trust.subjects).verify(lane.calls[-1][SUBJECT_HEADER])


HI = echo.EchoRequest(user_id=ON_S1, say="hi")


async def test_a_service_gets_a_subject_of_its_own_whatever_it_says_itself(
    proxy: Proxy, trust: Trust
) -> None:
    forged = SubjectMinter(trust.subjects, "gateway").mint(Subject("root", frozenset(Role)))
    async with as_peer(proxy, trust, "recovery_svc") as unary:
        await unary(HI, timeout=5, metadata=((SUBJECT_HEADER, forged),))
    assert subject_at(proxy.s1, trust) == Subject(
        "recovery_svc", frozenset({Role.RECOVERY}), "spiffe://ordermesh/recovery_svc"
    )


async def test_a_tool_says_which_person_sits_at_it_and_nobody_else_may(proxy: Proxy, trust: Trust) -> None:
    mira = (("x-ordermesh-actor", "mira"),)
    roles = frozenset({Role.OPERATOR, Role.SERVICE})
    async with as_peer(proxy, trust, "ops") as unary:
        await unary(HI, timeout=5, metadata=mira)
        assert subject_at(proxy.s1, trust) == Subject("ops:mira", roles, "spiffe://ordermesh/ops")
        assert "x-ordermesh-actor" not in proxy.s1.calls[-1]
        await unary(HI, timeout=5)
        assert subject_at(proxy.s1, trust).name == "ops"
        for wrong in ("", "a b", "mira:root", "m" * 33):
            with refused(StatusCode.INVALID_ARGUMENT, Reason.INVALID_FIELD):
                await unary(HI, timeout=5, metadata=(("x-ordermesh-actor", wrong),))
    async with as_peer(proxy, trust, "recovery_svc") as unary:
        await unary(HI, timeout=5, metadata=mira)
        assert subject_at(proxy.s1, trust).name == "recovery_svc"


async def test_a_gateway_speaks_for_the_user_whose_signed_subject_it_brings(
    proxy: Proxy, trust: Trust
) -> None:
    alice = Subject(ON_S1, frozenset({Role.USER}), "spiffe://ordermesh/gateway")
    token = SubjectMinter(trust.subjects, "gateway").mint(alice)
    by_proxy = SubjectMinter(trust.subjects, "shard_proxy").mint(alice)
    async with as_peer(proxy, trust, "gateway") as unary:
        await unary(HI, timeout=5, metadata=((SUBJECT_HEADER, token),))
        assert subject_at(proxy.s1, trust) == alice
        with refused(StatusCode.PERMISSION_DENIED, Reason.NOT_YOUR_ORDER):
            await unary(echo.EchoRequest(user_id="bob"), timeout=5, metadata=((SUBJECT_HEADER, token),))
        for wrong in ((), ((SUBJECT_HEADER, token[:-4] + "AAAA"),), ((SUBJECT_HEADER, by_proxy),)):
            with refused(StatusCode.UNAUTHENTICATED, Reason.UNAUTHENTICATED):
                await unary(HI, timeout=5, metadata=wrong)
    assert len(proxy.s1.calls) == 1


@pytest.mark.parametrize(
    ("uri", "code", "reason"),
    [
        ("spiffe://ordermesh/upstream", StatusCode.PERMISSION_DENIED, Reason.CALLER_NOT_ALLOWED),
        ("spiffe://evil/ops", StatusCode.UNAUTHENTICATED, Reason.UNAUTHENTICATED),
    ],
)
async def test_peers_that_are_not_in_the_table_are_refused(
    proxy: Proxy, trust: Trust, uri: str, code: StatusCode, reason: Reason
) -> None:
    async with as_peer(proxy, trust, uri=uri) as unary:
        with refused(code, reason):
            await unary(HI, timeout=5)
    assert proxy.s1.calls == []


async def test_the_matrix_is_checked_before_a_lane_is_asked(
    proxy: Proxy, trust: Trust, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(MATRIX, echo.path_of("Unary"), frozenset({Role.OPERATOR}))
    async with as_peer(proxy, trust, "recovery_svc") as unary:
        with refused(StatusCode.PERMISSION_DENIED, Reason.ROLE_REQUIRED):
            await unary(HI, timeout=5)
    assert proxy.s1.calls == []


# --- the plain door


@asynccontextmanager
async def with_issuer(directory: Path) -> AsyncIterator[str]:
    """A server that publishes the issuer's keys."""
    ca.ensure_issuer(directory)
    body = (directory / "jwks.json").read_bytes()

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: %d\r\n\r\n" % len(body) + body)
        await writer.drain()
        writer.close()

    server = await asyncio.start_server(answer, "127.0.0.1", 0)
    async with server:
        yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/jwks.json"


async def test_a_bearer_token_makes_the_call_its_users(proxy: Proxy, tmp_path: Path) -> None:
    keys = tmp_path / "issuer"
    async with with_issuer(keys) as url, jwks.http_client() as http:
        keeper = jwks.JwksKeeper(url, None, SYSTEM_CLOCK, http)
        assert await keeper.fetch()
    door = Door(settings_of(tmp_path), proxy.routes, proxy.health)
    async with door.plain("127.0.0.1:0", keeper) as server:
        proxy.channel = grpc.aio.insecure_channel(f"127.0.0.1:{server.port}")
        alice = bearer(issuer.mint_token(keys, ON_S1))
        assert await proxy.say(metadata=alice) == "s1:hi"
        came = SubjectVerifier(tmp_path / "subject").verify(proxy.s1.calls[-1][SUBJECT_HEADER])
        assert came == Subject(ON_S1, frozenset({Role.USER}), "spiffe://ordermesh/dev")
        assert "authorization" not in proxy.s1.calls[-1]
        with refused(StatusCode.PERMISSION_DENIED, Reason.NOT_YOUR_ORDER):
            await proxy.say("bob", metadata=alice)
        for wrong in (
            bearer(issuer.mint_token(keys, ON_S1, ttl_s=60, now=1_000_000)),
            bearer(alice[0][1].removeprefix("Bearer ")[:-6] + "AAAAAA"),
            bearer("nonsense"),
            (("authorization", "Basic YTpi"),),
        ):
            with refused(StatusCode.UNAUTHENTICATED, Reason.UNAUTHENTICATED):
                await proxy.say(metadata=wrong)
        await proxy.channel.close()


def bearer(token: str) -> tuple[tuple[str, str], ...]:
    return (("authorization", f"Bearer {token}"),)


async def test_without_keys_every_bearer_token_is_refused(proxy: Proxy) -> None:
    with refused(StatusCode.UNAUTHENTICATED, Reason.UNAUTHENTICATED):
        await proxy.say(metadata=bearer("a.b.c"))


@pytest.mark.parametrize(
    ("field", "value", "says"),
    [
        ("plain_listen", "0.0.0.0:7400", "loopback"),
        ("plain_listen", "192.168.1.5:7400", "loopback"),
        ("jwks_url", "http://issuer.example/keys", "https"),
        ("profile", "production", "page_token_keys"),
    ],
)
def test_unsafe_settings_stop_the_start(tmp_path: Path, field: str, value: str, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        settings_of(tmp_path, **{field: value})
    assert settings_of(tmp_path, plain_listen="127.0.0.1:7400").plain_listen


# --- what tools see


async def buf_curl(proxy: Proxy, *arguments: str) -> str:
    process = await asyncio.create_subprocess_exec(
        *(str(BUF), "curl", "--protocol", "grpc", "--http2-prior-knowledge", *arguments),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    out, err = await asyncio.wait_for(process.communicate(), 30)
    assert process.returncode == 0, err.decode()
    return out.decode()


async def test_buf_curl_lists_and_calls_services_without_their_protos(proxy: Proxy) -> None:
    listed = await buf_curl(proxy, f"http://{proxy.target}", "--list-services")
    assert {"ordermesh.order.v1.OrderService", "ordermesh.routing.v1.RoutingService"} <= set(listed.split())
    url = f"http://{proxy.target}/ordermesh.routing.v1.RoutingService/Where"
    where = json.loads(await buf_curl(proxy, url, "-d", json.dumps({"user_id": VIP})))
    assert where["placement"] == {"bucket": VIP_BUCKET, "shard": "v1", "epoch": "1", "reason": "VIP"}
    assert [placed["bucket"] for placed in where["placements"]] == [VIP_BUCKET, 4088]


@pytest.mark.parametrize(
    ("messages", "stub"),
    [(v1, v1_grpc.ServerReflectionStub), (v1alpha, v1alpha_grpc.ServerReflectionStub)],
    ids=["v1", "v1alpha"],
)
async def test_reflection_answers_in_both_versions(proxy: Proxy, messages: Any, stub: Any) -> None:
    ask = messages.ServerReflectionRequest
    extension = messages.ExtensionRequest(
        containing_type="google.protobuf.MethodOptions", extension_number=options_pb2.ROUTE_FIELD_NUMBER
    )
    questions = [
        ask(list_services=""),
        ask(file_containing_symbol="ordermesh.order.v1.OrderService.CreateOrder"),
        ask(file_by_filename="ordermesh/order/v1/order.proto"),
        ask(file_containing_extension=extension),
        ask(all_extension_numbers_of_type="google.protobuf.MethodOptions"),
        ask(file_containing_symbol="no.such.Symbol"),
        ask(host="h"),
    ]
    answers = [each async for each in stub(proxy.channel).ServerReflectionInfo(iter(questions), timeout=10)]

    assert [answer.original_request for answer in answers] == questions
    listed, by_symbol, by_name, by_extension, numbers, unknown, nothing = answers
    names = [service.name for service in listed.list_services_response.service]
    assert {"ordermesh.order.v1.OrderService", "ordermesh.recovery.v1.RecoveryService"} <= set(names)
    assert "ordermesh/order/v1/order_service.proto" in files_of(by_symbol)
    assert "ordermesh/money/v1/money.proto" in files_of(by_name)
    assert "ordermesh/routing/v1/options.proto" in files_of(by_extension)
    assert 51001 in numbers.all_extension_numbers_response.extension_number
    for answer in (unknown, nothing):
        assert answer.error_response.error_code == StatusCode.NOT_FOUND.value[0]


def files_of(answer: Any) -> set[str]:
    raws = answer.file_descriptor_response.file_descriptor_proto
    return {descriptor_pb2.FileDescriptorProto.FromString(raw).name for raw in raws}


async def test_health_tells_of_the_proxy_and_of_each_lane(proxy: Proxy) -> None:
    stub = health_pb2_grpc.HealthStub(proxy.channel)
    vitals = Vitals(proxy.health, proxy.routes.book, proxy.routes.lanes, SYSTEM_CLOCK)
    vitals.look()
    ask = health_pb2.HealthCheckRequest

    async def state(service: str) -> int:
        return int((await stub.Check(ask(service=service), timeout=5)).status)

    serving, not_serving = health_pb2.HealthCheckResponse.SERVING, health_pb2.HealthCheckResponse.NOT_SERVING
    for service in ("", "ordermesh.order.v1.OrderService", "lane:s1", "lane:v1"):
        assert await state(service) == serving
    await proxy.s1.stop()

    async def seen() -> bool:
        vitals.look()
        return bool(await state("lane:s1") == not_serving)

    await eventually(seen)
    assert (await state(""), await state("lane:s2")) == (serving, serving)
    listed = await stub.List(health_pb2.HealthListRequest(), timeout=5)
    assert listed.statuses["lane:s1"].status == not_serving
    with refused(StatusCode.NOT_FOUND):
        await state("nobody")


async def test_a_watch_hears_each_change_and_ends_at_drain(proxy: Proxy) -> None:
    stub = health_pb2_grpc.HealthStub(proxy.channel)
    watch = stub.Watch(health_pb2.HealthCheckRequest(service="later"))
    states = health_pb2.HealthCheckResponse
    assert (await watch.read()).status == states.SERVICE_UNKNOWN
    proxy.health.set("later", serving=True)
    assert (await watch.read()).status == states.SERVING
    await proxy.health.drain()
    assert (await watch.read()).status == states.NOT_SERVING
    with refused(StatusCode.UNAVAILABLE, Reason.STOPPING):
        await watch.read()
    proxy.health.set("later", serving=True)
    assert not proxy.health.serving("later")


def test_a_process_does_not_serve_before_it_says_so() -> None:
    health = Health(["a"])
    assert not health.serving()
    assert not health.serving("a")


# --- RoutingService


@pytest.fixture
def routing(proxy: Proxy) -> Any:
    return RoutingServiceStub(proxy.channel)


async def test_where_tells_of_users_and_of_orders(routing: Any) -> None:
    placement = routing_pb.Placement
    alice = await routing.Where(routing_pb.WhereRequest(user_id=ON_S1), timeout=5)
    assert alice.placement == placement(bucket=701, shard="s1", epoch=1, reason=placement.HASH)
    assert list(alice.placements) == [alice.placement]
    order_id = order_of(VIP)
    order = await routing.Where(routing_pb.WhereRequest(order_id=order_id), timeout=5)
    assert order.placement == placement(bucket=4088, shard="s2", epoch=1, reason=placement.ORDER_ID)
    assert abs(order.create_time.seconds - SYSTEM_CLOCK.now().timestamp()) < 60
    for wrong in ({}, {"user_id": ON_S1, "order_id": order_id}, {"user_id": "a b"}):
        with refused(StatusCode.INVALID_ARGUMENT, Reason.INVALID_FIELD):
            await routing.Where(routing_pb.WhereRequest(**wrong), timeout=5)


async def test_shards_are_listed_with_what_they_own(routing: Any, proxy: Proxy) -> None:
    listed = await routing.ListShards(routing_pb.ListShardsRequest(), timeout=5)
    assert [(s.shard, s.vip, s.bucket_count) for s in listed.shards] == [
        ("s1", False, 2048),
        ("s2", False, 2048),
        ("v1", True, 1),
    ]
    assert (listed.shards[0].lane_target, listed.map_version) == (proxy.s1.target, 1)


async def test_vip_users_come_in_pages(routing: Any, proxy: Proxy) -> None:
    vips = dict(proxy.source.map.vips)
    for number in range(4):
        vips[f"vip.{number}"] = VipUser(f"vip.{number}", (VIP_BUCKET,), proxy.source.map.read_at)
    proxy.source.map = replace(proxy.source.map, version=2, vips=vips)

    async def there() -> bool:
        await proxy.poll()
        return len(proxy.routes.book.map.vips) == 4

    await eventually(there)
    seen: list[str] = []
    token = ""
    while True:
        page = await routing.ListVipUsers(
            routing_pb.ListVipUsersRequest(page_size=3, page_token=token), timeout=5
        )
        seen += [user.user_id for user in page.vip_users]
        token = page.next_page_token
        if not token:
            break
    assert seen == ["vip.0", "vip.1", "vip.2", "vip.3"]
    with refused(StatusCode.INVALID_ARGUMENT, Reason.PAGE_TOKEN_INVALID):
        await routing.ListVipUsers(routing_pb.ListVipUsersRequest(page_token="x"), timeout=5)
    with refused(StatusCode.INVALID_ARGUMENT, Reason.INVALID_FIELD):
        await routing.ListVipUsers(routing_pb.ListVipUsersRequest(page_size=101), timeout=5)


async def test_explain_routes_without_sending_and_refuses_as_the_call_would(
    routing: Any, proxy: Proxy
) -> None:
    def ask(method: str, **request: Any) -> Any:
        message = routing_pb.ExplainRequest(method=method, request_json=json.dumps(request))
        return routing.Explain(message, timeout=5)

    order_ids = [order_of(ON_S1), order_of("bob")]
    one = await ask("ordermesh.order.v1.OrderService/CreateOrder", user_id=VIP)
    assert (one.key, list(one.targets)) == (VIP, [proxy.v1.target])
    assert json_format.MessageToDict(one.rule)["by"] == "ROUTE_BY_USER"
    many = await ask("/ordermesh.order.v1.OrderService/BatchGetOrders", order_ids=order_ids)
    assert [placed.shard for placed in many.placements] == ["s1", "s2"]
    assert sorted(many.targets) == sorted([proxy.s1.target, proxy.s2.target])
    anywhere = await ask("ordermesh.recovery.v1.RecoveryService/GetRecoveryStatus")
    assert (len(anywhere.placements), list(anywhere.targets)) == (0, [proxy.s1.target])
    for method, request, code, reason in (
        ("no.Such/Method", {}, StatusCode.UNIMPLEMENTED, Reason.UNKNOWN_METHOD),
        (
            "ordermesh.order.v1.OrderService/GetOrder",
            {},
            StatusCode.INVALID_ARGUMENT,
            Reason.ROUTING_KEY_MISSING,
        ),
        (
            "ordermesh.order.v1.OrderService/GetOrder",
            {"no": 1},
            StatusCode.INVALID_ARGUMENT,
            Reason.INVALID_FIELD,
        ),
        (
            "ordermesh.order.v1.OrderService/ListDueOrders",
            {"shard": "s9"},
            StatusCode.NOT_FOUND,
            Reason.UNKNOWN_SHARD,
        ),
    ):
        with refused(code, reason):
            await ask(method, **request)
    assert not any(lane.calls for lane in proxy.lanes)
