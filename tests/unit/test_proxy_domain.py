"""The routing rules alone: pure, in microseconds."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime
from uuid import uuid4

import pytest

from chassis.errors import InvalidField, MalformedRequest, OrderIdInvalid
from chassis.ids import OrderIds, user_bucket
from ordermesh.order.v1 import order_service_pb2 as pb
from shard_proxy import headers
from shard_proxy.domain import (
    By,
    Key,
    MapSnapshot,
    Owner,
    Placement,
    Shard,
    VipUser,
    Why,
    impossible,
    other_owners,
    placements_of,
    route,
    scatter,
)
from shard_proxy.errors import NoOwner, RoutingKeyMissing, UnknownShard
from shard_proxy.keys import BadKeyField, KeyView
from shard_proxy.methods import BEHIND, passed_on

NOW = datetime(2026, 1, 1, tzinfo=UTC)
SHARDS = {name: Shard(name, name == "v1", f"{name}:1", f"{name}:2") for name in ("s1", "s2", "v1")}
MAP = MapSnapshot(
    version=3,
    shards=SHARDS,
    services={},
    owners={bucket: Owner("s1" if bucket < 2048 else "s2", 1) for bucket in range(4096)}
    | {4096: Owner("v1", 5)},
    vips={"vip.1": VipUser("vip.1", (4096,), NOW)},
    ever={"vip.1": (4096, 4088)},
)
IDS = OrderIds(lambda: 1_800_000_000_000)


def user(user_id: str, request_id: str = "") -> Placement:
    return route(MAP, By.USER, Key((user_id,), request_id))


@pytest.mark.parametrize(("user_id", "bucket"), [("alice", 701), ("42", 1844), ("vip.1", 4088)])
def test_hashes_are_the_published_ones(user_id: str, bucket: int) -> None:
    assert user_bucket(user_id) == bucket


def test_a_user_is_placed_by_hash_and_a_vip_by_hand() -> None:
    assert user("alice") == Placement("s1", Why.HASH, 701, 1)
    assert user("vip.1") == Placement("v1", Why.VIP, 4096, 5)


@pytest.mark.parametrize("bucket", [0, 701, 2048, 4095, 4096])
def test_an_order_is_where_its_id_says_whoever_it_belongs_to(bucket: int) -> None:
    placed = route(MAP, By.ORDER, Key((str(IDS.new(bucket)),)))
    assert (placed.bucket, placed.shard) == (bucket, MAP.owners[bucket].shard)


@pytest.mark.parametrize(
    ("by", "value", "refusal"),
    [
        (By.USER, "", RoutingKeyMissing),
        (By.USER, "no spaces", InvalidField),
        (By.USER, "x" * 65, InvalidField),
        (By.ORDER, "", RoutingKeyMissing),
        (By.ORDER, str(uuid4()), OrderIdInvalid),
        (By.ORDER, IDS.new(1).hex, OrderIdInvalid),
        (By.ORDER, str(IDS.new(50_000)), NoOwner),
        (By.SHARD, "", RoutingKeyMissing),
        (By.SHARD, "s3", UnknownShard),
    ],
    ids=(
        "user-missing",
        "user-with-spaces",
        "user-too-long",
        "order-missing",
        "order-of-another-version",
        "order-without-hyphens",
        "order-of-nobody",
        "shard-missing",
        "shard-unknown",
    ),
)
def test_there_is_no_default_shard(by: By, value: str, refusal: type[Exception]) -> None:
    with pytest.raises(refusal):
        route(MAP, by, Key((value,)))
    with pytest.raises((RoutingKeyMissing, refusal)):
        route(MAP, by, Key(()))


def test_a_bucket_without_owner_is_a_made_up_order_or_a_map_with_a_hole() -> None:
    assert isinstance(impossible(NoOwner(bucket=50_000), By.ORDER), OrderIdInvalid)
    assert isinstance(impossible(NoOwner(bucket=12), By.ORDER), NoOwner)
    assert isinstance(impossible(NoOwner(bucket=50_000), By.USER), NoOwner)


def test_all_places_of_a_user_are_named_newest_first_and_once() -> None:
    assert [p.bucket for p in placements_of(MAP, "alice")] == [701]
    assert [(p.bucket, p.shard) for p in placements_of(MAP, "vip.1")] == [(4096, "v1"), (4088, "s2")]
    demoted = replace(MAP, vips={})
    assert [p.bucket for p in placements_of(demoted, "vip.1")] == [4088, 4096]


def test_a_salted_user_keeps_each_request_in_one_bucket() -> None:
    salted = replace(MAP, vips={"big": VipUser("big", (4096, 1, 2), NOW)})
    requests = [str(uuid4()) for _ in range(60)]
    placed = [route(salted, By.USER, Key(("big",), request)) for request in requests]
    assert placed == [route(salted, By.USER, Key(("big",), request.upper())) for request in requests]
    assert {p.bucket for p in placed} == {4096, 1, 2}
    assert {p.why for p in placed} == {Why.SALTED}


def test_a_batch_is_grouped_by_shard_in_its_own_order() -> None:
    ids = [str(IDS.new(bucket)) for bucket in (1, 3000, 2, 4096)]
    assert scatter(MAP, Key(tuple(ids))) == {"s1": [ids[0], ids[2]], "s2": [ids[1]], "v1": [ids[3]]}
    with pytest.raises(RoutingKeyMissing):
        scatter(MAP, Key(()))
    with pytest.raises(InvalidField):
        scatter(MAP, Key(tuple(ids * 26)))


def test_a_lost_bucket_is_looked_for_where_it_belongs_first() -> None:
    assert other_owners(MAP, 701, ["s2"]) == ["s1", "v1"]
    assert other_owners(MAP, 5000, []) == ["v1", "s1", "s2"]


def test_two_maps_are_compared_by_what_they_say() -> None:
    assert replace(MAP, read_at=NOW).says_the_same_as(MAP)
    assert not MAP.with_owners({1: Owner("s2", 2)}).says_the_same_as(MAP)
    assert MAP.with_owners({}) is MAP


def test_a_key_is_read_from_bytes_and_the_rest_is_left_alone() -> None:
    view = KeyView(pb.CreateOrderRequest.DESCRIPTOR, "user_id")
    request = pb.CreateOrderRequest(user_id="alice", request_id="r", kind="payment", labels={"a": "b"})
    raw = request.SerializeToString()
    assert view.read(raw) == Key(("alice",), "r")
    assert view.read(raw + pb.CreateOrderRequest(user_id="bob").SerializeToString()).one == "bob"
    with pytest.raises(RoutingKeyMissing):
        _ = view.read(b"").one
    for wrong in (b"\xff", raw[:3], b"\x0a\x02\xff\xfe"):
        with pytest.raises(MalformedRequest):
            view.read(wrong)


def test_a_split_request_keeps_what_the_proxy_does_not_know() -> None:
    view = KeyView(pb.BatchGetOrdersRequest.DESCRIPTOR, "order_ids")
    unknown = b"\x98\x06\x01"
    raw = pb.BatchGetOrdersRequest(order_ids=["a", "b", "c"]).SerializeToString() + unknown
    one, two = view.split(raw, [["a", "c"], ["b"]])
    assert one.endswith(unknown)
    assert list(pb.BatchGetOrdersRequest.FromString(one).order_ids) == ["a", "c"]
    assert list(pb.BatchGetOrdersRequest.FromString(two).order_ids) == ["b"]


def test_a_key_that_is_no_string_stops_the_start() -> None:
    with pytest.raises(BadKeyField):
        KeyView(pb.ClaimDueOrdersRequest.DESCRIPTOR, "limit")


def test_every_method_behind_the_proxy_has_a_route() -> None:
    passed = passed_on(BEHIND)
    assert len(passed) >= 20
    for each in passed.values():
        assert (each.view is None) == (each.by is By.ANY)


def test_metadata_of_the_mesh_and_of_the_hop_stays_outside() -> None:
    kept = (("x-request-id", "1"), ("baggage", "a=b"), ("x-bin", b"\x00"))
    dropped = (
        *(("x-ordermesh-user", "a"), ("x-ordermesh-new", "a"), ("authorization", "Bearer x")),
        *(("te", "trailers"), ("user-agent", "x"), ("grpc-timeout", "1S"), (":path", "/")),
        *(("traceparent", "00-1-2-01"), ("tracestate", "a=b")),  # The channel says its own.
    )
    assert headers.passed_on((*kept, *dropped)) == kept


def test_a_lane_is_told_the_placement_and_history_all_of_them() -> None:
    placements = placements_of(MAP, "vip.1")
    said = dict(headers.for_lane(placements[0], "token", placements))
    assert said == {
        "x-ordermesh-subject": "token",
        "x-ordermesh-bucket": "4096",
        "x-ordermesh-epoch": "5",
        "x-ordermesh-placement": "4096:v1:5,4088:s2:1",
    }
    assert headers.route_trailer(placements[0], 3) == "b=4096 e=5 v=3 r=vip"
