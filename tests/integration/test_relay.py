"""The relay over real Postgres and a topic in memory: whatever happens to it, nothing is left out."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from typing import Any

import pytest
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from prometheus_client import REGISTRY

from chassis import faults, traces
from chassis.clock import SYSTEM_CLOCK
from chassis.sampling import Wanted
from chassis.testing import eventually
from history_svc.channel.leadership import AFTER_TERM, Leadership
from history_svc.channel.log import ShardLog, TermLost
from history_svc.errors import EventsUnavailable
from history_svc.events import Record
from history_svc.position import BEGINNING, Position
from history_svc.projector import relay
from history_svc.projector.relay import (
    AFTER_ACK,
    AFTER_CURSOR,
    AFTER_REWIND,
    BEFORE_SEND,
    IN_FLIGHT_MAX,
    Batching,
    Parts,
    Relay,
)
from tests.outboxes import COUNT, Outbox
from tests.topics import MemoryTopic

WITHIN_S = 30.0
TRACED = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
"""The trace of every change that an outbox of tests gets."""


class KeptLetters:
    """Dead letters in a list."""

    def __init__(self) -> None:
        self.letters: list[tuple[Record, str]] = []

    async def put(self, record: Record, reason: str) -> None:
        self.letters.append((record, reason))


class Running:
    """One process's relay of a shard."""

    def __init__(
        self,
        shard_log: ShardLog,
        leadership: Leadership,
        topic: MemoryTopic,
        rows_max: int,
        acknowledge_s: float,
    ) -> None:
        self.log = shard_log
        self.leadership = leadership
        self.letters = KeptLetters()
        parts = Parts(
            shard_log,
            self.letters,
            SYSTEM_CLOCK,
            random.random,
            Batching(rows_max, 100_000, beat_every_s=0.05, acknowledge_s=acknowledge_s),
        )
        self.tasks = [
            asyncio.create_task(loop.run(), name=loop.name)
            for loop in (leadership, Relay(parts, leadership, topic.open))
        ]

    async def died(self) -> BaseException:
        """Wait until one of its loops dies of a fault."""
        async with asyncio.timeout(WITHIN_S):
            done, _ = await asyncio.wait(self.tasks, return_when=asyncio.FIRST_COMPLETED)
        error = done.pop().exception()
        assert error is not None
        return error

    async def kill(self) -> None:
        for task in self.tasks:
            task.cancel()
        await asyncio.gather(*self.tasks, return_exceptions=True)


@pytest.fixture
async def outbox(shard_database) -> Outbox:
    return await Outbox(await shard_database()).prepare()


@pytest.fixture
def topic() -> MemoryTopic:
    return MemoryTopic()


@asynccontextmanager
async def running(
    outbox: Outbox,
    topic: MemoryTopic,
    *,
    rows_max: int = 20,
    acknowledge_s: float = 30.0,
    holder: str = "one",
) -> AsyncIterator[Running]:
    async with outbox.opened() as shard_log:
        process = Running(shard_log, outbox.leadership(shard_log, holder), topic, rows_max, acknowledge_s)
        try:
            yield process
        finally:
            await process.kill()


def terms(*processes: Running) -> tuple[int | None, ...]:
    return tuple(process.leadership.term for process in processes)


async def until(holds: Callable[[], Any], within_s: float = WITHIN_S) -> None:
    async def ask() -> Any:
        return holds()

    await eventually(ask, within_s=within_s)


async def until_noted(outbox: Outbox, topic: MemoryTopic) -> None:
    """Until the cursors stand behind everything that was published."""

    async def ask() -> bool:
        cursors = await outbox.cursors()
        return len(cursors) == COUNT and all(
            cursors[p][1] >= mark for p, mark in topic.follower().watermarks.items() if topic.held is None
        )

    await eventually(ask, within_s=WITHIN_S, every_s=0.05)


async def test_every_change_is_published_in_order_and_the_cursors_follow(outbox, topic):
    written = await outbox.write(100)
    async with running(outbox, topic):
        await until(lambda: topic.follower().has(written))
        written += await outbox.write(10)
        await until(lambda: topic.follower().has(written))
        await until_noted(outbox, topic)
    follower = topic.follower()
    assert follower.gaps == []
    assert sorted(follower.events) == sorted(written), "nothing went wrong, so nothing comes twice"
    assert len(follower.beats) == COUNT
    assert {term for term, _ in (await outbox.cursors()).values()} == {1}


async def test_who_stops_notes_what_was_published_so_that_nothing_comes_twice(outbox, topic, monkeypatch):
    monkeypatch.setattr(relay, "CURSOR_EVERY_S", 3600.0)
    written = await outbox.write(100)
    async with running(outbox, topic):
        await until(lambda: topic.follower().has(written))
    assert len(await outbox.cursors()) == COUNT
    written += await outbox.write(10)
    async with running(outbox, topic):
        await until(lambda: topic.follower().has(written))
    assert sorted(topic.follower().events) == sorted(written)


async def test_who_stops_notes_nothing_that_is_not_acknowledged_and_does_not_wait_for_it(
    outbox, topic, monkeypatch
):
    monkeypatch.setattr(relay, "LAST_S", 0.05)
    topic.hold()
    written = await outbox.write(10, buckets=[1])
    async with asyncio.timeout(WITHIN_S), running(outbox, topic):
        await until(lambda: topic.held)
    assert await outbox.cursors() == {}
    topic.release()
    async with running(outbox, topic):
        await until(lambda: topic.follower().has(written))
        await until_noted(outbox, topic)


@pytest.fixture
def spans(monkeypatch: pytest.MonkeyPatch) -> InMemorySpanExporter:
    exporter, provider = InMemorySpanExporter(), TracerProvider(sampler=Wanted(0.0, exported=True))
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    monkeypatch.setattr(traces, "_tracer", provider.get_tracer("test"))
    return exporter


def sent(spans: InMemorySpanExporter) -> list[str]:
    """How batches ended that were handed over: the error of those that failed."""
    ended = [span for span in spans.get_finished_spans() if span.name.startswith("send ")]
    assert all(len(span.links) == 1 for span in ended), "all of these changes come from one trace"
    return [str((span.attributes or {}).get("error.type", "fine")) for span in ended]


async def test_a_batch_is_under_way_until_it_is_acknowledged(outbox, topic, spans):
    topic.hold()
    written = await outbox.write(10, buckets=[1])
    async with running(outbox, topic):
        await until(lambda: topic.held)
        assert sent(spans) == []
        topic.release()
        await until(lambda: sent(spans) == ["fine"])
        assert topic.follower().has(written)
    assert {record.event.traceparent for record in topic.records if record.event} == {TRACED}


async def test_a_batch_that_is_refused_or_given_up_has_failed(outbox, topic, spans, monkeypatch):
    def handed_over() -> int:
        return sum(record.event is not None for record in topic.records)

    monkeypatch.setattr(relay, "LAST_S", 0.05)
    topic.hold()
    await outbox.write(10, buckets=[1])
    async with running(outbox, topic):
        await until(lambda: handed_over() == 10)
        for waiting in topic.held:
            waiting.set_exception(EventsUnavailable("told to be refused"))
        await until(lambda: sent(spans) == ["EventsUnavailable"])
        await until(lambda: handed_over() == 20)
    assert sent(spans) == ["EventsUnavailable", "CancelledError"], "nobody waited for the second one"
    async with running(outbox, topic, rows_max=2, acknowledge_s=0.05):
        await until(lambda: "EventsUnavailable" in sent(spans)[2:])


async def test_cursors_move_only_over_the_unbroken_run_of_acknowledged_batches(outbox, topic):
    topic.hold()
    written = await outbox.write(200, buckets=[1])
    async with running(outbox, topic):
        await until(lambda: topic.held and len(topic.held) == IN_FLIGHT_MAX)
        held = topic.held or []
        for later in held[1:]:
            later.set_result(None)
        assert len(topic.records) < len(written), "the fifth batch waits"
        assert topic.in_flight_most == IN_FLIGHT_MAX
        await asyncio.wait(held[1:])
        assert (await outbox.cursors()) == {}, "the first batch is not acknowledged"
        first = topic.records[:]
        topic.release()
        await until(lambda: topic.follower().has(written))
        await until_noted(outbox, topic)
    assert first == topic.records[: len(first)]
    assert topic.publishers == 1


async def test_after_a_failure_a_new_publisher_goes_on_at_the_cursors_and_nobody_sees_a_gap(outbox, topic):
    written = await outbox.write(200)
    topic.fails_at = 90
    async with running(outbox, topic):
        await until(lambda: topic.follower().has(written))
    assert topic.publishers == 2
    assert topic.follower().gaps == []


@pytest.mark.parametrize("point", [AFTER_TERM, BEFORE_SEND, AFTER_ACK, AFTER_CURSOR, AFTER_REWIND])
@pytest.mark.parametrize("nth", [1, 3])
async def test_a_crash_at_any_point_loses_nothing(outbox, topic, point: str, nth: int):
    written = await outbox.write(120)
    async with running(outbox, topic) as process:
        if point == AFTER_REWIND:
            await until_noted(outbox, topic)
        faults.arm(f"{point}=raise:{1 if point in (AFTER_TERM, AFTER_REWIND) else nth}")
        if point == AFTER_TERM:
            await process.kill()
        else:
            if point == AFTER_REWIND:
                await process.log.ask_rewind({3: BEGINNING})
            assert isinstance(await process.died(), faults.FaultFired)
    if point == AFTER_TERM:
        async with running(outbox, topic) as process:
            assert isinstance(await process.died(), faults.FaultFired)
    assert faults.armed() == ()
    asked_at = len(topic.records)
    async with running(outbox, topic):
        await until(lambda: topic.follower().has(written))
        written += await outbox.write(8)
        await until(lambda: topic.follower().has(written))
        if point == AFTER_REWIND:
            again = set(written[3:120:COUNT])
            await until(lambda: again <= {r.event.event_id for r in topic.records[asked_at:] if r.event})
    assert topic.follower().gaps == []


async def test_a_process_that_is_cut_off_anywhere_loses_nothing(outbox, topic):
    dice, written = random.Random(7), []
    for _ in range(15):
        written += await outbox.write(15)
        async with running(outbox, topic, rows_max=5):
            topic.arrived.clear()
            wanted = len(topic.records) + dice.randrange(1, 40)
            await until(lambda: len(topic.records) >= wanted)  # noqa: B023 - it is waited for right here
            for _ in range(dice.randrange(6)):
                await asyncio.sleep(0)
    async with running(outbox, topic):
        await until(lambda: topic.follower().has(written))
    assert topic.follower().gaps == []


async def test_of_two_relays_one_publishes_and_only_the_newest_term_writes_cursors(outbox, topic):
    await outbox.write(20)
    async with running(outbox, topic, holder="one") as first:
        await until_noted(outbox, topic)
        async with running(outbox, topic, holder="two") as second:
            assert terms(first, second) == (1, None)
            await first.kill()
            late = await outbox.write(8)
            await until(lambda: topic.follower().has(late))
            await until_noted(outbox, topic)
            assert terms(second) == (2,)
            before = await outbox.cursors()
            with pytest.raises(TermLost):
                await second.log.move_cursors(1, {0: Position(1, 1, 1)})
            assert await second.log.take_rewinds(1) == {}
            assert before.items() <= (await outbox.cursors()).items() or (await outbox.cursors())[0][0] == 2
    assert {term for term, _ in (await outbox.cursors()).values()} == {2}
    assert topic.follower().gaps == []


async def test_a_cursor_that_is_written_late_waits_for_nobody_and_a_new_term_waits_for_it(outbox, topic):
    """Between the look at the term and the write nobody can begin another one."""
    async with outbox.opened() as shard_log, outbox.connected() as slow:
        async with outbox.connected() as session:
            await session.execute("INSERT INTO ordermesh.relay_lease VALUES (true, 1, 'one', now())")
        transaction = slow.transaction()
        await transaction.start()
        await slow.execute("SELECT term FROM ordermesh.relay_lease WHERE term = 1 FOR SHARE")
        leadership = outbox.leadership(shard_log, "two")
        task = asyncio.create_task(leadership.run(), name="leads")
        waits = "wait_event_type = 'Lock' AND query LIKE '%relay_lease%'"
        blocked = f"SELECT count(*) FROM pg_stat_activity WHERE {waits}"

        async def is_blocked() -> bool:
            async with outbox.connected() as watcher:
                return bool(await watcher.fetchval(blocked))

        await eventually(is_blocked)
        assert leadership.term is None
        await transaction.commit()
        async with asyncio.timeout(WITHIN_S):
            assert await leadership.until_leading() == 2
        task.cancel()
        await asyncio.wait((task,))


async def test_what_somebody_misses_is_published_again_from_there_and_only_that(outbox, topic):
    written = await outbox.write(80)
    async with running(outbox, topic) as process:
        await until_noted(outbox, topic)
        of_three = [r for r in topic.records if r.stream_partition == 3 and r.event]
        seen = len(topic.records)
        assert await process.log.ask_rewind({3: of_three[4].position, 9: BEGINNING}) == 1
        assert await process.log.ask_rewind({3: of_three[6].position}) == 0, "the lower wish stays"
        wanted = [record.event.event_id for record in of_three[5:]]
        await until(lambda: [r.event.event_id for r in topic.records[seen:] if r.event] == wanted)
        first = next(r for r in topic.records[seen:] if r.event)
        assert first.prev == of_three[4].position
        await until_noted(outbox, topic)
        await process.log.ask_rewind({3: Position(1, 10**9, 1)})
        late = await outbox.write(8)
        await until(lambda: topic.follower().has(late))
        await until_noted(outbox, topic)
        async with outbox.connected() as connection:
            wishes = "SELECT count(*) FROM ordermesh.relay_cursors WHERE rewind_xid IS NOT NULL"
            await until_zero(connection, wishes)
    assert topic.follower().gaps == []
    assert set(written) <= set(topic.follower().events)


async def until_zero(connection: Any, sql: str) -> None:
    async def ask() -> bool:
        return bool(await connection.fetchval(sql) == 0)

    await eventually(ask, within_s=WITHIN_S)


async def test_a_change_that_is_too_large_is_set_aside_and_delays_nothing(outbox, topic):
    written = await outbox.write(24)
    async with outbox.connected() as connection:
        large = await connection.fetchrow(
            "UPDATE ordermesh.outbox"
            " SET payload = payload || jsonb_build_object('description', repeat('x', 5000))"
            " WHERE event_id = $1 RETURNING order_id, version",
            written[10],
        )
    topic.payload_bytes_max = 4000
    async with running(outbox, topic) as process:
        rest = [event for event in written if event != written[10]]
        await until(lambda: topic.follower().has(rest))
        await until_noted(outbox, topic)
    assert topic.follower().gaps == []
    assert written[10] not in topic.follower().events
    assert [letter.event and letter.event.event_id for letter, _ in process.letters.letters] == [written[10]]
    async with outbox.connected() as connection:
        kept = await connection.fetchrow("SELECT order_id, version, reason FROM ordermesh.quarantine")
    assert (kept["order_id"], kept["version"]) == tuple(large)
    assert kept["reason"].startswith("too large")


async def test_a_shard_that_comes_back_is_published_further(outbox, topic):
    written = await outbox.write(8)
    async with running(outbox, topic) as process:
        await until(lambda: topic.follower().has(written))
        async with outbox.connected() as connection:
            cut = (
                "SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity"
                " WHERE datname = current_database() AND pid <> pg_backend_pid()"
            )
            assert await connection.fetchval(cut) >= 2
        written += await outbox.write(8)
        await until(lambda: topic.follower().has(written))
        await until(lambda: (process.leadership.term or 0) >= 2)
    assert topic.follower().gaps == []


def told_until(outbox: Outbox) -> float | None:
    return REGISTRY.get_sample_value("ordermesh_outbox_published_until_seconds", {"shard": outbox.shard})


async def test_it_is_told_until_when_everything_is_published_and_that_stands_while_nothing_can_be(
    outbox, topic
):
    def published_until() -> datetime:
        return datetime.fromtimestamp(told_until(outbox) or 0.0, UTC)

    async with running(outbox, topic):
        written = await outbox.write(4)
        await until(lambda: topic.follower().has(written))
        after = datetime.now(UTC)
        await until(lambda: published_until() >= after)
        topic.is_away, topic.fails_at, tries = True, 0, topic.publishers
        written += await outbox.write(4)
        await until(lambda: topic.publishers >= tries + 2)
        stands_at = published_until()
        away = datetime.now(UTC)
        await until(lambda: topic.publishers >= tries + 4)
        assert published_until() == stands_at < away
        topic.is_away = False
        await until(lambda: topic.follower().has(written) and published_until() > away)


async def test_who_leads_and_has_published_nothing_says_so(shard_database, topic):
    outbox = await Outbox(await shard_database(), shard="s7").prepare()
    topic.is_away = True
    assert told_until(outbox) is None
    async with running(outbox, topic):
        await until(lambda: topic.publishers >= 2)
        assert told_until(outbox) == 0.0


async def test_it_is_told_of_each_batch_that_lands_while_the_next_is_under_way(outbox, topic):
    """A shard in which something changes all the time never has nothing under way."""
    first = datetime.now(UTC)
    topic.hold()

    def told_though_the_newest_is_under_way() -> bool:
        *earlier, _ = topic.held or [None]
        for each in earlier:
            if not each.done():
                each.set_result(None)
        return (told_until(outbox) or 0.0) > first.timestamp()

    async with running(outbox, topic):
        await outbox.write(4, buckets=[1])
        await until(told_though_the_newest_is_under_way)
        assert not topic.held[-1].done()
