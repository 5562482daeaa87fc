"""One call's way to its shard: where it goes by the map as it is now, and what refusals teach about it.

A shard that refuses a call as STALE_ROUTE did nothing, so any call may go on to the next place. The next
place is, in this order: what the control database says now; the owner that the refusing fence named;
another shard that might own the bucket. The fences make a wrong guess harmless.

One thing only the control database can say: who left a bucket. So the epoch of a fence that a user left since
our map is not believed; else new orders of that user would still go there.
"""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, TypeVar

from chassis.errors import FROZEN_W, Reason
from shard_proxy import domain
from shard_proxy.domain import By, Key, Owner, Placement
from shard_proxy.errors import NoOwner, RouteUnsettled

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from chassis.rpc import RemoteError
    from shard_proxy.book import RouteBook
    from shard_proxy.domain import MapSnapshot

T = TypeVar("T")
ROUTE_TRIES_MAX = 3
_BY_BUCKET = frozenset({By.USER, By.ORDER, By.SCATTER})


class Journey:
    """Finds the place of one call, again after every refusal."""

    def __init__(self, book: RouteBook, by: By, key: Key) -> None:
        self._book = book
        self._by = by
        self._key = key
        self._refusals: Counter[int | None] = Counter()
        self._guesses: dict[int, Owner] = {}
        self.replay = ""
        self._tried: dict[int, set[Owner]] = {}

    @property
    def map(self) -> MapSnapshot:
        """The map as this call sees it: the book's, with the guesses that it is trying out."""
        return self._book.map.with_owners(self._guesses)

    async def place(self) -> Placement:
        """Where the call goes next. Raises: as domain.route."""
        if self.replay:
            return await self._known(lambda: domain.place_order(self.map, self.replay))
        return await self._known(lambda: domain.route(self.map, self._by, self._key))

    async def scatter(self, order_ids: Sequence[str]) -> dict[str, list[str]]:
        """These order ids by shard. Raises: as domain.scatter."""
        return await self._known(lambda: domain.scatter(self.map, Key(tuple(order_ids))))

    async def placements(self) -> tuple[Placement, ...]:
        """Every place of the user whom the key names. Raises: NoOwner."""
        return await self._known(lambda: domain.placements_of(self.map, self._key.one))

    @staticmethod
    def is_frozen(refusal: RemoteError) -> bool:
        """Whether a refusal says that the bucket only pauses, while one of its users is moved."""
        return refusal.reason == Reason.STALE_ROUTE and refusal.metadata.get("state") == FROZEN_W

    def can_heal(self, refusal: RemoteError) -> bool:
        """Whether a refusal says that the route was old and another can be found."""
        return refusal.reason == Reason.STALE_ROUTE and self._by in _BY_BUCKET

    def leads_on(self, refusal: RemoteError) -> bool:
        """Whether a refusal names the order of this request, made in a bucket that its user left; then that
        is where the call goes next.
        """
        if refusal.reason != Reason.ORDER_ELSEWHERE or self._by is not By.USER or self.replay:
            return False
        self.replay = refusal.metadata.get("order_id", "")
        return bool(self.replay)

    async def heal(self, refusal: RemoteError, at: Placement) -> None:
        """Learn from a refusal where to try next.

        Raises: RouteUnsettled when the tries are spent or no place is left.
        """
        said = _number(refusal.metadata.get("bucket"))
        bucket = at.bucket if said is None else said
        self._refusals[bucket] += 1
        if self._refusals[bucket] >= ROUTE_TRIES_MAX or bucket is None:
            raise RouteUnsettled(bucket=bucket)
        used = self.map.owners.get(bucket)
        if used is not None:
            self._tried.setdefault(bucket, set()).add(used)
        if await self._book_moved_on(bucket, used):
            self._guesses.pop(bucket, None)
            return
        hint = _hint(refusal, at.shard)
        if hint is not None and used is not None and _somebody_left(refusal, hint, used):
            if hint.shard == used.shard:
                # The reading that we shared may have begun before; the next refusal, of few, begins another.
                return
            hint = Owner(hint.shard, used.epoch)
        if hint is not None and hint != used and hint.shard in self._book.map.shards:
            self._guesses.pop(bucket, None)
            self._book.adopt(bucket, hint)
            return
        self._guess(bucket, used)

    def arrived(self) -> None:
        """The call was served: what it guessed is true and good for others too."""
        for bucket, owner in self._guesses.items():
            self._book.adopt(bucket, owner)

    async def _book_moved_on(self, bucket: int, used: Owner | None) -> bool:
        """Whether the book knows better by now, after asking the control database when it does not."""
        if self._book.map.owners.get(bucket) == used:
            await self._book.reread()
        now = self._book.map.owners.get(bucket)
        return now is not None and now not in self._tried.get(bucket, ())

    def _guess(self, bucket: int, used: Owner | None) -> None:
        tried = {owner.shard for owner in self._tried.get(bucket, ())}
        untried = domain.other_owners(self._book.map, bucket, tried)
        if not untried:
            raise RouteUnsettled(bucket=bucket)
        self._guesses[bucket] = Owner(untried[0], used.epoch if used is not None else 1)

    async def _known(self, decide: Callable[[], T]) -> T:
        try:
            return decide()
        except NoOwner:
            await self._book.reread()
        try:
            return decide()
        except NoOwner as missing:
            if not self._book.is_newest:
                raise
            raise domain.impossible(missing, self._by) from None


def _hint(refusal: RemoteError, said_by: str) -> Owner | None:
    """The owner that a fence named; one that owns the bucket itself, at another epoch, need not say its
    name.
    """
    facts = refusal.metadata
    epoch = _number(facts.get("epoch"))
    owner = facts.get("owner") or (said_by if facts.get("state") == "OWNED" else "")
    return Owner(owner, epoch) if owner and epoch is not None else None


def _somebody_left(refusal: RemoteError, hint: Owner, used: Owner) -> bool:
    """Whether a user left the bucket after the epoch that our map knows. An owner that stays gets a new epoch
    for no other reason.
    """
    left = _number(refusal.metadata.get("left_epoch"))
    return (left or 0) > used.epoch or (hint.shard == used.shard and hint.epoch > used.epoch)


def _number(text: str | None) -> int | None:
    return int(text) if text is not None and text.isdecimal() else None
