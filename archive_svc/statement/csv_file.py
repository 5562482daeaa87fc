"""A statement's orders as CSV: RFC 4180, UTF-8, for spreadsheets and for programs. Pure."""

from __future__ import annotations

import csv
import io
from datetime import timedelta
from typing import TYPE_CHECKING

from archive_svc.statement.plan import EPOCH

if TYPE_CHECKING:
    from collections.abc import Iterable
    from zoneinfo import ZoneInfo

    from archive_svc.statement.rows import Row

BOM = "\ufeff".encode()
"""By which a spreadsheet recognises UTF-8."""
HEADER = (
    "order_id",
    "created_at",
    "settled_at",
    "status",
    "kind",
    "amount",
    "amount_minor",
    "currency",
    "currency_exponent",
    "description",
    "reference",
    "failure_reason",
    "correction",
)
_FORMULA = frozenset("=+-@\t\r\n\0＝＋－＠")
"""What a cell that a spreadsheet computes begins with, the wide ones of East Asian keyboards included."""


def lines(rows: Iterable[Row], zone: ZoneInfo) -> bytes:
    """Orders as lines of CSV.

    A text that a spreadsheet would compute begins with an apostrophe; numbers and times are as they are.
    """
    sink = io.StringIO(newline="")
    csv.writer(sink, lineterminator="\r\n").writerows(_cells(row, zone) for row in rows)
    return sink.getvalue().encode()


def header() -> bytes:
    """The line above them."""
    return (",".join(HEADER) + "\r\n").encode()


def major(amount_minor: int, exponent: int) -> str:
    """An amount in whole units with all the digits of its currency: `12.50`, `1250`, `1.250`."""
    if not exponent:
        return str(amount_minor)
    digits = str(abs(amount_minor)).rjust(exponent + 1, "0")
    return f"{'-' if amount_minor < 0 else ''}{digits[:-exponent]}.{digits[-exponent:]}"


def local_time(at_us: int | None, zone: ZoneInfo) -> str:
    """An instant in a zone with its offset; nothing for none.

    at_us: microseconds since 1970, UTC.
    """
    if at_us is None:
        return ""
    return (EPOCH + timedelta(microseconds=at_us)).astimezone(zone).isoformat(timespec="microseconds")


def guarded(text: str) -> str:
    """A text that no spreadsheet computes."""
    return "'" + text if text[:1] in _FORMULA and text else text


def _cells(row: Row, zone: ZoneInfo) -> tuple[object, ...]:
    return (
        row.order_id,
        local_time(row.created_us, zone),
        local_time(row.settled_us, zone),
        guarded(row.status),
        guarded(row.kind),
        major(row.amount_minor, row.currency_exp),
        row.amount_minor,
        guarded(row.currency_code),
        row.currency_exp,
        guarded(row.description),
        guarded(row.upstream_ref),
        guarded(row.failure_reason),
        guarded(row.note),
    )
