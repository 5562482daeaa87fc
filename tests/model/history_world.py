"""A user's history in a small world: one or two real shards, a read model with troubles of its own,
projectors that may die at every await, and a reader. What the shards say is the truth that every page is
held to.
"""

from __future__ import annotations

import random
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from datetime import date, datetime, timedelta
from typing import Any
from uuid import UUID

import asyncpg

from chassis import pg
from chassis.clock import SYSTEM_CLOCK, SystemClock
from chassis.errors import OrdermeshError, StaleRoute
from chassis.faults import FaultFired
from chassis.ids import OrderIds, id_bucket, id_time, user_bucket
from chassis.placement import Held
from history_svc.care import parts as care
from history_svc.care.store import CareStore
from history_svc.care.upkeep import Upkeep
from history_svc.channel.log import ShardLog
from history_svc.channel.outbox import LoggedDeadLetters, OutboxSource
from history_svc.document import index_name, month_of
from history_svc.errors import EventsUnavailable, ReadModelUnavailable
from history_svc.events import Record
from history_svc.page import NEWEST, OLDEST, Filter, Key, Row, Window
from history_svc.position import Position
from history_svc.projector.indexer import CatalogChanged, Indexing, Parts, QuarantineFull
from history_svc.projector.store import ProjectionStore
from history_svc.reader import Reader, Served, ServedBy, Wish
from history_svc.readmodel.port import IndexIdentity, Place
from history_svc.search import Searcher
from history_svc.store import Shards
from order_svc import points
from order_svc.domain import open_order, transition
from order_svc.events import Verdict as Said
from order_svc.order import Order, Seen, Tally
from order_svc.store import OrderStore
from tests.leaving import Leaving
from tests.readmodels import Died, MemoryReadModel
from tests.shards import EPOCH, Shard
from tests.unit.orders import rules, told

USERS = ("alice", "bob")
DEDICATED = 4096
DEDICATED_BASE = 8
"""The first stream partition of the shard of that bucket."""
READ_S = 10.0
HOT = timedelta(hours=1)
SIZES = (1, 2, 3, 7, 100)
INDEX_STEPS_MAX = 20
QUARANTINE_MAX = 2
SPANS_MAX = 2
"""Searches of one page: nobody here has orders in more than nine months."""


GOES_ON_FROM = (OrdermeshError, EventsUnavailable, QuarantineFull, CatalogChanged)
"""What an indexer begins anew after."""


_SERVES = """
INSERT INTO projection_index
    (month, generation, index_name, cluster_uuid, index_uuid, state, catalog_version, created_at)
VALUES ($1, $2, $3, $4, $5, 'SERVING', 0, clock_timestamp())
ON CONFLICT (month, generation) DO UPDATE
   SET state = 'SERVING', cluster_uuid = excluded.cluster_uuid, index_uuid = excluded.index_uuid
"""


class Violation(AssertionError):
    """A page broke a promise."""


@dataclass
class Walk:
    """Somebody reads a user's whole list, page by page, while the world goes on."""

    user_id: str
    shown: Filter
    size: int
    at_start: dict[UUID, int]
    before: Key | None = NEWEST
    rows: list[Row] = field(default_factory=list)
    floor: datetime = OLDEST
    """The greatest that a page of it ended at."""


class InTransaction:
    """A connection with an open transaction in the place of a pool: what is written is not committed yet."""

    def __init__(self, connection: Any) -> None:
        self.connection = connection

    async def fetchrow(self, sql: str, *args: object, timeout_s: float = READ_S) -> Any:
        return await self.connection.fetchrow(sql, *args)

    async def fetch(self, sql: str, *args: object, timeout_s: float = READ_S) -> Any:
        return await self.connection.fetch(sql, *args)


@dataclass
class Open:
    """A transaction that is not over, and the orders it has touched."""

    connection: Any
    transaction: Any
    orders: set[UUID]


class CountedReadModel(MemoryReadModel):
    """Counts its searches; narrowed: those in which not all of an index counts."""

    searches = 0
    narrowed = 0

    async def search(self, places: Sequence[Place], *args: Any, **options: Any) -> list[Row]:
        self.searches += 1
        self.narrowed += any(place.stream_partitions is not None for place in places)
        return await super().search(places, *args, **options)


class Troubled(OutboxSource):
    """A source whose stream partitions run at different speeds, and which may lose what it took.

    held: partitions whose records wait. loses: how many of the next batches are lost.
    """

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.held: set[int] = set()
        self.loses = 0
        self._waiting: list[Record] = []

    async def take(self, *, bytes_max: int, wait_s: float) -> list[Record]:
        records = [*self._waiting, *await super().take(bytes_max=bytes_max, wait_s=wait_s)]
        self._waiting = [record for record in records if record.stream_partition in self.held]
        if self.loses > 0 and records:
            self.loses -= 1
            return []
        return [record for record in records if record.stream_partition not in self.held]

    async def rewind(self, watermarks: Mapping[int, Position]) -> None:
        self._waiting = [each for each in self._waiting if each.stream_partition not in watermarks]
        await super().rewind(watermarks)


@dataclass
class Projecting:
    """One shard's projector; indexing: while its process lives."""

    name: str
    shard: Shard
    log: ShardLog
    indexing: Indexing | None = None
    source: Troubled | None = None


class World:
    """Everything, and what is true of it. dedicated: where the dedicated bucket is, when it is not on `shard`
    too.
    """

    def __init__(self, shard: Shard, shards: Shards, dedicated: Shard | None = None) -> None:
        self.shard = shard
        self.homes = {"s1": shard} if dedicated is None else {"s1": shard, "v1": dedicated}
        self.shards = shards
        self.read_model = CountedReadModel()
        self.orders: dict[UUID, Order] = {}
        self.archived: dict[tuple[str, date], dict[UUID, Order]] = {}
        self.ended_at_floor = 0
        self.open: list[Open] = []
        self.buckets = {user: [user_bucket(user)] for user in USERS}
        self.now_s = 0.0
        self.served: dict[ServedBy, int] = {}
        self.overlaid = 0
        self.between: list[Callable[[], Awaitable[None]]] = []
        self.make_reader: Callable[[World], Reader] = lambda world: Reader(
            world.shards, Searcher(world.read_model, READ_S, now=lambda: world.now_s), HOT
        )
        self.reader: Reader | None = None
        self.indexing_class = Indexing
        self.projecting = {
            name: Projecting(name, home, ShardLog(name, home.db)) for name, home in self.homes.items()
        }

    @property
    def indexing(self) -> Indexing | None:
        """The first shard's projector."""
        return self.projecting["s1"].indexing

    @indexing.setter
    def indexing(self, indexing: Indexing | None) -> None:
        self.projecting["s1"].indexing = indexing

    @property
    def source(self) -> Troubled | None:
        """What the first shard's projector reads."""
        return self.projecting["s1"].source

    def home(self, bucket: int) -> str:
        """Where a bucket is."""
        return "v1" if bucket == DEDICATED and "v1" in self.homes else "s1"

    # What happens to orders.

    async def create(self, user: str, store: OrderStore | None = None, *, at_ms: int | None = None) -> Order:
        home = self.homes[self.home(self.buckets[user][-1])]
        wish = await home.wish(user_id=user, bucket=self.buckets[user][-1])
        if at_ms is not None:
            wish = replace(wish, order_id=OrderIds(now_ms=lambda: at_ms).new(self.buckets[user][-1]))
        wish = replace(wish, description=random.choice(("a red book", "a Blue boat", "ein Buch")))
        created = await (store or home.store).create(open_order(wish, rules()), epoch=EPOCH, fingerprint=b"m")
        self.orders[created.order.order_id] = created.order
        return created.order

    async def change(self, order_id: UUID, event: Any, store: OrderStore | None = None) -> None:
        home = self.homes[self.home(id_bucket(order_id))]
        decided = await (store or home.store).decide(
            order_id,
            event.event_id,
            lambda seen: transition(seen, event, rules(), jitter=0.5),
            at=points.SETTLE,
        )
        self.orders[order_id] = decided.order

    def settling(self, order_id: UUID, verdict: Any) -> Any:
        order = self.orders[order_id]
        return told(Seen(order, Tally(), None, order.created_at), verdict)

    def free(self) -> list[UUID]:
        """Orders that no open transaction holds, in a fixed order."""
        held = set().union(*(each.orders for each in self.open)) if self.open else set()
        return [order_id for order_id in sorted(self.orders) if order_id not in held]

    async def begin(self, user: str) -> None:
        """Somebody creates an order and does not commit yet: everything after it stands above the fence."""
        connection = await asyncpg.connect(
            self.homes[self.home(self.buckets[user][-1])].dsn,
            server_settings={"search_path": "ordermesh, public"},
        )
        await pg._prepare_connection(connection)
        transaction = connection.transaction()
        await transaction.start()
        store = OrderStore(InTransaction(connection))  # type: ignore[arg-type]
        order = await self.create(user, store)
        del self.orders[order.order_id]
        self.open.append(Open(connection, transaction, {order.order_id}))

    async def end(self, number: int, *, commit: bool) -> None:
        each = self.open.pop(number % len(self.open))
        if commit:
            await each.transaction.commit()
        else:
            await each.transaction.rollback()
        await each.connection.close()
        if commit:
            for home in self.homes.values():
                for row in await home.rows(
                    "SELECT order_id FROM orders WHERE order_id = ANY ($1)", list(each.orders)
                ):
                    self.orders[row["order_id"]] = await home.store.get(row["order_id"])

    async def close(self) -> None:
        await self.end_indexing()
        for each in self.open:
            await each.connection.close()

    async def pass_time(self, time: timedelta) -> None:
        for home in self.homes.values():
            await home.let_pass(time)
            await home.db.execute("SELECT ordermesh.ensure_partitions()")
        self.now_s += time.total_seconds()

    # The projector.

    async def index(self, *, dies_at: int | None = None) -> None:
        """Let the projectors work until they have nothing to do, or until one dies at one of its awaits."""
        passes = 0

        async def at(_: str) -> None:
            nonlocal passes
            passes += 1
            if dies_at is not None and passes >= dies_at:
                raise Died

        self.read_model.at = at
        try:
            for each in self.projecting.values():
                await self._index(each)
        finally:
            self.read_model.at = nothing

    async def _index(self, each: Projecting) -> None:
        try:
            if each.indexing is None:
                each.indexing = await begin_indexing(self, each)
            for _ in range(INDEX_STEPS_MAX):
                await each.indexing.step()
                await each.indexing.prove()
                if each.source is not None and each.source.is_whole:
                    break
        except (Died, FaultFired, BaseExceptionGroup, *GOES_ON_FROM):
            # The process is gone with all that it knew; the next one starts at what is stored.
            await end(each)

    async def end_indexing(self) -> None:
        """The projectors' processes are gone, and what they had under way with them."""
        for each in self.projecting.values():
            await end(each)

    async def change_over(self, name: str, which: int = 0) -> None:
        """A month of a shard has been built again, and the shard reads and writes the new index from now on.
        What it had in the old one stays there, where another shard may go on.
        """
        each = self.projecting[name]
        await end(each)
        serving = await each.shard.rows(
            "SELECT month, generation, index_name, cluster_uuid, index_uuid FROM projection_index"
            " WHERE state = 'SERVING' ORDER BY month"
        )
        if not serving or self.read_model.down:
            return
        month, generation, *identity = serving[which % len(serving)]
        old = IndexIdentity(*identity)
        if (await self.read_model.identities([old.name])).get(old.name) != old:
            return
        new = await self.read_model.create(index_name(month, generation + 1))
        base = await each.shard.value("SELECT partition_base FROM shard_identity")
        for documents in (self.read_model.stored, self.read_model.visible):
            ours = [doc for doc in documents[old.name].values() if base <= doc["stream_partition"] < base + 8]
            documents[new.name].update({doc["order_id"]: doc for doc in ours})
        await each.shard.db.execute(
            "UPDATE projection_index SET state = 'RETIRED', retired_at = clock() WHERE index_name = $1",
            old.name,
        )
        await each.shard.db.execute(_SERVES, month, generation + 1, *new)

    # The archive.

    async def archive(self, name: str) -> None:
        """The oldest month of a shard, if it is over, is settled and archived: no list shows it any more."""
        leaving = Leaving(self.homes[name])
        month = await leaving.oldest()
        if month is None:
            return
        mine = {
            order_id: order
            for order_id, order in self.orders.items()
            if self.home(id_bucket(order_id)) == name and month_of(id_time(order_id)) == month
        }
        for order_id, order in mine.items():
            if order.status == "PENDING":
                await self.change(order_id, self.settling(order_id, Said.SUCCEEDED))
        if not await leaving.commit(month):
            self.archived[name, month] = {order_id: self.orders.pop(order_id) for order_id in mine}

    async def clear_out(self, name: str) -> None:
        """The youngest archived month of a shard is detached, or dropped where it is detached already."""
        leaving = Leaving(self.homes[name])
        if (month := await leaving.youngest()) is not None:
            state = await leaving.state(month)
            if state == "COMMITTED":
                await leaving.detach(month)
            elif state == "GRACE":
                await leaving.drop(month)

    async def restore(self, name: str) -> None:
        """The youngest archived month of a shard comes back."""
        leaving = Leaving(self.homes[name])
        if (month := await leaving.youngest()) is not None:
            await leaving.restore(month)
            self.orders |= self.archived.pop((name, month))

    async def keep_up(self) -> None:
        """The projectors take away what nobody reads any more, and the indices that no list needs."""
        shards = {
            each.name: care.Parts(
                CareStore(each.name, each.shard.db),
                ProjectionStore(each.name, each.shard.db),
                self.read_model,
                SYSTEM_CLOCK,
                lambda: 0.0,
                care.Pacing(grace=timedelta()),
                QUARANTINE_MAX,
            )
            for each in self.projecting.values()
        }
        with suppress(ReadModelUnavailable):
            await Upkeep(shards).step()

    async def floor(self, user: str) -> datetime:
        """Where the user's list ends."""
        return max([await Leaving(self.homes[name]).floor() for name in self.placement(user)])

    # What a reader sees.

    async def truth(self, user: str) -> dict[UUID, int]:
        """The user's committed orders and their versions, as the shard has them now."""
        rows = await self._rows("SELECT order_id, version FROM orders WHERE user_id = $1", user)
        return {row["order_id"]: row["version"] for row in rows}

    async def _rows(self, sql: str, *args: object) -> list[Any]:
        return [row for home in self.homes.values() for row in await home.rows(sql, *args)]

    async def matching(self, user: str, shown: Filter) -> set[UUID]:
        """Orders that pass a filter; of those whose tables are away, all if it is plain."""
        rows = await self._rows("SELECT * FROM orders WHERE user_id = $1", user)
        away = {
            order_id
            for month in self.archived.values()
            for order_id, order in month.items()
            if shown.is_plain and order.user_id == user
        }
        return away | {row["order_id"] for row in rows if shown.shows(row)}

    async def owns(self, user: str) -> bool:
        states = [
            await self.homes[name].value("SELECT state FROM bucket_fence WHERE bucket = $1", one.bucket)
            for name, held in self.placement(user).items()
            for one in held
        ]
        return all(state == "OWNED" for state in states)

    def placement(self, user: str) -> dict[str, tuple[Held, ...]]:
        held: dict[str, tuple[Held, ...]] = {}
        for bucket in self.buckets[user]:
            name = self.home(bucket)
            held[name] = (*held.get(name, ()), Held(bucket, EPOCH))
        return held

    async def page(self, user: str, shown: Filter, size: int, before: Key) -> Served:
        if self.reader is None:
            self.reader = self.make_reader(self)
        at = await self.shard.value("SELECT ordermesh.clock()")
        wish = Wish(Window(user, before, OLDEST, shown), size)
        return await self.reader.read(self.placement(user), wish, now=at, timeout_s=READ_S)

    async def checked_page(self, user: str, shown: Filter, size: int, before: Key = NEWEST) -> Served:
        """A page, held to what the shard says before and after it.

        Raises: Violation.
        """
        floor = await self.floor(user)
        earlier, matched = await self.truth(user), await self.matching(user, shown)
        self.read_model.searches = 0
        try:
            served = await self.page(user, shown, size, before)
        except StaleRoute:
            if await self.owns(user):
                raise Violation("a bucket that is owned here was refused") from None
            raise
        if not await self.owns(user):
            raise Violation("a list from a shard that does not own the bucket")
        if self.read_model.searches > SPANS_MAX:
            raise Violation(f"{self.read_model.searches} searches for one page")
        later = await self.truth(user)
        matched &= await self.matching(user, shown)
        floors = sorted((floor, await self.floor(user)))
        self.served[served.served_by] = self.served.get(served.served_by, 0) + 1
        self.overlaid += served.overlay > 0
        self._hold_rows(served.page.rows, earlier, later, before, size, shown)
        page = served.page
        down_to = page.next_after if page.next_after is not None else Key(OLDEST, UUID(int=0))
        due = {order_id for order_id in matched if down_to <= self._key(order_id) < before}
        self._hold_floor(served, floors)
        due = {order_id for order_id in due if id_time(order_id) >= (served.archived_to or OLDEST)}
        missing = due - {row.key.order_id for row in page.rows}
        if missing:
            raise Violation(f"{served.served_by}: {len(missing)} orders are missing")
        return served

    def _hold_floor(self, served: Served, floors: list[datetime]) -> None:
        if any(row.key.created_at < floors[0] for row in served.page.rows):
            raise Violation("an order of an archived month")
        said = (
            [None]
            if served.page.next_after is not None
            else [each if each > OLDEST else None for each in floors]
        )
        if served.archived_to not in said:
            raise Violation(f"archived before {served.archived_to}, not {said}")
        self.ended_at_floor += served.archived_to is not None

    def _hold_rows(
        self,
        rows: tuple[Row, ...],
        earlier: dict[UUID, int],
        later: dict[UUID, int],
        before: Key,
        size: int,
        shown: Filter,
    ) -> None:
        keys = [row.key for row in rows]
        if keys != sorted(set(keys), reverse=True):
            raise Violation("rows twice, or not newest first")
        if len(rows) > size or any(key >= before for key in keys):
            raise Violation("more rows than asked for, or rows of the page before")
        for row in rows:
            order_id = row.key.order_id
            if order_id not in later:
                raise Violation("an order that is not the user's, or was never committed")
            if not earlier.get(order_id, 1) <= row.version <= later[order_id]:
                raise Violation(f"version {row.version}, but the shard had {earlier.get(order_id)}")
            if not shown.shows(row.columns):
                raise Violation("an order that does not pass the filter")

    @staticmethod
    def _key(order_id: UUID) -> Key:
        return Key(id_time(order_id), order_id)

    async def looked(
        self,
        user: str,
        shown: Filter,
        size: int,
        *,
        meanwhile: Callable[[], Awaitable[None]] | None = None,
    ) -> None:
        """Somebody looks at a first page; meanwhile, just before the search, something happens.

        Raises: Violation.
        """

        async def at(name: str) -> None:
            if name == "search" and meanwhile is not None:
                self.read_model.at = nothing
                await meanwhile()

        self.read_model.at = at
        try:
            await self.checked_page(user, shown, size)
        except ReadModelUnavailable:
            self._must_have_reason(shown)
        finally:
            self.read_model.at = nothing

    async def walk_on(self, walk: Walk) -> None:
        """Somebody who walks asks for the next page.

        Raises: Violation.
        """
        try:
            await self.next_page(walk)
        except ReadModelUnavailable:
            self._must_have_reason(walk.shown)

    @staticmethod
    def _must_have_reason(shown: Filter) -> None:
        if not shown.asked:
            raise Violation("a list without words was refused")

    async def start_walk(self, user: str, shown: Filter, size: int) -> Walk:
        return Walk(user, shown, size, dict.fromkeys(await self.matching(user, shown), 1))

    async def next_page(self, walk: Walk) -> None:
        """Read on; at the end hold the whole walk to what was there all the time.

        Raises: Violation.
        """
        assert walk.before is not None
        served = await self.checked_page(walk.user_id, walk.shown, walk.size, walk.before)
        walk.rows += served.page.rows
        walk.before = served.page.next_after
        walk.floor = max(walk.floor, served.archived_to or OLDEST)
        shown = [row.key.order_id for row in walk.rows]
        if len(shown) != len(set(shown)):
            raise Violation("a walk shows an order twice")
        due = {order_id for order_id in walk.at_start if id_time(order_id) >= walk.floor}
        if walk.before is None and walk.shown.is_plain and not due <= set(shown):
            raise Violation("a walk left out an order that was there from the start")


async def nothing(_: str) -> None:
    """No trouble."""


class Impatient(SystemClock):
    """The projector's process is ended when it would wait for the read model."""

    async def sleep(self, seconds: float) -> None:
        raise Died


class Leads:
    """Nobody else indexes this shard."""

    term = 1

    async def until_leading(self) -> int:
        return self.term


async def end(each: Projecting) -> None:
    """A projector's process is gone."""
    if each.indexing is not None:
        await each.indexing.close()
    each.indexing = None


async def begin_indexing(world: World, each: Projecting) -> Indexing:
    """A projector as it starts: from what is stored, and from nothing else."""
    before = each.source
    each.source = Troubled(
        each.log,
        Leads(),
        clock=SYSTEM_CLOCK,
        jitter=lambda: 0.0,
        beat_every_s=0.0,
    )
    if before is not None:
        each.source.held = before.held
    parts = Parts(
        source=each.source,
        read_model=world.read_model,
        store=ProjectionStore(each.name, each.shard.db),
        dead_letters=LoggedDeadLetters(),
        clock=Impatient(),
        jitter=lambda: 0.0,
        tick_s=0.0,
        quarantine_max=QUARANTINE_MAX,
    )
    return await world.indexing_class.begin(parts)
