"""The mail that says that a statement is ready. Pure.

Its texts are constants: no name, no figure, nothing that anybody but us wrote. Only the period's months, the
day until which it is kept, and a link to a page that needs the login. What of others goes into a header, the
address, is checked; and the bytes that were made are read again, so that no header is in them that was not
meant.
"""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import dataclass
from email import policy
from email.errors import MessageError
from email.headerregistry import Address
from email.message import EmailMessage
from email.parser import BytesHeaderParser
from typing import TYPE_CHECKING, NamedTuple

from chassis.mail import Letter

if TYPE_CHECKING:
    from datetime import date, datetime
    from uuid import UUID

ADDRESS_CHARS_MAX = 254
_DOMAIN = re.compile(r"[A-Za-z0-9]([A-Za-z0-9.-]{0,251}[A-Za-z0-9])?", re.ASCII)
_LOCAL = re.compile(r"[\x21-\x7e]{1,128}", re.ASCII)
_OF_CONTENT = ("mime-version", "content-type", "content-transfer-encoding")


class LetterUnsafe(Exception):
    """A mail cannot be made of this without saying something that was not meant."""


class Texts(NamedTuple):
    """What a mail says in one language. period: of one month, and of several."""

    subject: str
    body: str
    one_month: str
    months: str
    month_names: tuple[str, ...]


TEXTS = {
    "en": Texts(
        "Your order statement is ready",
        "Your statement of your orders is ready: {period}.\n\n"
        "You find it here, after you logged in:\n{link}\n\n"
        "It is kept until {until}.\n\n"
        "You did not ask for it? Please tell us.\n",
        "{first}",
        "{first} to {last}",
        (
            *("January", "February", "March", "April", "May", "June"),
            *("July", "August", "September", "October", "November", "December"),
        ),
    ),
    "hi": Texts(
        "आपका ऑर्डर विवरण तैयार है",
        "आपके ऑर्डरों का विवरण तैयार है: {period}।\n\n"
        "लॉग इन करने के बाद आप इसे यहाँ पा सकते हैं:\n{link}\n\n"
        "यह {until} तक रखा जाएगा।\n\n"
        "आपने इसे नहीं माँगा था? कृपया हमें बताएँ।\n",
        "{first}",
        "{first} से {last}",
        (
            *("जनवरी", "फ़रवरी", "मार्च", "अप्रैल", "मई", "जून"),
            *("जुलाई", "अगस्त", "सितंबर", "अक्टूबर", "नवंबर", "दिसंबर"),
        ),
    ),
}


@dataclass(frozen=True, slots=True)
class News:
    """What a mail is about. ready_at, kept_until: aware UTC."""

    statement_id: UUID
    user_id: str
    locale: str
    first_day: date
    last_day: date
    ready_at: datetime
    kept_until: datetime


@dataclass(frozen=True, slots=True)
class Stationery:
    """What stands on every mail.

    sender, reply_to: addresses; reply_to may be empty. to: a template of addresses with `{user_id}`.
    base_url: of the pages; a mail links to `<base_url>/statements/<id>`.
    """

    sender: str
    to: str
    base_url: str
    reply_to: str = ""


def write(news: News, paper: Stationery) -> Letter:
    """The mail about a statement; the same bytes each time.

    Raises: LetterUnsafe.
    """
    texts = TEXTS[news.locale]
    sender, to = address(paper.sender), address(paper.to.replace("{user_id}", news.user_id))
    headers = {
        "From": sender,
        "To": to,
        "Subject": texts.subject,
        "Date": news.ready_at,
        "Message-ID": f"<statement.{news.statement_id}@{sender.domain}>",
        "Auto-Submitted": "auto-generated",
        "Content-Language": news.locale,
    }
    if paper.reply_to:
        headers["Reply-To"] = address(paper.reply_to)
    link = f"{paper.base_url.rstrip('/')}/statements/{news.statement_id}"
    until = _day(news.kept_until.date(), texts)
    message = EmailMessage(policy=policy.SMTP)
    # First, since it takes every header away that speaks of content.
    message.set_content(texts.body.format(period=_period(news, texts), link=link, until=until), cte="base64")
    for name, value in headers.items():
        message[name] = value
    try:
        body = message.as_bytes()
    except (MessageError, ValueError) as wrong:
        raise LetterUnsafe(str(wrong)) from wrong
    see_nothing_else(body, Counter([name.lower() for name in headers] + [*_OF_CONTENT]))
    return Letter(f"statement.{news.statement_id}", sender.addr_spec, to.addr_spec, body)


def address(text: str) -> Address:
    """A bare address, quoted where it has to be.

    Raises: LetterUnsafe for whatever could be more than one address, or say anything else.
    """
    local, _, domain = text.rpartition("@")
    if (
        len(text) > ADDRESS_CHARS_MAX
        or text.count("@") != 1
        or not _LOCAL.fullmatch(local)
        or not _DOMAIN.fullmatch(domain)
        or ".." in domain
        or "=?" in text
        or any(each in local for each in '"\\<>(),;[]')
    ):
        raise LetterUnsafe("this is not one plain address")
    return Address(username=local, domain=domain)


def see_nothing_else(body: bytes, meant: Counter[str]) -> None:
    """Read a mail's headers again, as others will.

    Raises: LetterUnsafe when they are not exactly those that were meant.
    """
    head = body.partition(b"\r\n\r\n")[0]
    found = Counter(name.lower() for name in BytesHeaderParser(policy=policy.compat32).parsebytes(head))
    # What some take for the end of a line ends one, whoever reads it.
    is_broken = b"\r" in head.replace(b"\r\n", b"") or b"\n" in head.replace(b"\r\n", b"")
    if found != meant or is_broken:
        raise LetterUnsafe("the mail has other headers than were meant")


def _period(news: News, texts: Texts) -> str:
    first, last = _month(news.first_day, texts), _month(news.last_day, texts)
    return (texts.one_month if first == last else texts.months).format(first=first, last=last)


def _month(day: date, texts: Texts) -> str:
    return f"{texts.month_names[day.month - 1]} {day.year}"


def _day(day: date, texts: Texts) -> str:
    return f"{day.day} {_month(day, texts)}"
