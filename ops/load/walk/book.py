"""What the users of a walk were told: which orders exist, at which version at least, with what labels. Pure.

A promise begins at the instant at which its answer arrived. A page that was asked for later has to keep it,
as far as the page's freshness goes that far back. Instants are seconds on one monotonic clock.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from dataclasses import dataclass, field
from enum import StrEnum
from typing import TYPE_CHECKING, Final

from chassis import consistency

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

BARE_AGE_S: Final = 3.0
"""A page without a token may come from a replica that lags less than a second; what was told three times as
long ago has to be there.
"""


class Freshness(StrEnum):
    """How fresh a page is asked to be."""

    STRONG = "STRONG"
    TOKEN = "TOKEN"  # noqa: S105 - a level, no secret
    """DEFAULT with everything that the user was told."""
    AT_LEAST = "AT_LEAST"
    """AT_LEAST_AS_FRESH with everything that the user was told."""
    BARE = "BARE"
    """DEFAULT without a token."""


@dataclass(frozen=True, slots=True)
class Told:
    """One version that somebody was told of, or saw in a list."""

    at: float
    version: int
    was_seen: bool
    """On a page, which comes with no token."""


@dataclass(frozen=True, slots=True)
class Promise:
    """What a page has to show of an order: this version or a later one."""

    order_id: str
    version: int


@dataclass(slots=True)
class _Kept:
    """What is known of one order. newest: the greatest version so far, of any kind."""

    told: list[Told] = field(default_factory=list)
    labels: dict[int, Mapping[str, str]] = field(default_factory=dict)
    newest: int = 0


@dataclass(slots=True)
class _User:
    ids: list[str] = field(default_factory=list)
    """Ascending; order ids sort as their orders do in a list, since an id begins with its order's time."""
    orders: dict[str, _Kept] = field(default_factory=dict)
    asked: set[str] = field(default_factory=set)
    seen: consistency.Seen = field(default_factory=dict)


class Book:
    """Everything that was promised to some users."""

    def __init__(self, users: Iterator[str] | list[str]) -> None:
        self._users = {user: _User() for user in users}

    @property
    def users(self) -> list[str]:
        """Who is walked."""
        return list(self._users)

    def ask(self, user: str, request_id: str) -> None:
        """Note that an order was asked for, answered or not."""
        if user in self._users:
            self._users[user].asked.add(request_id)

    def tell(
        self,
        user: str,
        order_id: str,
        version: int,
        *,
        at: float,
        labels: Mapping[str, str] | None = None,
        token: str = "",
    ) -> None:
        """Note an acknowledgement. labels: of this version; None when the answer did not say. token: of the
        write.
        """
        if user not in self._users:
            return
        of_user = self._users[user]
        self._add(of_user, order_id, Told(at, version, was_seen=False))
        if labels is not None:
            of_user.orders[order_id].labels[version] = dict(labels)
        if token:
            of_user.seen = consistency.merged(consistency.opened(token) or {}, of_user.seen)

    def see(self, user: str, order_id: str, version: int, *, at: float) -> None:
        """Note that a list showed a version: whoever asks for the present later must not be shown less."""
        if self.newest(user, order_id) < version:
            self._add(self._users[user], order_id, Told(at, version, was_seen=True))

    def token(self, user: str) -> str:
        """Everything that a user was told, as one consistency token; empty when that is nothing."""
        seen = self._users[user].seen
        return consistency.sealed(seen) if seen else ""

    def newest(self, user: str, order_id: str) -> int:
        """The greatest version that anybody was told of or saw; 0 for an unknown order."""
        kept = self._users[user].orders.get(order_id)
        return 0 if kept is None else kept.newest

    def count(self, user: str) -> int:
        """How many orders of a user are known."""
        return len(self._users[user].ids)

    def is_known(self, user: str, order_id: str, request_id: str) -> bool:
        """Whether an order was acknowledged, was there before, or at least was asked for."""
        of_user = self._users[user]
        return order_id in of_user.orders or request_id in of_user.asked

    def labels(self, user: str, order_id: str, version: int) -> Mapping[str, str] | None:
        """The labels of a version, where somebody was told."""
        kept = self._users[user].orders.get(order_id)
        return None if kept is None else kept.labels.get(version)

    def promised(
        self, user: str, *, asked_at: float, freshness: Freshness, above: str, below: str
    ) -> Iterator[Promise]:
        """What a page has to show, newest first.

        asked_at: when the page was asked for. above, below: order ids; the page shows those from `above` on,
        itself too, and up to `below`, itself not. Empty for no bound.
        """
        of_user = self._users[user]
        first = bisect_left(of_user.ids, above) if above else 0
        last = bisect_left(of_user.ids, below) if below else len(of_user.ids)
        for order_id in reversed(of_user.ids[first:last]):
            version = _least(of_user.orders[order_id], asked_at, freshness)
            if version:
                yield Promise(order_id, version)

    @staticmethod
    def _add(of_user: _User, order_id: str, told: Told) -> None:
        kept = of_user.orders.get(order_id)
        if kept is None:
            kept = of_user.orders[order_id] = _Kept()
            insort(of_user.ids, order_id)
        kept.told.append(told)
        kept.newest = max(kept.newest, told.version)


def _least(kept: _Kept, asked_at: float, freshness: Freshness) -> int:
    """The least version that a page may show of an order; 0 when it need not show it."""
    until = asked_at - BARE_AGE_S if freshness is Freshness.BARE else asked_at
    has_token = freshness in (Freshness.TOKEN, Freshness.AT_LEAST)
    return max(
        (told.version for told in kept.told if told.at <= until and not (has_token and told.was_seen)),
        default=0,
    )
