"""What stands on a statement for people: its opening, its totals, and a line for each order. Pure."""

from __future__ import annotations

import unicodedata
from dataclasses import asdict, dataclass
from datetime import timedelta
from itertools import groupby
from typing import TYPE_CHECKING, Any
from zoneinfo import ZoneInfo

from archive_svc.statement.csv_file import major
from archive_svc.statement.plan import EPOCH
from archive_svc.statement.words import WORDS

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence
    from datetime import date, datetime

    from archive_svc.statement.merge import Tally
    from archive_svc.statement.rows import Row
    from archive_svc.statement.wish import Wanted
    from archive_svc.statement.words import Words

TEXT_MAX = 120
"""Characters of an order's text that are tried to fit into its line."""
_JOINERS = frozenset("\u200c\u200d")
"""Without a width and without a direction; the scripts of India need them."""
_NO_TEXT = frozenset({"Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp"})


@dataclass(frozen=True, slots=True)
class Paper:
    """Everything that a statement says, as texts.

    facts:  names and values of the opening block.
    totals: a head, then a line for each currency and status.
    rows:   a head, then a line for each order: time, order, description, reference, status, amount.
    note:   why orders have no lines; empty when they have.
    page:   with `{page}` and `{pages}`.
    """

    title: str
    locale: str
    facts: tuple[tuple[str, str], ...]
    totals_title: str
    totals: tuple[tuple[str, ...], ...]
    rows: tuple[tuple[str, ...], ...]
    none: str
    note: str
    page: str
    written_at: float

    def as_json(self) -> dict[str, Any]:
        """The same for another process."""
        return asdict(self)


def paper(
    wanted: Wanted,
    tally: Tally,
    rows: Iterable[Row],
    *,
    archived_rows: int,
    archived: Iterable[tuple[str, date]],
    note: str = "",
) -> Paper:
    """What a statement says.

    rows:     those that get a line; tally: of all of them.
    archived: shards and months that came from the archive.
    note:     why there are no lines of orders.
    """
    words, zone = WORDS[wanted.locale], ZoneInfo(wanted.time_zone)
    period = words.until.format(
        since=_said(wanted.since, zone), until=_said(wanted.until, zone), zone=wanted.time_zone
    )
    source = words.all_live
    if archived_rows:
        months = spans(sorted({month for _, month in archived}))
        source = words.archived.format(orders=f"{archived_rows:,}", months=months)
    totals = tuple(
        (
            total.currency,
            words.statuses.get(total.status, total.status),
            f"{total.orders:,}",
            grouped(total.amount_minor, tally.exponent(total.currency)),
        )
        for total in tally.totals()
    )
    return Paper(
        title=words.title,
        locale=wanted.locale,
        facts=(
            (words.user, masked(wanted.user_id)),
            (words.period, period),
            (words.as_of, _said(wanted.as_of, zone)),
            (words.number, f"{tally.orders:,}"),
            (words.source, source),
        ),
        totals_title=words.totals,
        totals=((words.currency, words.status, words.orders, words.amount), *totals),
        rows=(
            (words.created, words.order, words.description, words.reference, words.status, words.amount),
            *(_line(row, zone, words) for row in rows),
        ),
        none=words.none,
        note=note,
        page=words.page,
        written_at=wanted.as_of.timestamp(),
    )


def summary(said: Paper, sha256: Mapping[str, str], *, locale: str) -> str:
    """The opening and the totals as plain text, with the SHA-256 of the other files."""
    words = WORDS[locale]
    widths = [max(map(len, column)) for column in zip(*said.totals, strict=True)]
    table = [
        "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip()
        for line in said.totals
    ]
    lines = [
        said.title,
        "",
        *(f"{name}: {value}" for name, value in said.facts),
        *([said.note] if said.note else []),
        "",
        said.totals_title,
        *(table if len(table) > 1 else [said.none]),
        "",
        words.files,
        *(f"{digest}  {name}" for name, digest in sorted(sha256.items())),
    ]
    return "\r\n".join(lines) + "\r\n"


def masked(user_id: str) -> str:
    """A user's id, so that its owner knows it and a finder of the paper does not: `us***45`."""
    shown = 2 if len(user_id) >= 8 else 1 if len(user_id) >= 3 else 0
    return f"{user_id[:shown]}***{user_id[len(user_id) - shown :]}"


def plain(text: str) -> str:
    """A text without what would not stand on one line, or would turn what is beside it round."""
    kept = "".join(
        each if each in _JOINERS or unicodedata.category(each) not in _NO_TEXT else " "
        for each in text[:TEXT_MAX]
    )
    return " ".join(kept.split())


def grouped(amount_minor: int, exponent: int) -> str:
    """An amount in whole units, its thousands apart: `1,234.50`."""
    whole, point, rest = major(amount_minor, exponent).partition(".")
    return f"{int(whole):,}{point}{rest}" if not whole.startswith("-0") else f"{whole}{point}{rest}"


def spans(months: Sequence[date]) -> str:
    """Months that follow each other as one: `2023-08 - 2023-11, 2024-01`. months: sorted, each once."""
    numbers = [month.year * 12 + month.month - 1 for month in months]
    found = []
    for _, run in groupby(enumerate(numbers), key=lambda each: each[1] - each[0]):
        names = [f"{number // 12}-{number % 12 + 1:02}" for _, number in run]
        found.append(names[0] if len(names) == 1 else f"{names[0]} - {names[-1]}")
    return ", ".join(found)


def _line(row: Row, zone: ZoneInfo, words: Words) -> tuple[str, ...]:
    at = (EPOCH + timedelta(microseconds=row.created_us)).astimezone(zone)
    status = words.statuses.get(row.status, row.status)
    text = plain(row.description)
    if row.note:
        text = f"{text} [{words.correction}: {plain(row.note)}]".lstrip()
    return (
        at.strftime("%Y-%m-%d %H:%M"),
        row.order_id,
        text,
        plain(row.upstream_ref),
        status,
        f"{row.currency_code} {grouped(row.amount_minor, row.currency_exp)}",
    )


def _said(at: datetime, zone: ZoneInfo) -> str:
    local = at.astimezone(zone)
    offset = local.strftime("%z")
    return f"{local:%Y-%m-%d %H:%M} {offset[:3]}:{offset[3:5]}"
