"""What comes from outside is read once, cut to size, and fits into what it is written to."""

from __future__ import annotations

import base64
import json
from dataclasses import replace
from uuid import UUID, uuid4

import pytest

from chassis.errors import InvalidField, PageTokenInvalid
from order_svc import wire
from order_svc.errors import RoutingKeyMismatch, RoutingKeyMissing
from order_svc.events import Source, Told, Verdict
from order_svc.rows import Position
from ordermesh.money.v1.money_pb2 import Money
from ordermesh.order.v1 import order_service_pb2 as pb
from ordermesh.upstream.v1 import upstream_service_pb2 as upstream_pb
from tests.unit.orders import change_of, opened

JOURNAL_BYTES_MAX = 4096


def asked(**fields: object) -> wire.Asked:
    request = {
        "user_id": "alice",
        "request_id": str(uuid4()),
        "kind": "payment",
        "amount": Money(currency_code="EUR", amount_minor=1250),
        "labels": {"a": "1", "b": "2"},
        **fields,
    }
    return wire.asked(pb.CreateOrderRequest(**request))  # type: ignore[arg-type]


def test_a_fingerprint_is_of_named_fields_and_of_nothing_else() -> None:
    first = asked()
    assert asked(labels={"b": "2", "a": "1"}).fingerprint() == first.fingerprint()
    assert replace(first, wait_s=7.0).fingerprint() == first.fingerprint()
    changes: list[dict[str, object]] = [
        {"kind": "purchase"},
        {"amount": Money(currency_code="EUR", amount_minor=1251)},
        {"amount": Money(currency_code="USD", amount_minor=1250)},
        {"description": "x"},
        {"labels": {"a": "1"}},
    ]
    prints = {asked(**change).fingerprint() for change in changes}
    assert len(prints) == len(changes)
    assert first.fingerprint() not in prints


def test_a_route_must_be_one_that_the_user_can_have() -> None:
    headers = {"x-ordermesh-bucket": "701", "x-ordermesh-epoch": "3"}
    assert wire.route(headers, "alice") == wire.Route(701, 3)
    assert wire.route({**headers, "x-ordermesh-bucket": "4096"}, "alice").bucket == 4096
    for bucket in ("702", "65536"):
        with pytest.raises(RoutingKeyMismatch):
            wire.route({**headers, "x-ordermesh-bucket": bucket}, "alice")
    for wrong in ({}, {**headers, "x-ordermesh-epoch": ""}, {**headers, "x-ordermesh-bucket": "-1"}):
        with pytest.raises(RoutingKeyMissing):
            wire.route(wrong, "alice")


@pytest.mark.parametrize("char", ["x", "\u00e4", "\U0001f600", '"', "\\", "\n", "\x01", "\x7f"])
def test_whatever_an_upstream_says_fits_into_the_journal(char: str) -> None:
    said = upstream_pb.Answer(
        verdict=upstream_pb.VERDICT_FAILED,
        reason=char * 10_000,
        upstream_ref="" if char in "\n\x01\x7f" else char * 256,
        amount=Money(currency_code=char * 100, amount_minor=-(2**63)),
    )
    answer = wire.answer(said)
    assert answer is not None
    seen = opened()
    event = Told(event_id=uuid4(), actor="r", leg=0, attempt=1, answer=answer, source=Source.PROBE)
    change = change_of(seen, event)
    assert len(json.dumps(change.entry.evidence, ensure_ascii=False).encode()) < JOURNAL_BYTES_MAX
    assert change.after.failure_reason == answer.reason


def test_an_answer_that_makes_no_sense_is_none_and_an_unsaid_verdict_is_unknown() -> None:
    assert wire.answer(upstream_pb.Answer(verdict=99)) is None  # type: ignore[arg-type]
    assert (
        wire.answer(upstream_pb.Answer(verdict=upstream_pb.VERDICT_SUCCEEDED, upstream_ref="x" * 257)) is None
    )
    assert wire.answer(upstream_pb.Answer(verdict=upstream_pb.VERDICT_SUCCEEDED, upstream_ref="a\0")) is None
    unsaid = wire.answer(upstream_pb.Answer())
    assert unsaid is not None
    assert unsaid.verdict is Verdict.UNKNOWN


def test_positions_come_back_from_their_tokens_and_nonsense_does_not() -> None:
    at, row_id = opened().at, uuid4()
    assert wire.position(wire.packed_position(at, row_id)) == (at, row_id)
    assert wire.position(None)[1] == UUID(int=0)
    for nonsense in (b"", b"x y", b"\xff"):
        with pytest.raises(PageTokenInvalid):
            wire.position(nonsense)


def test_a_consistency_token_is_a_set_of_positions() -> None:
    token = wire.consistency_token(Position("s1", 1, 4711), Position("v1", 2, 7))
    assert base64.urlsafe_b64decode(token + "=" * (-len(token) % 4)) == b"s1:1:4711,v1:2:7"


def test_labels_may_hold_anything_that_can_be_read() -> None:
    assert asked(labels={"k\u00e4se": '"\\\U0001f600'}).labels == {"k\u00e4se": '"\\\U0001f600'}
    many = {f"{n:x}": "" for n in range(257)}
    for labels in ({"a": "\n"}, {"\x01": "a"}, {"": "a"}, many):
        with pytest.raises(InvalidField):
            asked(labels=labels)
