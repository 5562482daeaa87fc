"""HistoryService through the proxy: what goes by user is told every bucket, a search goes anywhere."""

from collections.abc import AsyncIterator

import grpc
import pytest

from chassis import ids, rpc
from chassis.auth import Role
from chassis.errors import Reason
from ordermesh.history.v1 import history_service_pb2 as pb
from ordermesh.order.v1.order_pb2 import Order
from tests.behind import EVERYWHERE, SERVICE, VIP, Searched, behind, searching
from tests.listeners import CALL_S, Scripted, refused

METHODS = {method.name: method for method in rpc.methods_of(SERVICE).values()}


@pytest.fixture
async def searched(tmp_path, shard_database) -> AsyncIterator[Searched]:
    async with searching(tmp_path, await shard_database()) as opened:
        yield opened


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
