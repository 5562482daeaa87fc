"""Order ids: a valid UUIDv7 that carries its bucket, so that an id alone tells the shard and the month, for
ever.

Layout: 48 bit unix ms | version 7 | 12 bit counter | variant 2 | 16 bit bucket | 46 bit random. The same
functions exist in SQL (`ordermesh.id_time`, `ordermesh.id_bucket`, `ordermesh.user_bucket`); tests compare
them on published vectors.
"""

from __future__ import annotations

import hashlib
import re
import secrets
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING
from uuid import UUID

from chassis.errors import InvalidField, OrderIdInvalid

if TYPE_CHECKING:
    from collections.abc import Callable

HASHED_BUCKETS = 4096
"""Buckets 0..4095 are reached by the hash of a user id; the others are dedicated to VIP users."""
BUCKETS = 65_536
USER_ID_PATTERN = re.compile(r"[A-Za-z0-9_.:-]{1,64}")
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_LAST_MS = 253_402_300_799_999
"""The end of the year 9999; 48 bits reach further than dates do."""
_COUNTER_MAX = 0xFFF
_COUNTER_START_BITS = 11
"""A millisecond's counter starts in its lower half, so that at least 2,048 ids fit before it borrows the
next millisecond.
"""


def user_bucket(user_id: str) -> int:
    """The hashed bucket of a user, 0..4095: the first 12 bits of SHA-256 of the UTF-8 user id."""
    digest = hashlib.sha256(user_id.encode()).digest()
    return digest[0] << 4 | digest[1] >> 4


def id_bucket(order_id: UUID) -> int:
    """The bucket that an order id carries, 0..65535."""
    return order_id.int >> 46 & 0xFFFF


def id_time(order_id: UUID) -> datetime:
    """The instant an order was created, aware UTC with millisecond precision."""
    return _EPOCH + timedelta(milliseconds=order_id.int >> 80)


def parse_order_id(text: str) -> UUID:
    """Read an order id in its canonical form.

    Raises: OrderIdInvalid when it is not a UUIDv7 written with hyphens.
    """
    try:
        order_id = UUID(text)
    except ValueError:
        raise OrderIdInvalid from None
    if order_id.version != 7 or str(order_id) != text.lower() or order_id.int >> 80 > _LAST_MS:
        raise OrderIdInvalid
    return order_id


def parse_user_id(text: str, *, field_name: str = "user_id") -> str:
    """Check a user id.

    Raises: InvalidField when it does not match `[A-Za-z0-9_.:-]{1,64}`.
    """
    if not USER_ID_PATTERN.fullmatch(text):
        raise InvalidField.of(field_name, "must match [A-Za-z0-9_.:-]{1,64}")
    return text


def parse_uuid(text: str, *, field_name: str) -> UUID:
    """Read any UUID in its canonical form.

    Raises: InvalidField.
    """
    try:
        parsed = UUID(text)
    except ValueError:
        raise InvalidField.of(field_name, "must be a UUID") from None
    if str(parsed) != text.lower():
        raise InvalidField.of(field_name, "must be a UUID with hyphens")
    return parsed


@dataclass(slots=True)
class OrderIds:
    """Makes order ids; within one process they never go back, whatever the clock does.

    now_ms: unix milliseconds, already disciplined by the database's clock.
    """

    now_ms: Callable[[], int]
    _last_ms: int = field(default=0, init=False)
    _counter: int = field(default=0, init=False)

    def new(self, bucket: int) -> UUID:
        """A new id in this bucket, greater than every id made before by this object."""
        if not 0 <= bucket < BUCKETS:
            raise ValueError(f"bucket {bucket} is not in 0..{BUCKETS - 1}")
        self._advance()
        random = secrets.randbits(46)
        return UUID(int=self._last_ms << 80 | 7 << 76 | self._counter << 64 | 2 << 62 | bucket << 46 | random)

    def _advance(self) -> None:
        now = self.now_ms()
        if now <= self._last_ms and self._counter < _COUNTER_MAX:
            self._counter += 1
            return
        self._last_ms = max(now, self._last_ms + 1)
        self._counter = secrets.randbits(_COUNTER_START_BITS)
