"""The rules of moving a user to a dedicated bucket and back: from where to where, and how far it is.
Pure.

A move is one row of the control database. Up to FLIPPED nothing of it counts and it is taken back; from
FLIPPED on the map says so and it goes forward. So whoever finds a move that nobody drives knows what to do
from its phase alone.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from typing import TYPE_CHECKING
from uuid import UUID

from chassis.errors import InvalidField
from chassis.ids import HASHED_BUCKETS, parse_user_id, user_bucket
from shard_proxy.errors import AlreadyVip, MoveInProgress, NotAVip, UnknownShard

if TYPE_CHECKING:
    from collections.abc import Mapping

REASON_CHARS_MAX = 512
ATTEMPTS_MAX = 5
"""A bucket that cannot be frozen five times in a row is too busy; a person may try again later."""


class Kind(StrEnum):
    """Which way a user goes."""

    PROMOTE = "PROMOTE"
    DEMOTE = "DEMOTE"


class Phase(StrEnum):
    """How far a move is."""

    PLANNED = "PLANNED"
    FREEZING = "FREEZING"
    FLIPPED = "FLIPPED"
    DONE = "DONE"
    ABORTING = "ABORTING"
    ABORTED = "ABORTED"

    @property
    def is_over(self) -> bool:
        """Whether nobody has to do anything any more."""
        return self in (Phase.DONE, Phase.ABORTED)


TAKEN_BACK = (Phase.PLANNED, Phase.FREEZING, Phase.ABORTING)
"""Where a move can still be taken back."""


@dataclass(frozen=True, slots=True)
class Wish:
    """What a person asks for. shard: only of a promotion; empty leaves the choice to us."""

    move_id: UUID
    user_id: str
    kind: Kind
    reason: str
    actor: str
    shard: str = ""

    def checked(self) -> Wish:
        """The same wish. Raises: InvalidField."""
        parse_user_id(self.user_id)
        if not self.reason.strip() or len(self.reason) > REASON_CHARS_MAX or "\0" in self.reason:
            raise InvalidField.of("reason", f"must have 1 to {REASON_CHARS_MAX} characters")
        return self


@dataclass(frozen=True, slots=True)
class Situation:
    """What one look at the control database says about a user who is to be moved.

    vip_buckets: of the VIP table. dedicated: buckets the user had or was to have, newest first.
    shards: whether each is for VIPs. owners: of all dedicated buckets. busy: of moves that are not over.
    """

    map_version: int
    vip_buckets: tuple[int, ...]
    dedicated: tuple[int, ...]
    shards: Mapping[str, bool]
    owners: Mapping[int, str]
    busy_buckets: frozenset[int]
    busy_users: frozenset[str]


@dataclass(frozen=True, slots=True)
class Route:
    """From where to where a user's new orders go. new_shard: owns the new bucket, or will."""

    old_bucket: int
    new_bucket: int
    new_shard: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Move:
    """One move as its row stands. token: of the lease that drives it."""

    move_id: UUID
    user_id: str
    kind: Kind
    old_bucket: int
    old_shard: str
    old_epoch: int
    new_bucket: int
    new_shard: str
    phase: Phase
    attempt: int
    failure: str
    reason: str
    actor: str
    token: int
    keys_copied: int
    frozen_ms: float | None
    created_at: datetime
    updated_at: datetime

    def is_for(self, wish: Wish) -> bool:
        """Whether a wish with the same id is this move."""
        asked_shard = wish.shard in ("", self.new_shard)
        return (self.user_id, self.kind) == (wish.user_id, wish.kind) and asked_shard


def plan(situation: Situation, wish: Wish, hashed_shard: str) -> Route:
    """Decide from where to where a user goes. hashed_shard: owns the hashed bucket.

    A user who had a dedicated bucket on the shard before gets it again, so that lists do not grow with every
    change of mind.
    Raises: AlreadyVip, NotAVip, UnknownShard, MoveInProgress.
    """
    hashed = user_bucket(wish.user_id)
    if wish.kind is Kind.DEMOTE:
        if len(situation.vip_buckets) != 1:
            raise NotAVip(user_id=wish.user_id)
        route = Route(situation.vip_buckets[0], hashed, hashed_shard)
    else:
        if situation.vip_buckets:
            raise AlreadyVip(user_id=wish.user_id, bucket=situation.vip_buckets[0])
        shard = _vip_shard(situation, wish.shard)
        had = [bucket for bucket in situation.dedicated if situation.owners.get(bucket) == shard]
        route = Route(hashed, had[0] if had else _next_free(situation), shard)
    if wish.user_id in situation.busy_users or situation.busy_buckets & {route.old_bucket, route.new_bucket}:
        raise MoveInProgress(user_id=wish.user_id)
    return route


def _vip_shard(situation: Situation, asked: str) -> str:
    if asked:
        if asked not in situation.shards:
            raise UnknownShard(shard=asked[:64])
        return asked
    vip_shards = [shard for shard, vip in situation.shards.items() if vip]
    if not vip_shards:
        raise UnknownShard(shard="")
    taken = Counter(situation.owners.values())
    return min(vip_shards, key=lambda shard: (taken[shard], shard))


def _next_free(situation: Situation) -> int:
    return max(situation.owners, default=HASHED_BUCKETS - 1) + 1
