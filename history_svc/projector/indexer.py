"""Makes the changes of one shard searchable, and says how far.

Documents are written as changes come; once a tick everything that was written to is refreshed, and only then
the shard's database is told: watermarks, what the read model refused and what it took after all, in one
statement. So a watermark never says more than a search shows. Whatever fails, the indexer starts anew at the
stored watermarks; versions make every repeat harmless. It never goes over a gap: a partition whose next
record does not follow stands still until its source has given again what was missed.
"""

from __future__ import annotations

import asyncio
from collections import deque
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, NamedTuple

import orjson
import structlog
from opentelemetry.trace import SpanKind

from chassis import faults, meters, traces
from chassis.errors import OrdermeshError
from history_svc import metrics
from history_svc.catalog import Catalog, State
from history_svc.document import document, index_name, month_of, next_month
from history_svc.errors import EventsUnavailable, ReadModelUnavailable
from history_svc.events import stream_facts
from history_svc.position import BEGINNING
from history_svc.projector.bulk import ITEMS_MAX, BulkWriter
from history_svc.projector.domain import Draft, Progress, added, moved, newest, written_to
from history_svc.projector.store import Proof
from history_svc.readmodel.port import Verdict, Write

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from datetime import date, datetime
    from uuid import UUID

    from chassis.clock import Clock
    from history_svc.channel.port import DeadLetters, EventSource
    from history_svc.events import Record
    from history_svc.position import Position
    from history_svc.projector.store import ProjectionStore, Started
    from history_svc.readmodel.port import Outcome, ReadModel

log = structlog.get_logger("indexer")
REWIND_EVERY_S = 2.0
"""A gap that does not close, such as one below the outbox's floor, is asked for no more often."""
CHECK_INDICES_EVERY_S = 10.0
AGAIN_S_MAX = 5.0
IN_AIR_MAX = 2
"""Batches on their way to the read model: one is read while it works on two."""
MANY = ITEMS_MAX // 2
UNPROVED_MAX = 50_000
"""Orders that are written and not proved; above it nothing is taken before a proof has ended."""
TICKS_BEHIND = 4
"""While many changes wait, a proof comes only every so many ticks: it costs Elasticsearch as
much as thousands of documents, and what it would show a little earlier is shown by the overlay.
"""
AFTER_WRITE = faults.declare("index.after_write", "documents are stored, perhaps not searchable yet")
AFTER_REFRESH = faults.declare("index.after_refresh", "documents are searchable and no watermark says so")


class CatalogChanged(Exception):
    """There are indices now that what was written has to be written to as well: begin anew at once."""


class QuarantineFull(Exception):
    """Too many orders are refused: that is a bad deployment, and no bad data; the watermark waits."""


@dataclass(frozen=True, slots=True)
class Parts:
    """What an indexer works with."""

    source: EventSource
    read_model: ReadModel
    store: ProjectionStore
    dead_letters: DeadLetters
    clock: Clock
    jitter: Callable[[], float]
    tick_s: float = 0.25
    bytes_max: int = 4 * 1024 * 1024
    quarantine_max: int = 1000


@dataclass(slots=True)
class Pending:
    """What is written since the last proof began, and how far that brings each partition.

    catalog: the oldest one by which any of it was written; None when nothing was.
    """

    ends: Mapping[int, Position]
    as_of: Mapping[int, datetime]
    catalog: Catalog | None = None
    indices: set[str] = field(default_factory=set)
    written: dict[UUID, int] = field(default_factory=dict)
    refused: dict[UUID, tuple[Draft, str]] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Flight:
    """A batch on its way to the read model, and how far it brings each partition once it is there.

    outcomes: of each write; nothing is on its way when there are none. catalog: by which it was written.
    """

    writes: Sequence[Write]
    owners: Sequence[Draft]
    outcomes: asyncio.Task[list[Outcome]] | None
    ends: Mapping[int, Position]
    as_of: Mapping[int, datetime]
    catalog: Catalog

    @property
    def is_over(self) -> bool:
        """Whether nobody has to wait for it."""
        return self.outcomes is None or self.outcomes.done()


class Proved(NamedTuple):
    """What a proof has brought: where watermarks stand now, of those that went forward, and the catalog that
    they were moved by.
    """

    ahead: Mapping[int, Position]
    catalog: Catalog


class Indexer:
    """A loop that indexes one shard."""

    def __init__(self, parts: Parts) -> None:
        self.name = f"indexer.{parts.store.shard}"
        self._parts = parts
        self._failures = 0
        self._has_begun = False

    async def run(self) -> None:
        """Index until cancelled. A shard, a channel or a read model that is away is tried again, ever more
        rarely.
        """
        # There from now on, as 0 until it is known: an alert sees no series that is not there.
        metrics.INDEXED_UNTIL.labels(self._parts.store.shard)
        try:
            await self._index()
        finally:
            metrics.INDEXED_UNTIL.remove_by_labels({"shard": self._parts.store.shard})

    async def _index(self) -> None:
        while True:
            try:
                indexing = await Indexing.begin(self._parts, again=self._has_begun)
                self._has_begun = True
                try:
                    while True:
                        if await indexing.step():
                            self._failures = 0
                        self._show_only_what_is_ours()
                finally:
                    await indexing.close()
            except CatalogChanged as changed:
                log.info("catalog_changed", shard=self._parts.store.shard, indices=str(changed))
                continue
            except (OrdermeshError, EventsUnavailable, QuarantineFull) as failed:
                self._failures += 1
                log.warning(
                    "indexer_failed",
                    shard=self._parts.store.shard,
                    error=type(failed).__name__,
                    because=str(getattr(failed, "facts", failed)),
                )
            self._show_only_what_is_ours()
            ceiling = min(AGAIN_S_MAX, 0.1 * 2 ** min(self._failures, 8))
            await self._parts.clock.sleep(ceiling * (0.5 + 0.5 * self._parts.jitter()))

    def _show_only_what_is_ours(self) -> None:
        """Who indexes the shard now says how it stands; what this process said last is old."""
        if not self._parts.source.is_ours:
            meters.forget(metrics.QUARANTINE, metrics.INDEX_HELD, shard=self._parts.store.shard)


class Indexing:
    """One run from the stored watermarks on; it ends by an error only, and then has to be closed.

    While one batch is taken and read, those before it are on their way to the read model, and what arrived
    there before is being proved. Batches land in the order in which they were taken, so what is proved is
    an unbroken run.
    """

    def __init__(self, parts: Parts, started: Started, catalog: Catalog) -> None:
        self._parts = parts
        self._stored: dict[int, Position] = {
            partition: started.watermarks.get(partition, BEGINNING)
            for partition in started.streams.partitions
        }
        self._progress = Progress(dict(self._stored))
        self._catalog = catalog
        self._flights: deque[Flight] = deque()
        self._pending = Pending(dict(self._stored), {})
        self._proof: asyncio.Task[Proved] | None = None
        self._bulk = BulkWriter(parts.read_model, parts.clock, parts.jitter)
        now = parts.clock.monotonic()
        self._is_behind = False
        self._checked_at = now
        self._proof_began_at = now
        self._rewound_at = now - REWIND_EVERY_S

    @classmethod
    async def begin(cls, parts: Parts, *, again: bool = False) -> Indexing:
        """Start at the stored watermarks.

        again: the source gave out records to a run before this one, which may be lost.

        Raises: ShardUnavailable, DeadlineExceeded, Overloaded, ReadModelUnavailable, EventsUnavailable.
        """
        started = await parts.store.started()
        _show(parts.store.shard, started.indexed_until)
        # Before a rewind: changes that are asked for again while nobody can take them are published again and
        # again.
        await parts.read_model.ping()
        indexing = cls(parts, started, await parts.store.catalog())
        if again:
            await parts.source.rewind(indexing._stored)
        await indexing._check_indices()
        return indexing

    async def step(self) -> bool:
        """Take what came, send it on its way, and once a tick begin to prove what arrived; whether a proof
        ended.

        If cancelled here, or when it raises: watermarks say no more than what is searchable.
        Raises: OrdermeshError, EventsUnavailable, QuarantineFull, CatalogChanged; close this one and begin
        anew.
        """
        # Few changes wait for those before them, and so become more: requests of a few cost too much.
        await self._land(IN_AIR_MAX - 1 if self._is_behind else 0)
        left_s = max(0.0, self._proof_began_at + self._parts.tick_s - self._parts.clock.monotonic())
        records = await self._parts.source.take(bytes_max=self._parts.bytes_max, wait_s=left_s)
        self._is_behind = len(records) >= MANY
        if records:
            await self._launch(records)
        await self._close_gaps()
        pending = self._pending
        is_full = len(pending.written) >= UNPROVED_MAX or len(pending.refused) > self._parts.quarantine_max
        every_s = self._parts.tick_s * (TICKS_BEHIND if self._is_behind else 1)
        is_due = is_full or self._parts.clock.monotonic() >= self._proof_began_at + every_s
        has_proved = self._proof is not None and (self._proof.done() or is_full or (is_due and not records))
        if has_proved:
            await self._end_proof()
        if is_due and self._proof is None:
            # With nothing else to do what is on its way is waited for; else what landed is proved.
            await self._land(IN_AIR_MAX if records else 0)
            self._begin_proof()
        if self._parts.clock.monotonic() - self._checked_at >= CHECK_INDICES_EVERY_S:
            await self._check_indices()
        return has_proved

    async def prove(self) -> None:
        """Wait for all that is on its way, refresh what was written to, and write down how far that brings
        the watermarks.

        Raises: ReadModelUnavailable, QuarantineFull, CatalogChanged, and what the store raises; then nothing
        was written down.
        """
        await self._land(0)
        await self._end_proof()
        self._begin_proof()
        await self._end_proof()

    async def close(self) -> None:
        """End what is under way; how far it came, the next one sees in what is stored."""
        under_way = [flight.outcomes for flight in self._flights if flight.outcomes is not None]
        tasks = [*under_way, *([self._proof] if self._proof is not None else [])]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def _begin_proof(self) -> None:
        """Prove what landed, if that says anything new."""
        self._proof_began_at = self._parts.clock.monotonic()
        pending = self._pending
        if not (pending.indices or moved(pending.ends, self._stored)):
            return
        self._pending = Pending(pending.ends, pending.as_of)
        name = f"indexer.{self._parts.store.shard}.proof"
        self._proof = asyncio.create_task(self._prove(pending), name=name)

    async def _prove(self, pending: Pending) -> Proved:
        if pending.indices:
            await self._parts.read_model.refresh(sorted(pending.indices))
        await faults.point(AFTER_REFRESH)
        ahead = moved(pending.ends, self._stored)
        if not (ahead or pending.refused or pending.written):
            return Proved({}, self._catalog)
        catalog = pending.catalog or self._catalog
        while not await self._mark(pending, ahead, catalog.version):
            newest = await self._parts.store.catalog()
            if pending.catalog is not None and (new := added(catalog, newest)):
                raise CatalogChanged(", ".join(sorted(new)))
            catalog = newest
        return Proved(ahead, catalog)

    async def _mark(self, pending: Pending, ahead: dict[int, Position], catalog_version: int) -> bool:
        """Write down what was proved; False when the catalog is newer than this version."""
        parts = self._parts
        if pending.refused:
            # Before dead letters, as the same ones would be kept again with every try.
            beside = await parts.store.quarantined_beside([*pending.refused, *pending.written])
            if beside + len(pending.refused) > parts.quarantine_max:
                metrics.INDEX_HELD.labels(parts.store.shard).set(1)
                raise QuarantineFull(f"{beside} orders and {len(pending.refused)} more are refused")
        for draft, reason in pending.refused.values():
            await parts.dead_letters.put(draft.record, reason)
        proof = Proof(
            ahead,
            {partition: at for partition, at in pending.as_of.items() if partition in ahead},
            catalog_version,
            list(pending.refused.values()),
            pending.written,
        )
        marked = await parts.store.mark(proof, quarantine_max=parts.quarantine_max)
        metrics.QUARANTINE.labels(parts.store.shard).set(marked.quarantined)
        metrics.INDEX_HELD.labels(parts.store.shard).set(marked.is_full or bool(self._progress.holes))
        if marked.is_full:
            raise QuarantineFull(f"{marked.quarantined} orders and {len(pending.refused)} more are refused")
        if marked.is_behind:
            return False
        _show(parts.store.shard, marked.indexed_until)
        return True

    async def _end_proof(self) -> None:
        """Wait for the proof that is under way, if there is one, and go by what it said."""
        if self._proof is None:
            return
        proved, self._proof = await self._proof, None
        if proved.ahead:
            self._stored.update(moved(proved.ahead, self._stored))
            await self._parts.source.kept(dict(self._stored))
        if proved.catalog.version > self._catalog.version:
            self._catalog = proved.catalog

    async def _launch(self, records: Sequence[Record]) -> None:
        """Send what is new on its way."""
        drafts = self._drafts(newest(self._progress.follow(records)))
        months = [month_of(draft.created_at) for draft in drafts]
        for month in set(months):
            await self._ensure_index(month)
        catalog = self._catalog
        names = {
            month: [index.identity.name for index in written_to(catalog, month)] for month in set(months)
        }
        writes: list[Write] = []
        owners: list[Draft] = []
        for draft, month in zip(drafts, months, strict=True):
            for index in names[month]:
                writes.append(Write(index, draft.document))
                owners.append(draft)
        ends, as_of = dict(self._progress.ends), dict(self._progress.as_of)
        if not writes and self._flights:
            # There is nothing to send: it lands with what is on its way.
            self._flights[-1] = replace(self._flights[-1], ends=ends, as_of=as_of)
            return
        outcomes = None
        if writes:
            name = f"indexer.{self._parts.store.shard}.bulk"
            parents = [record.event.traceparent for record in records if record.event is not None]
            outcomes = asyncio.create_task(self._sent(writes, parents), name=name)
        self._flights.append(Flight(writes, owners, outcomes, ends, as_of, catalog))

    async def _sent(self, writes: Sequence[Write], parents: Sequence[str]) -> list[Outcome]:
        about = stream_facts(self._parts.store.shard, len(parents))
        with traces.linked_span(
            "process ordermesh.order-events.v1", parents, kind=SpanKind.CONSUMER, attributes=about
        ):
            outcomes = await self._bulk.write(writes)
        await faults.point(AFTER_WRITE)
        return outcomes

    async def _land(self, left_max: int) -> None:
        """Take in, in order, what has arrived; wait until so many batches are on their way at most."""
        while self._flights and (self._flights[0].is_over or len(self._flights) > left_max):
            flight = self._flights[0]
            outcomes = [] if flight.outcomes is None else await flight.outcomes
            self._flights.popleft()
            lost = {
                write.index
                for write, outcome in zip(flight.writes, outcomes, strict=True)
                if outcome.verdict is Verdict.MISSING
            }
            self._note(flight.writes, flight.owners, outcomes)
            if flight.writes and (pending := self._pending).catalog is None:
                pending.catalog = flight.catalog
            if lost:
                # What was written elsewhere is safe; the rest is written again once there is where to.
                for name in lost:
                    await self._replace(name)
                raise ReadModelUnavailable(lost=",".join(sorted(lost)))
            self._pending.ends, self._pending.as_of = flight.ends, flight.as_of

    def _drafts(self, records: Sequence[Record]) -> list[Draft]:
        """Documents of records; a partition stands still before one that cannot be understood."""
        drafts: list[Draft] = []
        strange: list[Record] = []
        for record in records:
            assert record.event is not None
            try:
                made = document(orjson.loads(record.event.payload), record.stream_partition)
            except (AttributeError, KeyError, OverflowError, TypeError, ValueError) as wrong:
                metrics.UNDECODABLE.labels(self._parts.store.shard).inc()
                log.error(
                    "event_not_understood",
                    shard=self._parts.store.shard,
                    order_id=str(record.event.order_id),
                    position=str(record.position),
                    error=type(wrong).__name__,
                )
                strange.append(record)
            else:
                drafts.append(Draft(record, made))
        self._progress.step_back(strange)
        return drafts

    def _note(self, writes: Sequence[Write], owners: Sequence[Draft], outcomes: Sequence[Outcome]) -> None:
        """Remember what has to be refreshed, freed or set aside. What a newer version holds has to be
        searchable too before a watermark may pass.
        """
        for write, draft, outcome in zip(writes, owners, outcomes, strict=True):
            self._pending.indices.add(write.index)
            if outcome.verdict is Verdict.REFUSED:
                self._pending.refused[draft.order_id] = (draft, outcome.reason)
                self._pending.written.pop(draft.order_id, None)
            elif outcome.verdict is not Verdict.MISSING:
                earlier = self._pending.refused.get(draft.order_id)
                if earlier is None or earlier[0].version < draft.version:
                    self._pending.refused.pop(draft.order_id, None)
                    self._pending.written[draft.order_id] = draft.version

    async def _close_gaps(self) -> None:
        """Ask for what was missed; a gap that stays holds its partition's watermark."""
        holes = self._progress.holes
        now = self._parts.clock.monotonic()
        if not holes or now - self._rewound_at < REWIND_EVERY_S:
            return
        metrics.HOLES.labels(self._parts.store.shard).inc(len(holes))
        self._rewound_at = now
        back = {partition: self._progress.end(partition) for partition in holes}
        holes.clear()
        await self._parts.source.rewind(back)

    async def _ensure_index(self, month: date) -> None:
        """A month that nobody knows yet, and the one after it, get an index. One that had an index and has
        none any more is archived: what comes late of it is left out, as no list shows it, and the watermark
        goes on. Should it come back, its index is built of the orders themselves.
        """
        if any(index.month == month for index in self._catalog.indices):
            return
        for each in (month, next_month(month)):
            identity = await self._parts.read_model.create(index_name(each, 1))
            await self._parts.store.add_index(each, identity)
        await self._read_catalog()

    async def _check_indices(self) -> None:
        """Doubt every index that is gone, or that is not the one that was made; make those that are planned,
        and have searches find those that an earlier release made.

        Raises: ReadModelUnavailable, and what the store raises.
        """
        self._checked_at = self._parts.clock.monotonic()
        await self._read_shard()
        kept = [index for index in self._catalog.indices if index.state is not State.RETIRED]
        there = await self._parts.read_model.identities([index.identity.name for index in kept])
        wrong = [index for index in kept if there.get(index.identity.name) != index.identity]
        for index in wrong:
            await self._replace(index.identity.name)
        if wrong:
            await self._read_catalog()
        await self._parts.read_model.seal([index.identity.name for index in kept])

    async def _read_catalog(self) -> None:
        self._catalog = await self._parts.store.catalog()

    async def _read_shard(self) -> None:
        """Read the catalog, and go on from the shard's watermarks where they are further than we are: another
        process moved them, or the projection was begun anew. What is below them needs nothing any more.
        """
        await self._read_catalog()
        started = await self._parts.store.started()
        _show(self._parts.store.shard, started.indexed_until)
        for partition, mark in moved(started.watermarks, self._stored).items():
            self._stored[partition] = mark
            if mark > self._progress.end(partition):
                self._progress.ends[partition] = mark
                self._progress.holes.pop(partition, None)

    async def _replace(self, name: str) -> None:
        """Stop reading an index before another of its name is made: an empty one would make lists short. One
        that is only planned is made.
        """
        for index in self._catalog.indices:
            if index.identity.name == name and index.identity.index_uuid:
                log.error("index_is_not_ours", shard=self._parts.store.shard, index=name)
                metrics.INDICES_DOUBTED.labels(self._parts.store.shard).inc()
                await self._parts.store.doubt_index(index.identity)
        await self._parts.store.name_index(await self._parts.read_model.create(name))


def _show(shard: str, indexed_until: datetime | None) -> None:
    if indexed_until is not None:
        metrics.INDEXED_UNTIL.labels(shard).set(indexed_until.timestamp())
