"""Since when months wait to be archived. Pure."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

from archive_svc.lifecycle import WAY, State

if TYPE_CHECKING:
    from collections.abc import Iterable

_READ_FROM_COPIES = frozenset(WAY[WAY.index(State.COMMITTED) :])


@dataclass(frozen=True, slots=True)
class Stay:
    """A month that readers read from the tables of its shard.

    state, reach: None when nobody asked for it.
    since: when somebody asked for it, gave it back or had it brought back, whichever was last.
    """

    begins_at: datetime
    state: State | None
    reach: State | None
    since: datetime | None


def ripe_at(begins_at: datetime, months_min: int, days_min: int) -> datetime:
    """The first instant at which `ripe_until` lets a month go: so many months, then days, after its end."""
    years, month = divmod(begins_at.astimezone(UTC).month + months_min, 12)
    return datetime(begins_at.astimezone(UTC).year + years, month + 1, 1, tzinfo=UTC) + timedelta(days_min)


def archived_until(
    stays: Iterable[Stay],
    last_commit: datetime | None,
    at: datetime,
    *,
    months_min: int,
    days_min: int,
    reach: State | None,
) -> datetime:
    """Every month that was to go before this instant is read from its copy; `at` when none waits.

    Readers turn to one copy after the other, so a month waits only since they turned to the last one.
    at: the shard's clock. reach: how far months go by themselves; None when each is asked for.
    """
    waiting = [
        max(filter(None, (ripe_at(stay.begins_at, months_min, days_min), stay.since, last_commit)))
        for stay in stays
        if _is_to_go(stay, reach)
    ]
    return min([at, *waiting])


def _is_to_go(stay: Stay, by_itself: State | None) -> bool:
    """Whether somebody asked for it, or months go by themselves: one that was given back holds them up."""
    return stay.reach in _READ_FROM_COPIES or by_itself in _READ_FROM_COPIES
