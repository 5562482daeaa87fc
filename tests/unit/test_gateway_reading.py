"""What the gateway makes of headers, bodies and parameters."""

import json
import time
from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from chassis.errors import InvalidField
from gateway import asks, bodies, wire
from gateway.errors import MalformedJson, UnsupportedMediaType
from ordermesh.history.v1 import history_service_pb2

JSON = "application/json"
KEY = "8e03978e-40d5-43e8-bc93-6894a57f9324"


def wrong_fields(body: object) -> list[str]:
    with pytest.raises(InvalidField) as refused:
        bodies.read(wire.CreateOrder, json.dumps(body).encode(), JSON)
    return [violation.field for violation in refused.value.violations]


def test_the_last_page_says_what_is_archived_and_where_to_get_it():
    answer = history_service_pb2.ListOrdersResponse()
    assert wire.page(answer).hint is None
    answer.read_info.archived_before_time.FromDatetime(datetime(2024, 9, 1, tzinfo=UTC))
    page = json.loads(wire.page(answer).model_dump_json(by_alias=True))
    assert page["readInfo"]["archivedBeforeTime"] == "2024-09-01T00:00:00Z"
    assert page["hint"] == "Orders from before 2024-09-01 are archived; ask for a statement."


def order(**changes: object) -> dict[str, object]:
    return {"kind": "payment", "amount": {"currencyCode": "EUR", "amountMinor": 1}, **changes}


@pytest.mark.parametrize("header", [KEY, f'"{KEY}"', KEY.upper()])
def test_an_idempotency_key_may_be_bare_or_quoted(header):
    assert asks.idempotency_key(header) == KEY


@pytest.mark.parametrize("header", ["", "x", KEY[:-1], KEY.replace("-", ""), f'"{KEY}', f"{{{KEY}}}"])
def test_an_idempotency_key_that_is_no_uuid_is_refused(header):
    with pytest.raises(InvalidField):
        asks.idempotency_key(header)


@pytest.mark.parametrize(
    ("prefer", "seconds"),
    [
        (None, None),
        ("wait=5", 5),
        ("WAIT=5", 5),
        ("respond-async, wait=7", 7),
        ('wait="3"; x=1', 3),
        ("wait=999", 30),
        ("wait=0", 0),
        ("wait=-1", None),
        ("wait=soon", None),
        ("wait=" + "9" * 50, None),
    ],
)
def test_a_preference_to_wait_is_bounded_and_nonsense_is_ignored(prefer, seconds):
    assert asks.wait_s(prefer, 30) == seconds


@pytest.mark.parametrize(
    ("header", "seconds"), [(None, 5.0), ("2.5", 2.5), ("800ms", 0.8), ("3s", 3.0), ("999999", 35.0)]
)
def test_a_timeout_is_read_in_seconds_and_cut_to_the_most(header, seconds):
    assert asks.timeout_s(header, 5.0, 35.0) == seconds


@pytest.mark.parametrize("header", ["", "0", "-1", "soon", "1e9", "nan", "1h", "٣"])
def test_a_timeout_that_is_none_is_refused(header):
    with pytest.raises(InvalidField):
        asks.timeout_s(header, 5.0, 35.0)


@pytest.mark.parametrize(
    ("header", "has_it"),
    [
        (None, False),
        ('"3"', True),
        ('W/"3"', True),
        ('"2", "3"', True),
        ("*", True),
        ('"33"', False),
        ("3", False),
    ],
)
def test_if_none_match_names_versions(header, has_it):
    assert asks.matches(header, 3) is has_it


@pytest.mark.parametrize("header", ["-1", "1.5", "x", "²", "9" * 19, "9" * 5000])
def test_a_last_event_id_that_is_no_version_is_refused(header):
    with pytest.raises(InvalidField):
        asks.last_event_id(header)
    assert asks.last_event_id("7") == 7
    assert asks.last_event_id(None) == 0


def test_a_request_id_is_echoed_only_when_it_is_harmless():
    assert asks.request_id("abc-1", "fresh") == "abc-1"
    for odd in (None, "", "a b", "x" * 129, 'a"b'):
        assert asks.request_id(odd, "fresh") == "fresh"


def test_unknown_and_doubled_parameters_are_refused_by_name():
    asks.known_only(["pageSize"], frozenset({"pageSize", "status"}))
    with pytest.raises(InvalidField) as refused:
        asks.known_only(["pageSize", "pageSize", "q"], frozenset({"pageSize"}))
    assert [violation.field for violation in refused.value.violations] == ["q", "pageSize"]


def test_a_sound_order_is_read_and_its_text_is_composed():
    read = bodies.read(
        wire.CreateOrder, json.dumps(order(description="cafe\u0301")).encode(), JSON + "; charset=UTF-8"
    )
    assert (read.kind, read.amount.amount_minor, read.description) == ("payment", 1, "caf\u00e9")


@pytest.mark.parametrize(
    ("body", "fields"),
    [
        ({}, ["kind", "amount"]),
        (order(kind="Payment"), ["kind"]),
        (
            order(amount={"currencyCode": "eur", "amountMinor": 0}),
            ["amount.currencyCode", "amount.amountMinor"],
        ),
        (order(amount={"currencyCode": "EUR", "amountMinor": "100"}), ["amount.amountMinor"]),
        (order(amount={"currencyCode": "EUR", "amountMinor": 1.0}), ["amount.amountMinor"]),
        (order(amount={"currencyCode": "EUR", "amountMinor": True}), ["amount.amountMinor"]),
        (order(amount={"currencyCode": "EUR", "amountMinor": 10**16}), ["amount.amountMinor"]),
        (order(amount=None), ["amount"]),
        (order(userId="bob"), ["userId"]),
        (order(status="SUCCESS"), ["status"]),
        (order(description="a\u0000b"), ["description"]),
        (order(description="x" * 513), ["description"]),
        (order(description="\ud800"), ["description"]),
        (order(labels={"a": 1}), ["labels.a"]),
        (order(labels={str(n): "x" for n in range(65)}), ["labels"]),
        (order(labels={"a": "x" * 5000}), ["labels"]),
    ],
)
def test_each_wrong_field_is_named(body, fields):
    assert wrong_fields(body) == fields


def test_a_hostile_name_of_a_field_is_cut_and_can_be_sent_back():
    (name,) = wrong_fields(order(**{"\ud800" + "x" * 1000: 1}))
    assert len(name) <= bodies.FIELD_CHARS_MAX
    assert name.encode().decode() == name


@pytest.mark.parametrize(
    "content_type", [None, "", "text/plain", "application/json; charset=utf-16", "application/jsonx"]
)
def test_only_json_is_read(content_type):
    with pytest.raises(UnsupportedMediaType):
        bodies.read(wire.CreateOrder, b"{}", content_type)


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b"[]",
        b"1",
        b'{"a": NaN}',
        b'{"a": Infinity}',
        b'{"a": 1, "a": 2}',
        b"\xff\xfe{}",
        b'{"a": ' + b"9" * 10_000 + b"}",
        b'{"a": ' + b"[" * 21 + b"]" * 21 + b"}",
        b"[" * 60_000,
    ],
)
def test_what_is_no_sensible_json_object_is_malformed(body):
    with pytest.raises(MalformedJson):
        bodies.read(wire.CreateOrder, body, JSON)


def test_a_text_without_its_end_is_looked_at_once():
    began = time.process_time()
    assert bodies.depth(b'[[["' + b'\\"' * 30_000) == 3
    assert time.process_time() - began < 0.5


def test_brackets_in_text_are_not_depth():
    assert bodies.depth(json.dumps({"a": '[[[[{{{{\\"[['}).encode()) == 1
    assert bodies.depth(b"[[1], [2, [3]]]") == 3


@given(
    st.recursive(
        st.none() | st.text() | st.integers(),
        lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    )
)
def test_depth_agrees_with_a_walk(value):
    def walk(part: object) -> int:
        inner = part.values() if isinstance(part, dict) else part if isinstance(part, list) else None
        return 0 if inner is None else 1 + max(map(walk, inner), default=0)

    assert bodies.depth(json.dumps(value).encode()) == walk(value)


@given(st.binary(max_size=300))
def test_no_bytes_raise_anything_but_typed_errors(body):
    with pytest.raises((MalformedJson, InvalidField)):
        bodies.read(wire.CreateOrder, body, JSON)
