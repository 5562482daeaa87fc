"""What a seeding is told to make, within bounds, and the names that follow from it. Pure."""

from __future__ import annotations

import hashlib
from dataclasses import astuple, dataclass
from datetime import UTC, datetime, timedelta
from typing import Final
from uuid import UUID

from ops.errors import OpsError

USERS_MAX: Final = 100_000
ORDERS_MAX: Final = 50_000_000
MONTHS_MAX: Final = 48
"""Beyond the 24 that stay in the shards, so that there is something to archive."""
SEED_MAX: Final = 2**31 - 1
HEAVY_SHARE_MAX: Final = 0.99
AGE_MIN: Final = timedelta(hours=49)
"""Nothing is made up about the last two days, of which the outbox has to have every change; and an hour."""
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_HOUR = timedelta(hours=1)
_NUMBER_BITS, _HOURS_BITS = 32, 24


class PlanRefused(OpsError):
    """The plan asks for what cannot be made; the message says what can."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """One seeding. months: calendar months, the last of which may be cut short by the present.

    heavy_share: of all orders, those of one user, `heavy_user`; 0 for none.
    """

    users: int = 100
    orders: int = 10_000
    months: int = 3
    seed: int = 1
    heavy_share: float = 0.0

    def __post_init__(self) -> None:
        _within("--users", self.users, 1, USERS_MAX)
        _within("--orders", self.orders, 1, ORDERS_MAX)
        _within("--months", self.months, 1, MONTHS_MAX)
        _within("--seed", self.seed, 0, SEED_MAX)
        _within("--heavy-user", self.heavy_share, 0, HEAVY_SHARE_MAX)

    @property
    def heavy_user(self) -> str:
        """The user with more orders than all others."""
        return f"seed.{self.seed}.heavy"

    def user(self, number: int) -> str:
        """One of the other users, numbered from 0."""
        return f"seed.{self.seed}.{number}"

    def user_ids(self) -> list[str]:
        """Everybody who may have orders."""
        heavy = [self.heavy_user] if self.heavy_share else []
        return heavy + [self.user(number) for number in range(self.users)]

    @property
    def mark(self) -> int:
        """48 bits that tell this plan from others of the same seed."""
        told = repr(astuple(self)).encode()
        return int.from_bytes(hashlib.sha256(told).digest()[:6], "big")


@dataclass(frozen=True, slots=True)
class Origin:
    """What a seeded order's request_id says: its plan, when the plan's time ends, and which of the plan's
    orders it is. So a later run finds out when the first one was, and goes on with it.
    """

    mark: int
    until: datetime
    number: int

    def request_id(self) -> UUID:
        """As a UUID of version 8: 48 bits of mark, then end and number."""
        hours = (self.until - _EPOCH) // _HOUR
        return UUID(int=self.mark << 80 | 8 << 76 | 2 << 62 | hours << _NUMBER_BITS | self.number)

    @classmethod
    def of(cls, request_id: UUID) -> Origin | None:
        """What a request_id says; None when no seeding made it."""
        if request_id.version != 8:
            return None
        hours = request_id.int >> _NUMBER_BITS & (1 << _HOURS_BITS) - 1
        number = request_id.int & (1 << _NUMBER_BITS) - 1
        return cls(request_id.int >> 80, _EPOCH + hours * _HOUR, number)


def latest_end(now: datetime) -> datetime:
    """The last full hour that is old enough to be made up."""
    return _EPOCH + (now - AGE_MIN - _EPOCH) // _HOUR * _HOUR


def _within(option: str, value: float, least: float, most: float) -> None:
    if not least <= value <= most:
        raise PlanRefused(f"{option} must be {least:g} to {most:g}, not {value:g}.")
