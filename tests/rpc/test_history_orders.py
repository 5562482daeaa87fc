"""ListOrders on the wire: a real server behind mTLS over real Postgres."""

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, cast

import grpc
import pytest

from chassis import rpc
from chassis.auth import Role, Subject
from chassis.errors import Reason
from chassis.ids import user_bucket
from chassis.tokens import PageTokens
from history_svc.app import SERVICE, service
from history_svc.settings import HistorySettings
from history_svc.store import Shards
from ordermesh.history.v1 import history_service_pb2 as pb
from ordermesh.history.v1 import history_service_pb2_grpc as pb_grpc
from ordermesh.order.v1.order_pb2 import Order
from tests.histories import Shard, order_at, scattered
from tests.listeners import ALICE, CALL_S, OPERATOR, Trust, refused
from tests.readmodels import MemoryReadModel

BOB = Subject("bob", frozenset({Role.USER}), "spiffe://ordermesh/gateway")
PLACEMENT = f"{user_bucket('alice')}:s1:1,4097:v1:1"
ROTATED = (b"a new key of 16 bytes", b"the old key of 16 bytes")


@dataclass
class History:
    """The service as the proxy reaches it."""

    stub: Any
    trust: Trust
    s1: Shard
    v1: Shard

    async def list_orders(
        self, subject: Subject = ALICE, placement: str | None = PLACEMENT, **ask: Any
    ) -> Any:
        metadata = self.trust.metadata(subject)
        if placement is not None:
            metadata = (*metadata, ("x-ordermesh-placement", placement))
        request = pb.ListOrdersRequest(**{"user_id": "alice", **ask})
        return await self.stub.ListOrders(request, timeout=CALL_S, metadata=metadata)

    async def walk(self, **ask: Any) -> list[Any]:
        orders: list[Any] = []
        token = ""
        while True:
            page = await self.list_orders(page_token=token, **ask)
            orders += page.orders
            token = page.next_page_token
            if not token:
                return orders


@pytest.fixture
async def history(tmp_path, shard_database) -> AsyncIterator[History]:
    trust = Trust.make(tmp_path)
    s1 = await Shard("s1", await shard_database()).prepare()
    v1 = await Shard("v1", await shard_database()).prepare(4097)
    settings = HistorySettings(
        tls_dir=trust.tls,
        subject_dir=trust.subjects,
        shards={"s1": s1.database.dsn, "v1": v1.database.dsn, "s2": "postgresql://x:y@127.0.0.1:1/s2"},
        page_token_keys=tuple(key.decode() for key in ROTATED),
    )
    async with AsyncExitStack() as stack:
        shards = await stack.enter_async_context(Shards.open(settings))
        handlers = service(settings, shards, MemoryReadModel())
        server = await stack.enter_async_context(
            rpc.serve(
                "127.0.0.1:0",
                [rpc.Mount(SERVICE, handlers)],
                gate=trust.lane(),
                tls=trust.server("history_svc"),
            )
        )
        channel = await stack.enter_async_context(
            rpc.Channel(f"127.0.0.1:{server.port}", service="history_svc", tls=trust.files("shard_proxy"))
        )
        yield History(pb_grpc.HistoryServiceStub(cast("grpc.aio.Channel", channel)), trust, s1, v1)


async def test_a_walk_shows_every_order_of_all_shards_once_newest_first(history):
    old, new = scattered(30, seed=1), scattered(33, seed=2, bucket=4097)
    await history.s1.store(*old)
    await history.v1.store(*new)
    shown = await history.walk(page_size=7)
    expected = sorted([*old, *new], key=lambda order: order.sort_key, reverse=True)
    assert [order.order_id for order in shown] == [str(order.order_id) for order in expected]
    settled = [order for order in shown if order.status == Order.SUCCESS]
    assert settled[0].settle_time.seconds
    assert settled[0].basis == Order.UPSTREAM
    only = await history.walk(page_size=7, status=Order.SUCCESS)
    assert only == settled


async def test_a_page_says_which_stores_answered_and_which_did_not(history):
    await history.s1.store(order_at(datetime(2026, 4, 1, tzinfo=UTC)))
    page = await history.list_orders()
    assert list(page.read_info.sources) == ["sql:s1", "sql:v1"]
    assert list(page.unreachable) == ["read-model"], "nothing was ever indexed here"
    assert page.read_info.served_by == pb.ReadInfo.SQL_FALLBACK
    assert page.next_page_token == ""
    (order,) = page.orders
    assert (order.user_id, order.amount.currency_code, dict(order.labels)) == ("alice", "EUR", {"cart": "7"})


async def test_a_page_is_twenty_orders_unless_asked_and_a_hundred_at_most(history):
    await history.s1.store(*scattered(120, seed=3))
    assert len((await history.list_orders()).orders) == 20
    assert len((await history.list_orders(page_size=2**31 - 1)).orders) == 100
    with refused(grpc.StatusCode.INVALID_ARGUMENT, Reason.INVALID_FIELD):
        await history.list_orders(page_size=-1)


async def test_users_see_only_their_own_orders_and_operators_everybodys(history):
    await history.s1.store(order_at(datetime(2026, 4, 1, tzinfo=UTC)))
    with refused(grpc.StatusCode.PERMISSION_DENIED, Reason.NOT_YOUR_ORDER):
        await history.list_orders(BOB)
    assert len((await history.list_orders(OPERATOR)).orders) == 1


async def test_a_page_token_fits_only_its_list_and_survives_a_change_of_keys(history):
    await history.s1.store(*scattered(9, seed=4))
    token = (await history.list_orders(page_size=4)).next_page_token
    assert len((await history.list_orders(page_size=50, page_token=token)).orders) == 5
    strange = [
        {"page_token": token, "status": Order.FAILED},
        {"page_token": token[:-2] + "AA"},
        {"page_token": "A" + token[1:]},
        {"page_token": "not a token"},
        {"page_token": "x" * 10_000},
    ]
    for ask in strange:
        with refused(grpc.StatusCode.INVALID_ARGUMENT, Reason.PAGE_TOKEN_INVALID):
            await history.list_orders(**ask)
    with refused(grpc.StatusCode.INVALID_ARGUMENT, Reason.PAGE_TOKEN_INVALID):
        await history.list_orders(BOB, user_id="bob", page_token=token)
    forged = PageTokens(b"somebody else's key").seal(b"\0" * 24, "x")
    with refused(grpc.StatusCode.INVALID_ARGUMENT, Reason.PAGE_TOKEN_INVALID):
        await history.list_orders(page_token=forged)


async def test_a_route_that_is_stale_is_refused_with_the_owner_even_when_the_list_would_be_empty(history):
    await history.v1.fence(4097, state="MOVED", owner="s2", epoch=2)
    with refused(grpc.StatusCode.ABORTED, Reason.STALE_ROUTE) as facts:
        await history.list_orders()
    (stale,) = facts
    assert {"bucket": "4097", "owner": "s2", "epoch": "2"}.items() <= stale.metadata.items()


async def test_a_shard_that_is_away_is_unavailable_and_nobody_elses_trouble(history):
    with refused(grpc.StatusCode.UNAVAILABLE, Reason.SHARD_UNAVAILABLE) as facts:
        await history.list_orders(placement=PLACEMENT + ",7:s2:1")
    assert facts[0].metadata["shard"] == "s2"
    assert (await history.list_orders()).read_info.sources


@pytest.mark.parametrize("placement", [None, "", "somewhere"])
async def test_a_call_that_does_not_say_where_is_refused(history, placement):
    with refused(grpc.StatusCode.INVALID_ARGUMENT, Reason.ROUTING_KEY_MISSING):
        await history.list_orders(placement=placement)
