"""What people type becomes exact values, and values become what people read."""

from datetime import UTC, datetime, timedelta

import pytest
import typer
from google.protobuf.duration_pb2 import Duration
from google.protobuf.timestamp_pb2 import Timestamp

from chassis.money import Money
from ops.cli import amounts, output
from ops.cli.filters import instant
from ops.cli.options import actor, duration, os_user
from ops.cli.where import is_order_id
from ordermesh.order.v1.order_pb2 import Order


@pytest.mark.parametrize(
    ("typed", "meant"),
    [
        ("12.50EUR", Money("EUR", 1250)),
        ("12.5 eur", Money("EUR", 1250)),
        ("12EUR", Money("EUR", 1200)),
        ("0.01USD", Money("USD", 1)),
        ("1000JPY", Money("JPY", 1000)),
        ("1.234KWD", Money("KWD", 1234)),
        ("10000000000000.00EUR", Money("EUR", 10**15)),
    ],
)
def test_an_amount_is_read_exactly(typed: str, meant: Money) -> None:
    assert amounts.parse(typed) == meant


@pytest.mark.parametrize(
    "typed",
    [
        "",
        "EUR",
        "12",
        "12.505EUR",
        "1.5JPY",
        "-1EUR",
        "0EUR",
        "1e3EUR",
        "1,50EUR",
        "10000000000000.01EUR",
        "1EURO",
    ],
)
def test_what_is_no_amount_is_refused(typed: str) -> None:
    with pytest.raises(typer.BadParameter):
        amounts.parse(typed)


@pytest.mark.parametrize(
    ("typed", "meant"),
    [
        ("EUR:10..20", amounts.Range("EUR", 1000, 2000)),
        ("eur:10.50..", amounts.Range("EUR", 1050, 0)),
        ("EUR:..20", amounts.Range("EUR", 0, 2000)),
        ("EUR:12.50", amounts.Range("EUR", 1250, 1250)),
        ("JPY:1000..1000", amounts.Range("JPY", 1000, 1000)),
        ("EUR", amounts.Range("EUR")),
    ],
)
def test_a_range_of_amounts_is_read_exactly(typed: str, meant: amounts.Range) -> None:
    assert amounts.parse_range(typed) == amounts.parse_range(meant) == meant


@pytest.mark.parametrize(
    "typed",
    [
        "",
        "10..20",
        "EUR:",
        "EUR:..",
        "EUR:20..10",
        "EUR:1.234",
        "JPY:1.5..",
        "EUR:-1..",
        "EUR:x",
        "EURO:1..2",
    ],
)
def test_what_is_no_range_of_amounts_is_refused(typed: str) -> None:
    with pytest.raises(typer.BadParameter):
        amounts.parse_range(typed)


@pytest.mark.parametrize(
    ("typed", "meant"),
    [
        ("2026-09-01", datetime(2026, 9, 1, tzinfo=UTC)),
        ("2026-09-01T12:30Z", datetime(2026, 9, 1, 12, 30, tzinfo=UTC)),
        ("2026-09-01T12:30+02:00", datetime(2026, 9, 1, 10, 30, tzinfo=UTC)),
    ],
)
def test_a_time_is_read_in_utc_unless_it_says_otherwise(typed: str, meant: datetime) -> None:
    assert instant(typed) == instant(meant) == meant


def test_a_duration_is_a_time_that_long_ago() -> None:
    before = datetime.now(UTC)
    assert before - timedelta(days=2) <= instant("2d") <= datetime.now(UTC) - timedelta(days=2)


@pytest.mark.parametrize("typed", ["", "yesterday", "2026-13-01", "0001-01-01T00:00+02:00", "99999999999d"])
def test_what_is_no_time_is_refused(typed: str) -> None:
    with pytest.raises(typer.BadParameter):
        instant(typed)


@pytest.mark.parametrize(
    ("typed", "seconds"), [("500ms", 0.5), ("5s", 5), ("5", 5), ("1.5m", 90), ("2h", 7200), ("1d", 86400)]
)
def test_a_duration_is_read_with_its_unit(typed: str, seconds: float) -> None:
    assert duration(typed) == timedelta(seconds=seconds)


@pytest.mark.parametrize("typed", ["", "s", "5 weeks", "-5s", "1h30m", "99999999999d", "9" * 400])
def test_what_is_no_duration_is_refused(typed: str) -> None:
    with pytest.raises(typer.BadParameter):
        duration(typed)


def test_a_name_is_an_order_only_when_it_is_a_uuid_of_version_7() -> None:
    assert is_order_id("01939c5e-7a3b-7000-8af5-0123456789ab")
    assert not is_order_id("2f4bb1b5-3c5f-4a6e-9c52-94a3a0a2f3d1")
    assert not is_order_id("alice")


def test_json_has_camel_case_names_and_every_plain_field() -> None:
    shown = output.as_dict(Order(order_id="x", legs=["payments"], status=Order.PENDING, version=7))
    assert shown["orderId"] == "x"
    assert (shown["leg"], shown["status"], shown["version"]) == (0, "PENDING", "7")
    assert "settleTime" not in shown


def test_times_durations_and_evidence_are_short_and_plain() -> None:
    at = Timestamp(seconds=1_795_000_000, nanos=42_999_999)
    assert output.when(at) == "2026-11-18 11:06:40.042Z"
    assert output.when(Timestamp()) == ""
    assert [output.how_long(Duration(seconds=s)) for s in (5, 90, 7200)] == ["5.0 s", "1.5 min", "2.0 h"]
    assert output.evidence('{"verdict": "UNKNOWN", "code": 14, "empty": ""}') == "verdict=UNKNOWN code=14"
    assert len(output.evidence('{"long": "' + "x" * 500 + '"}')) == output.CELL_CHARS_MAX
    assert output.evidence('{"amount_minor": 1, "upstream_ref": "p-1"}') == "upstream_ref=p-1 amount_minor=1"
    assert output.evidence("not json") == "not json"


def test_a_settled_order_shows_its_status_as_its_stage() -> None:
    assert output.stage(Order(stage=Order.DONE, status=Order.FAILED)) == "FAILED"
    assert output.stage(Order(stage=Order.UNKNOWN, status=Order.PENDING)) == "UNKNOWN"


@pytest.mark.parametrize("typed", ["", "mira k", "mira:root", "m" * 33, "mïra"])
def test_a_person_has_a_name_that_a_journal_can_keep(typed: str, monkeypatch: pytest.MonkeyPatch) -> None:
    assert actor("mira.k-2") == "mira.k-2"
    with pytest.raises(typer.BadParameter, match="no name"):
        actor(typed)
    monkeypatch.setenv("LOGNAME", r"CORP\mira")
    assert actor(os_user()) == "CORP_mira"
