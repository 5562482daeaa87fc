"""Makes the changes of one shard searchable, and says how far.

Documents are written as changes come; once a tick everything that was written to is refreshed, and only then
the shard's database is told: watermarks, what the read model refused and what it took after all, in one
statement. So a watermark never says more than a search shows. Whatever fails, the indexer starts anew at the
stored watermarks; versions make every repeat harmless. It never goes over a gap: a partition whose next
record does not follow stands still until its source has given again what was missed.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import structlog

from chassis import faults
from chassis.errors import OrdermeshError
from history_svc import metrics
from history_svc.catalog import Catalog, State
from history_svc.document import document, index_name, month_of, next_month
from history_svc.errors import EventsUnavailable, ReadModelUnavailable
from history_svc.position import BEGINNING
from history_svc.projector.bulk import BulkWriter
from history_svc.projector.domain import Draft, Progress, moved, newest, written_to
from history_svc.projector.store import Proof
from history_svc.readmodel.port import Verdict, Write

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from datetime import date

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
AFTER_WRITE = faults.declare("index.after_write", "documents are stored, perhaps not searchable yet")
AFTER_REFRESH = faults.declare("index.after_refresh", "documents are searchable and no watermark says so")


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
    """What was written since the last proof."""

    indices: set[str] = field(default_factory=set)
    written: dict[object, Draft] = field(default_factory=dict)
    refused: dict[object, tuple[Draft, str]] = field(default_factory=dict)


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
        while True:
            try:
                indexing = await Indexing.begin(self._parts, again=self._has_begun)
                self._has_begun = True
                while True:
                    if await indexing.step():
                        self._failures = 0
            except (OrdermeshError, EventsUnavailable, QuarantineFull) as failed:
                self._failures += 1
                log.warning(
                    "indexer_failed",
                    shard=self._parts.store.shard,
                    error=type(failed).__name__,
                    because=str(getattr(failed, "facts", failed)),
                )
            ceiling = min(AGAIN_S_MAX, 0.1 * 2 ** min(self._failures, 8))
            await self._parts.clock.sleep(ceiling * (0.5 + 0.5 * self._parts.jitter()))


class Indexing:
    """One run from the stored watermarks on; it ends by an error only."""

    def __init__(self, parts: Parts, started: Started, catalog: Catalog) -> None:
        self._parts = parts
        self._epoch = started.log_epoch
        self._stored: dict[int, Position] = {
            partition: started.watermarks.get(partition, BEGINNING)
            for partition in started.streams.partitions
        }
        self._progress = Progress(dict(self._stored))
        self._catalog = catalog
        self._pending = Pending()
        self._bulk = BulkWriter(parts.read_model, parts.clock, parts.jitter)
        now = parts.clock.monotonic()
        self._proved_at = self._checked_at = now
        self._rewound_at = now - REWIND_EVERY_S
        self._catalog_seen = catalog.version

    @classmethod
    async def begin(cls, parts: Parts, *, again: bool = False) -> Indexing:
        """Start at the stored watermarks.

        again: the source gave out records to a run before this one, which may be lost.

        Raises: ShardUnavailable, DeadlineExceeded, Overloaded, ReadModelUnavailable, EventsUnavailable.
        """
        # First, since asking for changes again while nobody can take them has them published again and again.
        await parts.read_model.ping()
        started = await parts.store.started()
        indexing = cls(parts, started, await parts.store.catalog())
        if again:
            await parts.source.rewind(indexing._stored)
        await indexing._check_indices()
        return indexing

    async def step(self) -> bool:
        """Take what came, write it, and once a tick prove it; whether it was proved.

        If cancelled here, or when it raises: watermarks say no more than what is searchable.
        Raises: OrdermeshError, EventsUnavailable, QuarantineFull; begin anew.
        """
        clock = self._parts.clock
        left_s = max(0.0, self._proved_at + self._parts.tick_s - clock.monotonic())
        records = await self._parts.source.take(bytes_max=self._parts.bytes_max, wait_s=left_s)
        await self._write(self._progress.follow(records))
        await self._close_gaps()
        if clock.monotonic() - self._proved_at < self._parts.tick_s:
            return False
        await self.prove()
        return True

    async def prove(self) -> None:
        """Refresh what was written to and write down how far that brings the watermarks.

        Raises: ReadModelUnavailable, QuarantineFull, and what the store raises; then nothing was written
        down.
        """
        parts, pending = self._parts, self._pending
        if pending.indices:
            await parts.read_model.refresh(sorted(pending.indices))
        await faults.point(AFTER_REFRESH)
        ahead = moved(self._progress.ends, self._stored)
        self._proved_at = parts.clock.monotonic()
        if ahead or pending.refused or pending.written:
            await self._mark(ahead)
        self._pending = Pending()
        if self._catalog_seen != self._catalog.version:
            self._catalog = await parts.store.catalog()
            self._catalog_seen = self._catalog.version
        if parts.clock.monotonic() - self._checked_at >= CHECK_INDICES_EVERY_S:
            await self._check_indices()

    async def _mark(self, ahead: dict[int, Position]) -> None:
        parts, pending = self._parts, self._pending
        for draft, reason in pending.refused.values():
            await parts.dead_letters.put(draft.record, reason)
        proof = Proof(
            ahead,
            {partition: at for partition, at in self._progress.as_of.items() if partition in ahead},
            self._catalog.version,
            list(pending.refused.values()),
            list(pending.written.values()),
        )
        marked = await parts.store.mark(proof, quarantine_max=parts.quarantine_max)
        metrics.QUARANTINE.labels(parts.store.shard).set(marked.quarantined)
        metrics.INDEX_HELD.labels(parts.store.shard).set(marked.is_full or bool(self._progress.holes))
        if marked.is_full:
            raise QuarantineFull(f"{marked.quarantined} orders and {len(pending.refused)} more are refused")
        self._stored.update(ahead)
        self._catalog_seen = marked.catalog_version
        if self._progress.as_of:
            metrics.INDEXED_UNTIL.labels(parts.store.shard).set(
                min(self._progress.as_of.values()).timestamp()
            )
        await parts.source.kept(dict(self._stored))

    async def _write(self, records: Sequence[Record]) -> None:
        drafts = self._drafts(newest(records))
        if not drafts:
            return
        writes: list[Write] = []
        owners: list[Draft] = []
        for draft in drafts:
            assert draft.record.event is not None
            for index in await self._indices(month_of(draft.record.event.created_at)):
                writes.append(Write(index, draft.document))
                owners.append(draft)
        outcomes = await self._bulk.write(writes)
        await faults.point(AFTER_WRITE)
        lost = {
            write.index
            for write, outcome in zip(writes, outcomes, strict=True)
            if outcome.verdict is Verdict.MISSING
        }
        self._note(writes, owners, outcomes)
        if lost:
            # What was written elsewhere is safe; the rest is written again once there is where to.
            for name in lost:
                await self._replace(name)
            raise ReadModelUnavailable(lost=",".join(sorted(lost)))

    def _drafts(self, records: Sequence[Record]) -> list[Draft]:
        """Documents of records; a partition stands still before one that cannot be understood."""
        drafts: list[Draft] = []
        strange: list[Record] = []
        for record in records:
            assert record.event is not None
            try:
                made = document(json.loads(record.event.payload), record.stream_partition)
            except (KeyError, TypeError, ValueError) as wrong:
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
                    self._pending.written[draft.order_id] = draft

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

    async def _indices(self, month: date) -> list[str]:
        """Where a month's documents go; a month that nobody knows yet, and the one after it, get an index."""
        found = written_to(self._catalog, month)
        if not found:
            for each in (month, next_month(month)):
                identity = await self._parts.read_model.create(index_name(each, 1))
                await self._parts.store.add_index(each, identity)
            self._catalog = await self._parts.store.catalog()
            self._catalog_seen = self._catalog.version
            found = written_to(self._catalog, month)
        return [index.identity.name for index in found]

    async def _check_indices(self) -> None:
        """Doubt every index that is gone, or that is not the one that was made.

        Raises: ReadModelUnavailable, and what the store raises.
        """
        self._checked_at = self._parts.clock.monotonic()
        kept = [index for index in self._catalog.indices if index.state is not State.RETIRED]
        there = await self._parts.read_model.identities([index.identity.name for index in kept])
        wrong = [index for index in kept if there.get(index.identity.name) != index.identity]
        for index in wrong:
            await self._replace(index.identity.name)
        if wrong:
            self._catalog = await self._parts.store.catalog()
            self._catalog_seen = self._catalog.version

    async def _replace(self, name: str) -> None:
        """Stop reading an index before another of its name is made: an empty one would make lists short."""
        log.error("index_is_not_ours", shard=self._parts.store.shard, index=name)
        metrics.INDICES_DOUBTED.labels(self._parts.store.shard).inc()
        for index in self._catalog.indices:
            if index.identity.name == name and index.identity.index_uuid:
                await self._parts.store.doubt_index(index.identity)
        await self._parts.store.name_index(await self._parts.read_model.create(name))
