"""Mails about statements: constant texts, one address, and no header that was not meant."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from datetime import UTC, date, datetime
from email import message_from_bytes, policy
from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st

from archive_svc.statement.letter import LetterUnsafe, News, Stationery, address, see_nothing_else, write
from chassis.ids import USER_ID_PATTERN

NEWS = News(
    UUID("018f0000-0000-7000-8000-000000000001"),
    "alice",
    "en",
    date(2024, 4, 1),
    date(2025, 3, 31),
    datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC),
    datetime(2026, 1, 9, 3, 4, 5, tzinfo=UTC),
)
PAPER = Stationery("statements@shop.invalid", "{user_id}@customers.invalid", "https://shop.invalid/")
HEADERS = {
    *("from", "to", "subject", "date", "message-id", "auto-submitted", "content-language"),
    *("content-type", "content-transfer-encoding", "mime-version"),
}


@pytest.mark.parametrize(
    ("locale", "subject", "period"),
    [
        ("en", "Your order statement is ready", "April 2024 to March 2025"),
        ("hi", "आपका ऑर्डर विवरण तैयार है", "अप्रैल 2024 से मार्च 2025"),
    ],
)
def test_a_mail_says_months_and_a_link_and_nothing_else(locale: str, subject: str, period: str) -> None:
    letter = write(replace(NEWS, locale=locale), PAPER)
    read = message_from_bytes(letter.body, policy=policy.default)
    assert Counter(name.lower() for name in read) == Counter(HEADERS)
    assert read["Subject"] == subject
    assert read["To"] == "alice@customers.invalid" == letter.to
    assert read["Message-ID"] == f"<statement.{NEWS.statement_id}@shop.invalid>"
    assert read["Auto-Submitted"] == "auto-generated"
    assert read["Content-Language"] == locale
    text = read.get_content()
    assert period in text
    assert f"https://shop.invalid/statements/{NEWS.statement_id}" in text.splitlines()
    assert "alice" not in text
    assert all(len(line) <= 78 for line in letter.body.decode("ascii").split("\r\n"))


def test_a_mail_is_the_same_each_time_and_may_have_a_reply_address() -> None:
    paper = replace(PAPER, reply_to="help@shop.invalid")
    assert write(NEWS, paper) == write(NEWS, paper)
    assert b"\r\nReply-To: help@shop.invalid\r\n" in write(NEWS, paper).body
    one = replace(NEWS, first_day=date(2024, 4, 3), last_day=date(2024, 4, 9))
    assert (
        "orders is ready: April 2024."
        in message_from_bytes(write(one, PAPER).body, policy=policy.default).get_content()
    )


INJECTIONS = (
    "a\nBcc: injected@example.com",
    "a\r\nBcc: injected@example.com",
    "a =?UTF-8?Q?=0A?=Bcc: injected@example.com",
    "=?UTF-8?Q?a=0ABcc:_injected=40example.com?=",
    "=?utf-8?b?YQpCY2M6IGI=?=",
    "a, b",
    "a>,<b",
    "a@evil.example",
    "a\u2028Bcc: b",
    "a\x00b",
    "a\x85b",
    "a\x0bb",
    'a" b',
    "<a",
    "(a)",
    "",
    "a b",
    "ä",
    "x" * 300,
)


@pytest.mark.parametrize("user_id", INJECTIONS)
def test_nothing_of_an_address_becomes_a_header(user_id: str) -> None:
    with pytest.raises(LetterUnsafe):
        write(replace(NEWS, user_id=user_id), PAPER)


@pytest.mark.parametrize(
    "domain", ["evil.example\r\nBcc: b@c.d", "a b", "", "-", "a..b", "=?utf-8?q?=0A?=", "a,b", "ä.example"]
)
def test_nothing_of_a_domain_becomes_a_header(domain: str) -> None:
    with pytest.raises(LetterUnsafe):
        address(f"alice@{domain}")


@given(st.from_regex(USER_ID_PATTERN, fullmatch=True))
def test_every_user_there_can_be_gets_a_mail_of_their_own(user_id: str) -> None:
    letter = write(replace(NEWS, user_id=user_id), PAPER)
    read = message_from_bytes(letter.body, policy=policy.default)
    (to,) = read["To"].addresses
    assert (to.username, to.domain) == (user_id, "customers.invalid")


@given(st.text(max_size=80))
def test_whatever_a_user_is_called_the_mail_has_the_headers_that_were_meant(user_id: str) -> None:
    try:
        letter = write(replace(NEWS, user_id=user_id), PAPER)
    except LetterUnsafe:
        return
    read = message_from_bytes(letter.body, policy=policy.default)
    assert {name.lower() for name in read} == HEADERS
    assert len(read["To"].addresses) == 1


@pytest.mark.parametrize(
    "head",
    [
        b"Subject: a\r\nBcc: b@c.d\r\n\r\nbody",
        b"Subject: a\nBcc: b@c.d\r\n\r\nbody",
        b"Subject: a\rBcc: b@c.d\r\n\r\nbody",
        b"Subject: a\r\nSubject: b\r\n\r\nbody",
        b"\r\n\r\nSubject: a",
    ],
)
def test_a_mail_with_another_header_than_was_meant_is_found_out(head: bytes) -> None:
    with pytest.raises(LetterUnsafe):
        see_nothing_else(head, Counter(["subject"]))
    see_nothing_else(b"Subject: a\r\n b\r\n\r\nbody\nBcc: text", Counter(["subject"]))
