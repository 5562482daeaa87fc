"""HistoryService through the proxy: what goes by user is told every bucket, a search goes anywhere."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import grpc
import pytest

from chassis import ids, pg, rpc
from chassis.auth import SUBJECT_HEADER, Role, Subject, SubjectMinter
from chassis.clock import SYSTEM_CLOCK
from chassis.errors import Reason
from chassis.rpc.health import Health
from history_svc import app as history_app
from history_svc.settings import HistorySettings
from history_svc.store import Shards
from ordermesh.history.v1 import history_service_pb2 as pb
from ordermesh.history.v1 import history_service_pb2_grpc as pb_grpc
from ordermesh.order.v1.order_pb2 import Order
from shard_proxy.app import Door, limits_of, routes_of
from shard_proxy.book import RouteBook
from shard_proxy.domain import MapSnapshot, Owner, VipUser
from shard_proxy.domain import Shard as OnMap
from shard_proxy.lanes import Lanes
from tests import proxies
from tests.listeners import CALL_S, Scripted, Trust, refused
from tests.projections import Projection
from tests.proxies import Saved, Source
from tests.readmodels import MemoryReadModel
from tests.shards import Shard, opened

SERVICE = history_app.SERVICE
METHODS = {method.name: method for method in rpc.methods_of(SERVICE).values()}
VIP, VIP_BUCKET = "vip.1", 4096
EVERYWHERE = {f"{VIP_BUCKET}:v1:1", f"{ids.user_bucket(VIP)}:s1:1"}
"""Where the VIP's orders may be: the dedicated bucket, and the one before the promotion."""


@asynccontextmanager
async def proxy_before(
    trust: Trust, target: str, directory: Path, *, services: dict[str, str]
) -> AsyncIterator[rpc.RunningServer]:
    """The proxy's mTLS door over a map of two shards whose history is served at `target`."""
    settings = proxies.settings_of(directory, tls_dir=trust.tls, subject_dir=trust.subjects)
    map_ = MapSnapshot(
        version=1,
        shards={name: OnMap(name, name == "v1", "127.0.0.1:1", target) for name in ("s1", "v1")},
        services=services,
        owners={**{bucket: Owner("s1", 1) for bucket in range(4096)}, VIP_BUCKET: Owner("v1", 1)},
        vips={VIP: VipUser(VIP, (VIP_BUCKET,), SYSTEM_CLOCK.now())},
        ever={VIP: (VIP_BUCKET, ids.user_bucket(VIP))},
        read_at=SYSTEM_CLOCK.now(),
    )
    nowhere = pg.PgSettings(dsn="postgresql://x:y@127.0.0.1:1/control")
    async with (
        Lanes(trust.files("shard_proxy"), limits_of(settings)).opened() as lanes,
        pg.open_database(nowhere, name="control-moves") as moving,
    ):
        book = RouteBook(Source(map_), Saved(), SYSTEM_CLOCK, changed=lanes.follow)
        await book.open()
        routes = routes_of(settings, book, lanes, moving)
        async with Door(settings, routes, Health()).mtls(trust.server("shard_proxy")) as server:
            yield server


@dataclass
class Behind:
    """What stands behind the proxy, and who asks."""

    trust: Trust
    proxy: rpc.RunningServer
    operator: Any
    gateway: Any

    def as_user(self, user: str, *roles: Role) -> tuple[tuple[str, str], ...]:
        subject = Subject(user, frozenset({Role.USER, *roles}), "spiffe://ordermesh/gateway")
        return ((SUBJECT_HEADER, SubjectMinter(self.trust.subjects, "gateway").mint(subject)),)


@asynccontextmanager
async def behind(directory: Path, implementation: object, *, anywhere: bool = True) -> AsyncIterator[Behind]:
    """An implementation of HistoryService as history_svc, a proxy before it, an operator and a gateway."""
    trust = Trust.make(directory)
    async with AsyncExitStack() as stack:
        served = await stack.enter_async_context(
            rpc.serve(
                "127.0.0.1:0",
                [rpc.Mount(SERVICE, implementation)],
                gate=trust.lane(),
                tls=trust.server("history_svc"),
            )
        )
        target = f"127.0.0.1:{served.port}"
        services = {"history_svc": target} if anywhere else {}
        proxy = await stack.enter_async_context(proxy_before(trust, target, directory, services=services))
        stubs = []
        for caller in ("ops", "gateway"):
            channel = await stack.enter_async_context(
                rpc.Channel(f"127.0.0.1:{proxy.port}", service="shard_proxy", tls=trust.files(caller))
            )
            stubs.append(pb_grpc.HistoryServiceStub(cast("grpc.aio.Channel", channel)))
        yield Behind(trust, proxy, *stubs)


@pytest.mark.parametrize("name", METHODS)
async def test_a_method_that_goes_by_user_is_told_every_bucket_of_the_user_and_no_other_is(tmp_path, name):
    method = METHODS[name]
    history = Scripted(SERVICE)
    async with behind(tmp_path, history) as mesh:
        by_user = method.by == rpc.RouteBy.ROUTE_BY_USER
        call = getattr(mesh.operator, name)
        await call(
            method.request_class(user_id=VIP), timeout=CALL_S, metadata=(("x-ordermesh-placement", "x"),)
        )
        (came,) = history.calls
        placement = came.metadata.get("x-ordermesh-placement")
        assert (set(placement.split(",")) if placement else set()) == (EVERYWHERE if by_user else set())


async def test_a_search_without_a_place_on_the_map_is_unavailable_and_lists_go_on(tmp_path):
    async with behind(tmp_path, Scripted(SERVICE), anywhere=False) as mesh:
        with refused(grpc.StatusCode.UNAVAILABLE, Reason.SHARD_UNAVAILABLE) as facts:
            await mesh.operator.SearchOrders(pb.SearchOrdersRequest(), timeout=CALL_S)
        assert facts[0].metadata["service"] == "history_svc"
        await mesh.operator.ListOrders(pb.ListOrdersRequest(user_id="alice"), timeout=CALL_S)


@dataclass
class Searched:
    """A real history_svc behind the proxy, over one shard and a read model that a test fills."""

    mesh: Behind
    shard: Shard
    read_model: MemoryReadModel
    projection: Projection

    async def search(self, **ask: Any) -> Any:
        return await self.mesh.operator.SearchOrders(pb.SearchOrdersRequest(**ask), timeout=CALL_S)

    async def create(self, *users: str) -> list[str]:
        """An order of each, indexed; their ids, newest first."""
        made = [(await self.shard.create(user_id=user)).order for user in users]
        await self.projection.catch_up()
        made.sort(key=lambda order: (order.created_at, order.order_id), reverse=True)
        return [str(order.order_id) for order in made]


@pytest.fixture
async def searched(tmp_path, shard_database) -> AsyncIterator[Searched]:
    database = await shard_database()
    settings = HistorySettings(
        tls_dir=tmp_path,
        subject_dir=tmp_path,
        profile="local",
        hot_window_s=0,
        shards={"s1": database.dsn, "v1": "postgresql://x:y@127.0.0.1:1/v1"},
    )
    async with Shards.open(settings) as shards, opened(database) as shard:
        read_model = MemoryReadModel()
        handlers = history_app.service(settings, shards, read_model)
        async with behind(tmp_path, handlers) as mesh:
            yield Searched(mesh, shard, read_model, Projection(shard, read_model))


async def test_an_operator_finds_orders_of_every_user_page_by_page_and_is_told_how_old_that_is(searched):
    expected = await searched.create("alice", "bob", "carol", "alice", "bob")
    shown: list[str] = []
    token = ""
    while True:
        page = await searched.search(page_size=2, page_token=token)
        shown += [order.order_id for order in page.orders]
        assert page.read_info.served_by == pb.ReadInfo.READ_MODEL_ONLY
        assert list(page.unreachable) == ["shards/v1"], "v1 is away, so nobody knows how old its part is"
        token = page.next_page_token
        if not token:
            break
    assert shown == expected
    assert len((await searched.search(page_size=100)).orders) == 5


async def test_a_search_takes_every_filter_and_one_users_orders(searched):
    mine = await searched.create("alice", "bob", "alice")
    bobs = [order.order_id for order in (await searched.search(user_id="bob")).orders]
    assert len(bobs) == 1
    for shows, filter_ in (
        (3, {"text": "boo"}),
        (0, {"text": "books"}),
        (3, {"status": Order.PENDING, "kind": "payment"}),
        (0, {"status": Order.SUCCESS}),
        (3, {"amount": {"currency_code": "EUR", "min_minor": 1250, "max_minor": 1250}}),
        (0, {"amount": {"currency_code": "EUR", "max_minor": 1249}}),
        (0, {"until_time": {"seconds": 1}}),
    ):
        page = await searched.search(filter=filter_)
        assert [order.order_id for order in page.orders] == mine[:shows], filter_


async def test_only_operators_search_and_explain(searched):
    mesh = searched.mesh
    for call, request in (
        (mesh.gateway.SearchOrders, pb.SearchOrdersRequest(user_id="alice")),
        (mesh.gateway.ExplainPage, pb.ExplainPageRequest(user_id="alice")),
    ):
        with refused(grpc.StatusCode.PERMISSION_DENIED, Reason.ROLE_REQUIRED):
            await call(request, timeout=CALL_S, metadata=mesh.as_user("alice"))
    person = mesh.as_user("mira", Role.OPERATOR)
    await mesh.gateway.SearchOrders(pb.SearchOrdersRequest(), timeout=CALL_S, metadata=person)
    await mesh.gateway.ExplainPage(pb.ExplainPageRequest(user_id="alice"), timeout=CALL_S, metadata=person)


@pytest.mark.parametrize(
    ("ask", "field"),
    [
        ({"user_id": "no spaces"}, "user_id"),
        ({"page_size": -1}, "page_size"),
        ({"filter": {"status": 9}}, "filter.status"),
        ({"filter": {"kind": "Upper"}}, "filter.kind"),
        ({"filter": {"from_time": {"seconds": 2**40}}}, "filter.from_time"),
        ({"filter": {"amount": {"min_minor": 5}}}, "filter.amount.currency_code"),
        (
            {"filter": {"amount": {"currency_code": "EUR", "min_minor": 5, "max_minor": 4}}},
            "filter.amount.max_minor",
        ),
        ({"filter": {"text": "..."}}, "filter.text"),
        ({"filter": {"text": "x" * 129}}, "filter.text"),
    ],
)
async def test_a_search_that_makes_no_sense_is_refused_with_its_field(searched, ask, field):
    with pytest.raises(grpc.aio.AioRpcError) as failed:
        await searched.search(**ask)
    error = rpc.error_of(failed.value)
    assert (error.code, error.reason) == (grpc.StatusCode.INVALID_ARGUMENT, Reason.INVALID_FIELD)
    assert [wrong.field for wrong in error.violations] == [field]


async def test_a_page_token_of_a_search_fits_no_other_search(searched):
    await searched.create("alice", "bob", "carol")
    token = (await searched.search(page_size=1)).next_page_token
    assert token
    for other in ({"filter": {"kind": "payment"}}, {"user_id": "alice"}):
        with refused(grpc.StatusCode.INVALID_ARGUMENT, Reason.PAGE_TOKEN_INVALID):
            await searched.search(page_token=token, **other)


async def test_a_search_without_its_read_model_is_unavailable_and_the_list_is_not(searched):
    (order_id,) = await searched.create("alice")
    searched.read_model.down = True
    with refused(grpc.StatusCode.UNAVAILABLE, Reason.READ_MODEL_UNAVAILABLE):
        await searched.search()
    listed = await searched.mesh.operator.ListOrders(pb.ListOrdersRequest(user_id="alice"), timeout=CALL_S)
    assert [order.order_id for order in listed.orders] == [order_id]


async def test_an_explanation_shows_watermarks_overlay_indices_and_who_would_serve(searched):
    await searched.create("alice")
    later = (await searched.shard.create(user_id="alice")).order
    said = await searched.mesh.operator.ExplainPage(pb.ExplainPageRequest(user_id="alice"), timeout=CALL_S)
    (part,) = said.shards
    assert (part.shard, list(part.buckets), part.unreliable) == ("s1", [ids.user_bucket("alice")], "")
    assert [change.order_id for change in part.overlay] == [str(later.order_id)]
    (mark,) = part.watermarks
    assert mark.position.count(":") == 2
    assert mark.lag.ToTimedelta().total_seconds() >= 0
    assert [(index.state, index.is_ours) for index in part.indices] == [("SERVING", True)]
    assert (part.hot_count, len(part.quarantine)) == (0, 0)
    assert said.read_info.served_by == pb.ReadInfo.MERGED
    with refused(grpc.StatusCode.INVALID_ARGUMENT, Reason.INVALID_FIELD):
        await searched.mesh.operator.ExplainPage(pb.ExplainPageRequest(user_id="a b"), timeout=CALL_S)


async def test_an_explanation_of_what_was_never_indexed_says_why_it_is_not_relied_on(searched):
    await searched.shard.create(user_id="alice")
    said = await searched.mesh.operator.ExplainPage(pb.ExplainPageRequest(user_id="alice"), timeout=CALL_S)
    assert "was never indexed" in said.shards[0].unreliable
    assert said.read_info.served_by == pb.ReadInfo.SQL_FALLBACK
