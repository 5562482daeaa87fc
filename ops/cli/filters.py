"""The filters that lists and searches share, and how each is typed."""

from __future__ import annotations

from datetime import UTC, datetime
from enum import StrEnum
from typing import TYPE_CHECKING, Annotated

import typer

from ops.cli import amounts
from ops.cli.options import duration
from ordermesh.history.v1 import history_service_pb2 as history
from ordermesh.order.v1.order_pb2 import Order

if TYPE_CHECKING:
    from google.protobuf.timestamp_pb2 import Timestamp

PAGE_SIZE, PAGE_MAX = 20, 100
LIST_MAX = 10_000
"""What `--all` follows at most; whoever wants more has a narrower question, or wants a statement."""


class StatusName(StrEnum):
    """A status by name."""

    PENDING = "PENDING"
    SUCCESS = "SUCCESS"
    FAILED = "FAILED"


class Level(StrEnum):
    """How fresh a list has to be."""

    DEFAULT = "default"
    STRONG = "strong"
    AT_LEAST_AS_FRESH = "at-least-as-fresh"
    EVENTUAL = "eventual"

    @property
    def value_on_the_wire(self) -> history.Consistency.ValueType:
        """As the proto names it."""
        return history.Consistency.Value(f"CONSISTENCY_{self.name}")


def instant(text: str | datetime) -> datetime:
    """Read `2026-09-01`, `2026-09-01T12:00Z` (UTC unless it says otherwise), or `2d`, which is two days ago.

    Raises: BadParameter.
    """
    if isinstance(text, datetime):
        return text
    try:
        said = datetime.fromisoformat(text.strip())
        return (said if said.tzinfo else said.replace(tzinfo=UTC)).astimezone(UTC)
    except (ValueError, OverflowError):
        pass
    try:
        return datetime.now(UTC) - duration(text)
    except (typer.BadParameter, OverflowError):
        raise typer.BadParameter(
            f"{text!r} is no time; write it as 2026-09-01, 2026-09-01T12:00Z, or 2d for two days ago"
        ) from None


Status = Annotated[StatusName | None, typer.Option(case_sensitive=False, help="Only orders of this status.")]
Kind = Annotated[str, typer.Option(help="Only orders of this kind.")]
From = Annotated[
    datetime | None,
    typer.Option(
        "--from",
        parser=instant,
        metavar="TIME",
        help="Created then or later: 2026-09-01, or 2d for 2 days ago.",
    ),
]
Until = Annotated[
    datetime | None, typer.Option("--until", parser=instant, metavar="TIME", help="Created before.")
]
Amount = Annotated[
    amounts.Range | None,
    typer.Option(
        parser=amounts.parse_range, metavar="RANGE", help="EUR:10..20, EUR:10.., EUR:..20, EUR:12.50 or EUR."
    ),
]
Words = Annotated[str, typer.Option("--text", help="Only descriptions with all of these words.")]
PageSize = Annotated[
    int | None,
    typer.Option(
        min=1, max=PAGE_MAX, show_default=f"{PAGE_SIZE}, {PAGE_MAX} with --all", help="Orders of one page."
    ),
]
All = Annotated[bool, typer.Option("--all", help=f"Follow the pages, up to {LIST_MAX} orders.")]


def order_filter(
    status: StatusName | None,
    kind: str,
    created_from: datetime | None,
    until: datetime | None,
    amount: amounts.Range | None,
    text: str,
) -> history.OrderFilter:
    """The filter on the wire."""
    made = history.OrderFilter(kind=kind, text=text)
    if status is not None:
        made.status = Order.Status.Value(status.value)
    for stamp, at in ((made.from_time, created_from), (made.until_time, until)):
        if at is not None:
            _set(stamp, at)
    if amount is not None:
        made.amount.currency_code = amount.currency_code
        made.amount.min_minor, made.amount.max_minor = amount.min_minor, amount.max_minor
    return made


def _set(stamp: Timestamp, at: datetime) -> None:
    stamp.FromDatetime(at)
