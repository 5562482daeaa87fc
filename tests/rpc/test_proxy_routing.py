"""Where calls go: by user, order or shard; refused without a usable key; healed when a shard says that the
route is old.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from grpc import StatusCode

from chassis import rpc
from chassis.errors import Reason, ShardUnavailable
from chassis.ids import user_bucket
from chassis.testing import eventually
from shard_proxy.domain import Owner, VipUser, salt
from tests import echo, proxies
from tests.listeners import refused
from tests.proxies import ON_S1, VIP, VIP_BUCKET, Proxy, for_ever, order_in, order_of, refusing, stale

ON_S2 = "bob"
assert user_bucket(ON_S1) < 2048 <= user_bucket(ON_S2)


@pytest.fixture
async def proxy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Proxy]:
    async with proxies.opened(tmp_path, monkeypatch) as opened:
        yield opened


async def route_of(call: Any) -> str:
    return str(dict(await call.trailing_metadata())["x-ordermesh-route"])


# --- by key


async def test_users_go_to_the_shard_of_their_hash_and_vips_to_their_own(proxy: Proxy) -> None:
    assert await proxy.say(ON_S1) == "s1:hi"
    assert await proxy.say(ON_S2) == "s2:hi"
    assert await proxy.say(VIP) == "v1:hi"
    assert proxy.v1.calls[0]["x-ordermesh-bucket"] == str(VIP_BUCKET)


async def test_orders_go_where_their_id_says_also_a_vips_orders_of_earlier_days(proxy: Proxy) -> None:
    for order_id, lane in ((order_of(ON_S1), "s1"), (order_of(VIP), "s2"), (str(order_in(VIP_BUCKET)), "v1")):
        answer = await proxy.call("ByOrder", echo.EchoRequest(order_id=order_id))
        assert answer.said[0].startswith(lane)


async def test_a_shard_is_called_by_its_name_without_bucket(proxy: Proxy) -> None:
    call = proxy.call("ByShard", echo.EchoRequest(shard="s2"))
    assert (await call).said[0].startswith("s2")
    assert await route_of(call) == "b=- e=- v=1 r=shard"
    assert "x-ordermesh-bucket" not in proxy.s2.calls[0]


async def test_a_salted_vips_requests_spread_and_a_repeat_goes_where_the_first_try_went(proxy: Proxy) -> None:
    proxy.source.move(5000, "s1", 1)
    salted = VipUser("big", (VIP_BUCKET, 5000), datetime(2026, 1, 1, tzinfo=UTC))
    proxy.source.map = replace(proxy.source.map, vips={"big": salted}, ever={"big": (VIP_BUCKET, 5000)})
    await proxy.poll()

    went: dict[str, set[str]] = {}
    for request_id in [f"0190a5d0-0000-7000-8000-00000000000{n}" for n in range(8)] * 2:
        call = proxy.call("Unary", echo.EchoRequest(user_id="big", request_id=request_id))
        went.setdefault(request_id, set()).add((await call).said[0].split(":")[0])
        assert (await route_of(call)).endswith("r=salted")
    assert all(len(places) == 1 for places in went.values())
    assert set.union(*went.values()) == {"v1", "s1"}
    assert salt("ABC") == salt("abc")


@pytest.mark.parametrize(
    ("name", "request_fields", "metadata", "code", "reason"),
    [
        ("Unary", {}, (), StatusCode.INVALID_ARGUMENT, Reason.ROUTING_KEY_MISSING),
        ("Out", {}, (), StatusCode.INVALID_ARGUMENT, Reason.ROUTING_KEY_MISSING),
        ("Unary", {"user_id": "a b"}, (), StatusCode.INVALID_ARGUMENT, Reason.INVALID_FIELD),
        (
            "Unary",
            {"user_id": ON_S1},
            (("x-ordermesh-user", "bob"),),
            StatusCode.INVALID_ARGUMENT,
            Reason.ROUTING_KEY_MISMATCH,
        ),
        ("ByOrder", {}, (), StatusCode.INVALID_ARGUMENT, Reason.ROUTING_KEY_MISSING),
        ("ByOrder", {"order_id": "nonsense"}, (), StatusCode.INVALID_ARGUMENT, Reason.ORDER_ID_INVALID),
        (
            "ByOrder",
            {"order_id": str(order_in(60_000))},
            (),
            StatusCode.INVALID_ARGUMENT,
            Reason.ORDER_ID_INVALID,
        ),
        ("ByShard", {}, (), StatusCode.INVALID_ARGUMENT, Reason.ROUTING_KEY_MISSING),
        ("ByShard", {"shard": "s9"}, (), StatusCode.NOT_FOUND, Reason.UNKNOWN_SHARD),
        ("Scattered", {}, (), StatusCode.INVALID_ARGUMENT, Reason.ROUTING_KEY_MISSING),
        ("Scattered", {"order_ids": ["x"]}, (), StatusCode.INVALID_ARGUMENT, Reason.ORDER_ID_INVALID),
        (
            "Scattered",
            {"order_ids": [order_of(ON_S1)] * 101},
            (),
            StatusCode.INVALID_ARGUMENT,
            Reason.INVALID_FIELD,
        ),
    ],
)
async def test_a_request_without_a_usable_key_is_refused_and_reaches_nobody(
    proxy: Proxy, name: str, request_fields: Any, metadata: Any, code: StatusCode, reason: Reason
) -> None:
    call = proxy.call(name, echo.EchoRequest(**request_fields), metadata=metadata)
    with refused(code, reason):
        await (call.read() if name == "Out" else call)
    assert not any(lane.calls for lane in proxy.lanes)


async def test_bytes_that_are_no_message_are_malformed(proxy: Proxy) -> None:
    with refused(StatusCode.INVALID_ARGUMENT, Reason.MALFORMED_REQUEST):
        await proxy.raw(echo.path_of("Unary"), b"\xff\xff\xff")


async def test_of_a_repeated_key_the_last_one_counts_as_it_does_for_the_lane(proxy: Proxy) -> None:
    twice = b"".join(echo.EchoRequest(user_id=user).SerializeToString() for user in (ON_S1, ON_S2))
    raw = await proxy.raw(echo.path_of("Unary"), twice)
    assert echo.EchoResponse.FromString(raw).said[0].startswith("s2")


@pytest.mark.parametrize("path", ["/no.such.Service/Method", "/ordermesh.order.v1.OrderService/NoSuchMethod"])
async def test_an_unknown_method_is_a_typed_refusal(proxy: Proxy, path: str) -> None:
    with refused(StatusCode.UNIMPLEMENTED, Reason.UNKNOWN_METHOD):
        await proxy.raw(path, b"")


# --- scattered


async def test_a_batch_is_split_by_shard_and_its_answers_are_joined(proxy: Proxy) -> None:
    ids = [order_of(ON_S1), order_of(ON_S2), order_of(ON_S1), str(order_in(VIP_BUCKET))]
    call = proxy.call("Scattered", echo.EchoRequest(order_ids=ids, say="kept"))
    said = set((await call).said)
    assert said == {
        *("s1:kept", "s2:kept", "v1:kept"),
        *(f"s1:{ids[0]}", f"s2:{ids[1]}", f"s1:{ids[2]}", f"v1:{ids[3]}"),
    }
    assert dict(await call.trailing_metadata())["x-ordermesh-shard"] == "s1,s2,v1"


async def test_a_batch_fails_with_the_error_of_the_shard_that_fails_and_stops_the_others(
    proxy: Proxy,
) -> None:
    proxy.s1.behave["Scattered"] = for_ever
    proxy.s2.behave["Scattered"] = refusing(rpc.to_status(ShardUnavailable(shard="s2")))
    with refused(StatusCode.UNAVAILABLE, Reason.SHARD_UNAVAILABLE) as facts:
        await proxy.call("Scattered", echo.EchoRequest(order_ids=[order_of(ON_S1), order_of(ON_S2)]))
    assert facts[0].metadata["shard"] == "s2"

    async def stopped() -> bool:
        return proxy.s1.running == 0

    await eventually(stopped)


async def test_a_batch_asks_again_only_for_the_orders_whose_route_was_old(proxy: Proxy) -> None:
    bucket = user_bucket(ON_S1)
    proxy.s1.behave["Scattered"] = stale(bucket=bucket, epoch=2, owner="s2", state="MOVED")
    proxy.source.gone = True
    ids = [order_of(ON_S1), order_of(ON_S2)]
    said = list((await proxy.call("Scattered", echo.EchoRequest(order_ids=ids))).said)
    assert sorted(line for line in said if len(line) > 4) == sorted(f"s2:{order_id}" for order_id in ids)
    assert len(proxy.s2.calls) == 2


# --- old routes


@pytest.mark.parametrize("name", ["Unary", "Once", "Out"])
async def test_a_refused_route_is_read_again_from_the_control_database(proxy: Proxy, name: str) -> None:
    bucket = user_bucket(ON_S1)
    proxy.source.move(bucket, "s2", 2)
    proxy.s1.behave[name] = stale(bucket=bucket)

    call = proxy.call(name, echo.EchoRequest(user_id=ON_S1, say="hi"))
    answer = await (call.read() if name == "Out" else call)
    assert answer.said[0].startswith("s2:hi")
    assert proxy.s2.calls[0]["x-ordermesh-epoch"] == "2"
    assert (await proxy.say(ON_S1)).startswith("s2")
    assert len(proxy.s1.calls) == 1


@pytest.mark.parametrize("name", ["Unary", "Once", "ByOrder"])
async def test_with_the_control_database_gone_the_fences_word_is_taken_for_writes_and_reads(
    proxy: Proxy, name: str
) -> None:
    bucket = user_bucket(ON_S1)
    proxy.source.gone = True
    proxy.s1.behave[name] = stale(bucket=bucket, epoch=2, owner="s2", state="MOVED")
    request = echo.EchoRequest(user_id=ON_S1, order_id=order_of(ON_S1), say="hi")

    for _ in range(3):
        assert (await proxy.call(name, request)).said[0].startswith("s2")
    assert len(proxy.s1.calls) == 1
    assert proxy.s2.calls[0]["x-ordermesh-epoch"] == "2"


async def test_who_left_a_bucket_is_for_the_control_database_to_say_and_not_for_a_fence(
    proxy: Proxy,
) -> None:
    """A new epoch that a user's leaving made is not believed: that user's orders would still go there."""
    bucket = user_bucket(ON_S1)
    proxy.source.gone = True
    proxy.s1.behave["Unary"] = stale(bucket=bucket, epoch=2, owner="s1", state="OWNED", left_epoch=2)
    with refused(StatusCode.UNAVAILABLE, Reason.SHARD_UNAVAILABLE):
        await proxy.say(ON_S1)
    assert {call["x-ordermesh-epoch"] for call in proxy.s1.calls} == {"1"}

    proxy.s1.behave["ByOrder"] = stale(bucket=bucket, epoch=5, owner="s2", state="MOVED", left_epoch=2)
    answer = await proxy.call("ByOrder", echo.EchoRequest(order_id=order_of(ON_S1)))
    assert answer.said[0].startswith("s2")
    assert proxy.s2.calls[0]["x-ordermesh-epoch"] == "1"


async def test_an_order_id_of_an_unknown_bucket_is_no_lie_while_nobody_can_say(proxy: Proxy) -> None:
    proxy.source.gone = True
    await proxy.poll()
    with refused(StatusCode.UNAVAILABLE, Reason.SHARD_UNAVAILABLE):
        await proxy.call("ByOrder", echo.EchoRequest(order_id=str(order_in(60_000))))


async def test_a_frozen_bucket_is_waited_for_and_in_the_end_named(proxy: Proxy) -> None:
    tries = 0

    async def thawing(request: Any, context: Any) -> Any:
        nonlocal tries
        tries += 1
        if tries <= 5:
            await stale(bucket=user_bucket(ON_S1), epoch=1, owner="s1", state="FROZEN_W")(request, context)
        return proxy.s1.answer(request)

    proxy.s1.behave["Once"] = thawing
    assert await proxy.say(ON_S1, name="Once") == "s1:hi"
    assert tries == 6
    frozen = stale(bucket=user_bucket(ON_S1), epoch=1, owner="s1", state="FROZEN_W")
    proxy.s1.behave["Unary"] = frozen
    with refused(StatusCode.UNAVAILABLE, Reason.BUCKET_FROZEN) as facts:
        await proxy.say(ON_S1)
    assert facts[0].retry_after_s
    assert proxy.routes.book.map.owners == proxy.source.map.owners


async def test_what_a_fence_said_is_forgotten_when_the_control_database_brings_another_map(
    proxy: Proxy,
) -> None:
    bucket = user_bucket(ON_S1)
    proxy.source.gone = True
    proxy.s1.behave["Unary"] = stale(bucket=bucket, epoch=2, owner="s2", state="MOVED")
    assert (await proxy.say(ON_S1)).startswith("s2")

    proxy.source.gone = False
    proxy.source.move(bucket, "v1", 3)

    async def brought() -> bool:
        await proxy.poll()
        return proxy.routes.book.map.version == 2

    await eventually(brought)
    assert (await proxy.say(ON_S1)).startswith("v1")


@pytest.mark.parametrize("name", ["Unary", "ByOrder"])
async def test_a_map_that_is_wrong_everywhere_is_healed_by_asking_the_other_shards(
    proxy: Proxy, name: str
) -> None:
    """The control database itself says s2, whose fence never heard of the bucket and names nobody."""
    bucket = user_bucket(ON_S1)
    proxy.source.move(bucket, "s2", 7)
    await eventually_version(proxy, 2)
    proxy.s2.behave[name] = stale(bucket=bucket)

    async def fenced(request: Any, context: Any) -> Any:
        if dict(context.invocation_metadata())["x-ordermesh-epoch"] != "1" and name == "Unary":
            await stale(bucket=bucket, epoch=1, owner="s1", state="OWNED")(request, context)
        return proxy.s1.answer(request)

    proxy.s1.behave[name] = fenced
    request = echo.EchoRequest(user_id=ON_S1, order_id=order_of(ON_S1), say="hi")
    assert (await proxy.call(name, request)).said[0] == "s1:hi"

    refused_before = len(proxy.s2.calls)
    assert (await proxy.call(name, request)).said[0] == "s1:hi"
    assert len(proxy.s2.calls) == refused_before


async def test_a_route_that_stays_refused_is_unavailable_after_three_tries(proxy: Proxy) -> None:
    for lane in proxy.lanes:
        lane.behave["Unary"] = stale(bucket=user_bucket(ON_S1))
    with refused(StatusCode.UNAVAILABLE, Reason.SHARD_UNAVAILABLE):
        await proxy.say(ON_S1)
    assert sum(len(lane.calls) for lane in proxy.lanes) == 3


async def test_a_corrupted_map_in_memory_is_healed_by_the_first_refused_call(proxy: Proxy) -> None:
    book = proxy.routes.book
    swapped = {
        bucket: Owner("s2" if owner.shard == "s1" else "s1", 9) for bucket, owner in book.map.owners.items()
    }
    book._base = book._current = replace(book.map, owners=swapped)
    for lane in (proxy.s1, proxy.s2):
        lane.behave["Unary"] = fence_of(proxy, lane)
    assert await proxy.say(ON_S1) == "s1:hi"
    assert await proxy.say(ON_S2) == "s2:hi"
    assert book.map.owners == proxy.source.map.owners
    assert (len(proxy.s1.calls), len(proxy.s2.calls)) == (1, 2)


def fence_of(proxy: Proxy, lane: proxies.Lane) -> Any:
    """Serves what the control database gives this lane and refuses the rest."""

    async def fenced(request: Any, context: Any) -> Any:
        bucket = user_bucket(request.user_id)
        if proxy.source.map.owners[bucket].shard != lane.name:
            await stale(bucket=bucket)(request, context)
        return lane.answer(request)

    return fenced


async def eventually_version(proxy: Proxy, version: int) -> None:
    async def there() -> bool:
        await proxy.poll()
        return proxy.routes.book.map.version == version

    await eventually(there)


async def test_orders_of_a_new_vip_bucket_are_found_before_the_next_poll(proxy: Proxy) -> None:
    proxy.source.move(5001, "v1", 1)
    answer = await proxy.call("ByOrder", echo.EchoRequest(order_id=str(order_in(5001))))
    assert answer.said[0].startswith("v1")


async def test_made_up_order_ids_do_not_flood_the_control_database(proxy: Proxy) -> None:
    reads = proxy.source.reads

    async def ask() -> None:
        with refused(StatusCode.INVALID_ARGUMENT, Reason.ORDER_ID_INVALID):
            await proxy.call("ByOrder", echo.EchoRequest(order_id=str(order_in(60_001))))

    await asyncio.gather(*(ask() for _ in range(50)))
    assert proxy.source.reads - reads <= 3


async def test_a_shard_that_moves_to_another_address_is_followed(proxy: Proxy) -> None:
    elsewhere = proxies.Lane("moved")
    await elsewhere.start()
    proxy.stack.push_async_callback(elsewhere.stop)
    shards = dict(proxy.source.map.shards)
    shards["s1"] = replace(shards["s1"], lane_target=elsewhere.target)
    proxy.source.map = replace(proxy.source.map, version=2, shards=shards)
    await eventually_version(proxy, 2)
    assert await proxy.say(ON_S1) == "moved:hi"
