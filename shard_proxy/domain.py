"""The routing rules: user or order id -> bucket -> shard. Pure functions over an immutable snapshot of the
map.

Two levels, always: a user's bucket comes from the VIP table or the hash, a bucket's shard from the map. An
order id carries its bucket, so it needs no look-up. A request without a key is refused; nothing has a
default.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from enum import StrEnum
from typing import TYPE_CHECKING

from chassis.errors import InvalidField, OrderIdInvalid
from chassis.ids import HASHED_BUCKETS, id_bucket, parse_order_id, parse_user_id, user_bucket
from shard_proxy.errors import NoOwner, RoutingKeyMissing, UnknownShard

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

SCATTER_KEYS_MAX = 100
"""Order ids in one request that is split over shards."""
_NEVER = datetime.fromtimestamp(0, UTC)


class By(StrEnum):
    """Which kind of key routes a method."""

    USER = "user"
    ORDER = "order"
    SHARD = "shard"
    SCATTER = "scatter"
    ANY = "any"


class Why(StrEnum):
    """The reason of a placement, as in the trailer x-ordermesh-route."""

    HASH = "hash"
    VIP = "vip"
    SALTED = "salted"
    ORDER_ID = "order_id"
    SHARD = "shard"
    SCATTER = "scatter"
    ANY = "any"


@dataclass(frozen=True, slots=True)
class Owner:
    """The shard that owns a bucket, and since which epoch."""

    shard: str
    epoch: int


@dataclass(frozen=True, slots=True)
class Shard:
    """One Postgres database and where the processes are that serve only it."""

    name: str
    vip: bool
    lane_target: str
    history_target: str
    state: str = "ACTIVE"


@dataclass(frozen=True, slots=True)
class VipUser:
    """A user placed by hand. More than one bucket only when salted."""

    user_id: str
    buckets: tuple[int, ...]
    since: datetime


@dataclass(frozen=True, slots=True)
class MapSnapshot:
    """The whole map at one version; never changed, only replaced.

    ever: every bucket a VIP user may have orders in, newest first. read_at: when the control database said
    so.
    """

    version: int
    shards: Mapping[str, Shard]
    services: Mapping[str, str]
    owners: Mapping[int, Owner]
    vips: Mapping[str, VipUser] = field(default_factory=dict)
    ever: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    read_at: datetime = _NEVER

    def with_owners(self, owners: Mapping[int, Owner]) -> MapSnapshot:
        """The same map with other owners of some buckets."""
        return replace(self, owners={**self.owners, **owners}) if owners else self

    def says_the_same_as(self, other: MapSnapshot) -> bool:
        """Whether both route alike, whenever they were read."""
        return replace(self, read_at=other.read_at) == other


@dataclass(frozen=True, slots=True)
class Key:
    """What routes one request: the value of its key field, and its request_id where it has one."""

    values: tuple[str, ...]
    request_id: str = ""

    @property
    def one(self) -> str:
        """The only value.

        Raises: RoutingKeyMissing.
        """
        if not self.values or not self.values[0]:
            raise RoutingKeyMissing
        return self.values[0]


@dataclass(frozen=True, slots=True)
class Placement:
    """Where a request goes and why. Bucket and epoch are None where a shard or a service was named.

    shard: empty for a service that belongs to none.
    """

    shard: str
    why: Why
    bucket: int | None = None
    epoch: int | None = None


ANYWHERE = Placement("", Why.ANY)


def route(map_: MapSnapshot, by: By, key: Key) -> Placement:
    """Decide where one request goes.

    Raises: RoutingKeyMissing, UnknownShard, NoOwner, OrderIdInvalid; InvalidField for an impossible user id.
    """
    if by is By.USER:
        return place_user(map_, key.one, key.request_id)
    if by is By.ORDER:
        return place_order(map_, key.one)
    if by is By.SHARD:
        return place_shard(map_, key.one)
    return ANYWHERE


def place_user(map_: MapSnapshot, user_id: str, request_id: str = "") -> Placement:
    """Where a user's new orders go.

    request_id: salts a VIP with several buckets, so that a repeat lands where the first try did.
    """
    vip = map_.vips.get(user_id)
    if vip is None:
        return _owned(map_, user_bucket(parse_user_id(user_id)), Why.HASH)
    if len(vip.buckets) == 1:
        return _owned(map_, vip.buckets[0], Why.VIP)
    return _owned(map_, vip.buckets[salt(request_id) % len(vip.buckets)], Why.SALTED)


def salt(request_id: str) -> int:
    """A number that is the same for every spelling of one request_id."""
    digest = hashlib.sha256(request_id.lower().encode()).digest()
    return int.from_bytes(digest[:8], "big")


def place_order(map_: MapSnapshot, order_id: str) -> Placement:
    """Where an order is: its id carries the bucket."""
    return _owned(map_, id_bucket(parse_order_id(order_id)), Why.ORDER_ID)


def place_shard(map_: MapSnapshot, shard: str) -> Placement:
    """A shard that is called by its name."""
    if shard not in map_.shards:
        raise UnknownShard(shard=shard[:64])
    return Placement(shard, Why.SHARD)


def placements_of(map_: MapSnapshot, user_id: str) -> tuple[Placement, ...]:
    """Every place where a user may have orders, newest first."""
    ever = map_.ever.get(user_id)
    if ever is None:
        return (_owned(map_, user_bucket(user_id), Why.HASH),)
    vip = map_.vips.get(user_id)
    current = vip.buckets if vip is not None else (user_bucket(user_id),)
    return tuple(
        _owned(map_, bucket, Why.HASH if bucket < HASHED_BUCKETS else Why.VIP)
        for bucket in dict.fromkeys((*current, *ever))
    )


def scatter(map_: MapSnapshot, key: Key) -> dict[str, list[str]]:
    """Split order ids by the shard they are on; the order within a shard is kept.

    Raises: RoutingKeyMissing without ids; InvalidField for too many; OrderIdInvalid, NoOwner.
    """
    if not key.values:
        raise RoutingKeyMissing
    if len(key.values) > SCATTER_KEYS_MAX:
        raise InvalidField.of("order_ids", f"at most {SCATTER_KEYS_MAX} ids")
    by_shard: dict[str, list[str]] = {}
    for order_id in key.values:
        by_shard.setdefault(place_order(map_, order_id).shard, []).append(order_id)
    return by_shard


def other_owners(map_: MapSnapshot, bucket: int, tried: Iterable[str]) -> list[str]:
    """Shards that may own a bucket although the map says otherwise, the likeliest first.

    Hashed buckets are looked for on ordinary shards first, dedicated ones on those of VIPs.
    """
    dedicated = bucket >= HASHED_BUCKETS
    untried = [shard for shard in map_.shards.values() if shard.name not in set(tried)]
    return [shard.name for shard in sorted(untried, key=lambda shard: (shard.vip != dedicated, shard.name))]


def _owned(map_: MapSnapshot, bucket: int, why: Why) -> Placement:
    owner = map_.owners.get(bucket)
    if owner is None:
        raise NoOwner(bucket=bucket)
    return Placement(owner.shard, why, bucket, owner.epoch)


def impossible(missing: NoOwner, by: By) -> NoOwner | OrderIdInvalid:
    """What a bucket without owner means once the newest map does not know it either.

    Every hashed bucket is owned, and dedicated ones before their first order: so an order id with another
    bucket was not made by us.
    """
    dedicated = int(missing.facts["bucket"]) >= HASHED_BUCKETS
    return OrderIdInvalid() if dedicated and by in (By.ORDER, By.SCATTER) else missing
