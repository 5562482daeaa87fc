"""Typed errors: what a caller reads is the docstring, and what travels comes back unchanged."""

from __future__ import annotations

import pytest
from grpc import StatusCode
from hypothesis import given
from hypothesis import strategies as st

from chassis import errors, rpc
from chassis.auth import Role, Subject
from chassis.errors import InvalidField, NotYourOrder, Reason, StaleRoute, Violation
from chassis.money import AMOUNT_MINOR_MAX, Money, asked_for
from chassis.rpc.status import DETAILS_KEY, FACT_CHARS_MAX, code_of


def test_the_message_of_an_error_is_its_first_paragraph_on_one_line() -> None:
    class Example(errors.OrdermeshError):
        """One sentence
        on two lines.

        More for those who read code.
        """

    assert Example.sentence() == "One sentence on two lines."
    assert str(Example(secret="x")) == "One sentence on two lines."


@given(
    st.dictionaries(st.from_regex(r"[a-z][a-z_]{0,20}", fullmatch=True), st.text(max_size=2000), max_size=5),
    st.text(alphabet="0123456789abcdef", max_size=32),
)
def test_facts_survive_the_wire_and_are_cut_when_long(facts: dict[str, str], trace_id: str) -> None:
    code, message, trailers = rpc.to_status(StaleRoute(**facts), trace_id)
    back = rpc.parse(code, message, trailers)
    expected = {name: value[:FACT_CHARS_MAX] for name, value in facts.items()}
    if trace_id:
        expected["trace_id"] = trace_id
    assert (back.code, back.reason, dict(back.metadata)) == (StatusCode.ABORTED, "STALE_ROUTE", expected)


def test_violations_survive_the_wire_in_order() -> None:
    wrong = InvalidField(Violation("a", "must be b"), Violation("c.d", "is missing"))
    assert rpc.parse(*rpc.to_status(wrong)).violations == wrong.violations


@pytest.mark.parametrize("details", [b"\xff\xff", b"", b"\x0a\x02hi"])
def test_details_that_cannot_be_read_are_as_good_as_none(details: bytes) -> None:
    back = rpc.parse(StatusCode.UNAVAILABLE, "gone", ((DETAILS_KEY, details),))
    assert (back.code, back.reason, back.message) == (StatusCode.UNAVAILABLE, "", "gone")


def test_a_number_of_no_code_is_unknown() -> None:
    assert code_of(5) is StatusCode.NOT_FOUND
    assert code_of(99) is StatusCode.UNKNOWN


def test_a_mere_user_sees_only_what_is_theirs_and_others_see_all() -> None:
    alice = Subject("alice", frozenset({Role.USER}))
    alice.must_own("alice")
    with pytest.raises(NotYourOrder):
        alice.must_own("bob")
    Subject("alice", frozenset({Role.USER, Role.OPERATOR})).must_own("bob")
    Subject("recovery_svc", frozenset({Role.RECOVERY})).must_own("bob")


@pytest.mark.parametrize(
    ("money", "text"),
    [
        (Money("EUR", 1250), "12.50 EUR"),
        (Money("EUR", 5), "0.05 EUR"),
        (Money("EUR", -5), "-0.05 EUR"),
        (Money("JPY", 1250), "1250 JPY"),
        (Money("CLF", 123456), "12.3456 CLF"),
        (Money("KWD", 1), "0.001 KWD"),
    ],
)
def test_money_reads_with_the_digits_of_its_currency(money: Money, text: str) -> None:
    assert str(money) == text


@pytest.mark.parametrize(
    ("code", "amount", "field"),
    [
        ("eur", 1, "amount.currency_code"),
        ("EURO", 1, "amount.currency_code"),
        ("", 1, "amount.currency_code"),
        ("ÄÖÜ", 1, "amount.currency_code"),
        ("EUR", 0, "amount.amount_minor"),
        ("EUR", -1, "amount.amount_minor"),
        ("EUR", AMOUNT_MINOR_MAX + 1, "amount.amount_minor"),
    ],
)
def test_an_order_asks_for_a_positive_amount_of_a_real_currency(code: str, amount: int, field: str) -> None:
    assert asked_for("EUR", AMOUNT_MINOR_MAX) == Money("EUR", AMOUNT_MINOR_MAX)
    with pytest.raises(InvalidField) as refused:
        asked_for(code, amount)
    assert [violation.field for violation in refused.value.violations] == [field]
    assert refused.value.reason is Reason.INVALID_FIELD
