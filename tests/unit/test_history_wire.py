"""What history_svc reads from a request and its headers, and shows of a row."""

from datetime import UTC, datetime
from pathlib import Path
from uuid import UUID

import pytest
from google.protobuf.timestamp_pb2 import Timestamp
from pydantic import ValidationError

from chassis.errors import InvalidField, PlacementMissing
from chassis.placement import Held, placement_of
from history_svc import wire
from history_svc.page import NEWEST, OLDEST, Key
from history_svc.settings import HistorySettings
from ordermesh.history.v1 import history_service_pb2 as pb
from ordermesh.order.v1.order_pb2 import Order

NOON = datetime(2026, 3, 1, 12, tzinfo=UTC)


def stamp(at: datetime) -> Timestamp:
    made = Timestamp()
    made.FromDatetime(at)
    return made


def test_buckets_are_grouped_by_shard():
    header = {"x-ordermesh-placement": "701:s1:3,4096:v1:1,702:s1:9"}
    assert placement_of(header) == {"s1": (Held(701, 3), Held(702, 9)), "v1": (Held(4096, 1),)}


@pytest.mark.parametrize(
    "header",
    [
        None,
        "",
        "701",
        "701:s1",
        "701:s1:",
        "70000:s1:1",
        "701:S1:1",
        "701:s1:1,",
        "701:s1:-1",
        " 701:s1:1",
        "٧:s1:1",
        ",".join(["1:s1:1"] * 65),
    ],
)
def test_a_call_that_does_not_say_where_is_refused(header):
    with pytest.raises(PlacementMissing):
        placement_of({} if header is None else {"x-ordermesh-placement": header})


def test_each_wrong_field_is_named():
    request = pb.ListOrdersRequest(user_id="a b", page_size=-1, consistency_token="x" * 2000)
    request.status = 9  # type: ignore[assignment]
    request.from_time.seconds = 10**15
    with pytest.raises(InvalidField) as refused:
        wire.ask(request)
    named = [violation.field for violation in refused.value.violations]
    assert named == ["user_id", "page_size", "status", "from_time", "consistency_token"]


def test_a_plain_request_asks_for_everything():
    ask = wire.ask(pb.ListOrdersRequest(user_id="alice"))
    window = ask.window(None)
    assert (ask.page_size, window.before, window.not_before, window.filter.status) == (
        20,
        NEWEST,
        OLDEST,
        None,
    )


def test_the_window_ends_at_the_nearest_of_its_bounds():
    ask = wire.ask(
        pb.ListOrdersRequest(user_id="alice", until_time=stamp(NOON), from_time=Timestamp(seconds=-5))
    )
    below_noon = Key(NOON, UUID(int=0))
    earlier, later = Key(OLDEST, UUID(int=5)), NEWEST
    assert ask.window(None).before == ask.window(later).before == below_noon
    assert ask.window(earlier).before == earlier
    assert ask.window(None).not_before == OLDEST


def test_a_token_belongs_to_a_list_and_not_to_a_page_size():
    first = wire.ask(pb.ListOrdersRequest(user_id="alice", page_size=5))
    other_size = wire.ask(pb.ListOrdersRequest(user_id="alice", page_size=50))
    lists = [
        pb.ListOrdersRequest(user_id="bob"),
        pb.ListOrdersRequest(user_id="alice", status=Order.PENDING),
        pb.ListOrdersRequest(user_id="alice", from_time=stamp(NOON)),
        pb.ListOrdersRequest(user_id="alice", until_time=stamp(NOON)),
    ]
    assert first.query == other_size.query
    assert len({first.query, *(wire.ask(one).query for one in lists)}) == 5


def test_an_unsettled_row_shows_no_settlement():
    columns = {
        **dict.fromkeys(("settled_at", "basis")),
        **dict.fromkeys(("description", "upstream_ref", "failure_reason", "traceparent"), ""),
        "order_id": UUID(int=7),
        "request_id": UUID(int=8),
        "user_id": "alice",
        "status": "PENDING",
        "stage": "READY",
        "kind": "payment",
        "legs": ["payments"],
        "leg": 0,
        "attempt": 1,
        "amount_minor": 1250,
        "currency_code": "EUR",
        "labels": {"cart": "7"},
        "version": 4,
        "created_at": NOON,
        "updated_at": NOON,
    }
    shown = wire.order(columns)
    assert (shown.stage, shown.amount.amount_minor, dict(shown.labels)) == (Order.READY, 1250, {"cart": "7"})
    assert not shown.HasField("settle_time")
    assert shown.basis == Order.BASIS_UNSPECIFIED
    assert wire.order({**columns, "settled_at": NOON}).settle_time.ToDatetime(UTC) == NOON


def test_production_needs_keys_of_its_own():
    here = {"tls_dir": Path(), "subject_dir": Path(), "shards": {}}
    with pytest.raises(ValidationError):
        HistorySettings(**here)  # type: ignore[arg-type]
    assert HistorySettings(**here, profile="local").token_keys()  # type: ignore[arg-type]
    keys = ("k" * 16, "o" * 16)
    assert HistorySettings(**here, page_token_keys=keys).token_keys() == (b"k" * 16, b"o" * 16)  # type: ignore[arg-type]


def test_the_first_instant_of_1970_is_a_bound():
    asked = wire.ask(pb.ListOrdersRequest(user_id="alice", until_time=Timestamp()))
    assert asked.window(None).before.created_at == OLDEST
