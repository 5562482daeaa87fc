"""What is asked for, when and by whom: each order of a plan drawn from the seed and its number alone. Pure.

Orders are numbered in the order in which they are made, so those of one month are a run of numbers, and any
of them can be drawn without the others.
"""

from __future__ import annotations

import random
from bisect import bisect_left
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from typing import TYPE_CHECKING
from uuid import UUID

from chassis.ids import user_bucket
from chassis.money import Money
from history_svc.document import month_of, month_start, next_month
from ops.seed.plan import Origin
from ops.seed.words import description, labels
from order_svc.domain import Wish

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from ops.seed.plan import Plan

ACTOR = "ordermesh-seed"
CURRENCIES = ("EUR", "EUR", "EUR", "USD", "USD", "GBP", "JPY", "KWD")
AMOUNT_MINOR_POWERS = (2.0, 6.0)
"""Amounts are spread evenly over their number of digits."""
ON_THE_HOUR = 0.02
"""So many orders are made at a full hour to the millisecond, where others may be made as well."""
_MS = timedelta(milliseconds=1)


@dataclass(frozen=True, slots=True)
class Draft:
    """An order that somebody wanted. draw: goes on where the draft stopped."""

    number: int
    wish: Wish
    draw: random.Random

    @property
    def created_at(self) -> datetime:
        """When it was made."""
        return datetime.fromtimestamp((self.wish.order_id.int >> 80) / 1000, UTC)


class Drafts:
    """The orders of a plan whose time ends at `until`. kinds: the legs of each kind of order."""

    def __init__(self, plan: Plan, until: datetime, kinds: Mapping[str, tuple[str, ...]]) -> None:
        self._plan = plan
        self._kinds = kinds
        self._kind_names = sorted(kinds)
        self._mark = plan.mark
        self.until = until
        self.months = tuple(_months(until, plan.months))
        self._since_ms = _to_ms(month_start(self.months[0]))
        self._span_ms = _to_ms(until) - self._since_ms

    def numbers(self, month: date) -> range:
        """Which orders were made in a month."""
        everything = range(self._plan.orders)
        first = bisect_left(everything, month, key=self._month)
        return range(first, bisect_left(everything, next_month(month), key=self._month))

    def draft(self, number: int) -> Draft:
        """One order."""
        draw, created_ms = self._begun(number)
        user_id = self._user(draw)
        kind = draw.choice(self._kind_names)
        order_id = _order_id(created_ms, user_bucket(user_id), draw)
        wish = Wish(
            order_id=order_id,
            user_id=user_id,
            request_id=Origin(self._mark, self.until, number).request_id(),
            kind=kind,
            legs=self._kinds[kind],
            amount=Money(draw.choice(CURRENCIES), int(10 ** draw.uniform(*AMOUNT_MINOR_POWERS))),
            description=description(draw),
            labels=labels(draw),
            event_id=UUID(int=draw.getrandbits(128), version=4),
            actor=ACTOR,
        )
        return Draft(number, wish, draw)

    def user(self, number: int) -> str:
        """Who made an order, whenever that was."""
        draw, _ = self._begun(number)
        return self._user(draw)

    def _begun(self, number: int) -> tuple[random.Random, int]:
        draw = random.Random(f"{self._mark}/{number}")
        created_ms = self._since_ms + int((number + draw.random()) * self._span_ms / self._plan.orders)
        if draw.random() < ON_THE_HOUR:
            created_ms -= created_ms % 3_600_000
        return draw, created_ms

    def _month(self, number: int) -> date:
        _, created_ms = self._begun(number)
        return month_of(datetime.fromtimestamp(created_ms / 1000, UTC))

    def _user(self, draw: random.Random) -> str:
        if draw.random() < self._plan.heavy_share:
            return self._plan.heavy_user
        # Squared: a tenth of the users has a third of the orders.
        return self._plan.user(int(self._plan.users * draw.random() ** 2))


def _months(until: datetime, count: int) -> Iterator[date]:
    """The months up to the one in which `until` lies, the oldest first."""
    last = month_of(until - _MS)
    first = last.year * 12 + last.month - count
    for number in range(first, first + count):
        yield date(number // 12, number % 12 + 1, 1)


def _order_id(created_ms: int, bucket: int, draw: random.Random) -> UUID:
    """As chassis.ids lays it out, with everything that is random from the seed."""
    return UUID(
        int=created_ms << 80
        | 7 << 76
        | draw.getrandbits(12) << 64
        | 2 << 62
        | bucket << 46
        | draw.getrandbits(46)
    )


def _to_ms(instant: datetime) -> int:
    return int(instant.timestamp() * 1000)
