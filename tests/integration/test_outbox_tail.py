"""The tail of the outbox over real Postgres: every change once and in order, nothing before it is certain,
and cheap.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Iterator
from datetime import timedelta
from typing import Any

import pytest

from history_svc.channel.log import QUERIES, LogReplaced, ShardLog
from history_svc.channel.tail import LONG_AGO, FenceClock, Tail
from history_svc.events import Record
from history_svc.position import BEGINNING
from tests.outboxes import COUNT, Follower, Outbox

BYTES = 1_000_000


@pytest.fixture
async def outbox(shard_database) -> Outbox:
    return await Outbox(await shard_database()).prepare()


@pytest.fixture
async def shard_log(outbox: Outbox) -> AsyncIterator[ShardLog]:
    async with outbox.opened() as opened:
        yield opened


async def begin(shard_log: ShardLog) -> Tail:
    starts = await shard_log.starts()
    return Tail(shard_log, starts, starts.watermarks)


async def read_all(tail: Tail, *, rows_max: int = 1000, bytes_max: int = BYTES) -> list[Record]:
    """Everything below the fence, then the beats."""
    found: list[Record] = []
    while True:
        found += await tail.read(rows_max=rows_max, bytes_max=bytes_max)
        if tail.is_whole:
            return found + tail.beats()


@pytest.mark.parametrize(("rows_max", "bytes_max"), [(1000, BYTES), (7, BYTES), (1000, 1), (1000, 5000)])
async def test_every_change_comes_once_in_order_and_chained(outbox, shard_log, rows_max, bytes_max):
    written = await outbox.write(60)
    follower = Follower()
    follower.take_in(await read_all(await begin(shard_log), rows_max=rows_max, bytes_max=bytes_max))
    positions = await outbox.positions()
    assert follower.events == sorted(written, key=positions.__getitem__)
    assert follower.gaps == []
    assert len(follower.beats) == COUNT
    assert all(mark > max(positions.values()) for mark in follower.watermarks.values())


async def test_a_page_holds_about_the_bytes_that_were_asked_for_and_one_change_at_least(outbox, shard_log):
    await outbox.write(50)
    tail = await begin(shard_log)
    one = await tail.read(rows_max=1000, bytes_max=1)
    assert len(one) == 1
    some = await tail.read(rows_max=1000, bytes_max=10 * one[0].size)
    assert 9 <= len(some) <= 11


async def test_a_transaction_that_is_open_holds_back_what_comes_after_it(outbox, shard_log):
    tail = await begin(shard_log)
    before = await outbox.write(3)
    async with outbox.connected() as slow:
        transaction = slow.transaction()
        await transaction.start()
        open_ones = await outbox.write(2, connection=slow)
        after = await outbox.write(3)
        follower = Follower()
        follower.take_in(await read_all(tail))
        assert follower.events == before, "what was committed later stands above the fence"
        stopped = await read_all(tail)
        assert [record for record in stopped if record.event is not None] == []
        assert tail.fence_age_s >= 0
        await transaction.commit()
    follower.take_in(await read_all(tail))
    assert follower.events == [*before, *open_ones, *after]
    assert follower.gaps == []


async def test_a_transaction_that_wrote_nothing_here_or_only_reads_is_waited_for_only_when_it_may_write(
    outbox, shard_log
):
    tail = await begin(shard_log)
    async with outbox.connected() as reader:
        async with reader.transaction():
            await reader.fetchval("SELECT count(*) FROM ordermesh.outbox")
            written = await outbox.write(2)
            assert [
                r.event.event_id for r in await tail.read(rows_max=10, bytes_max=BYTES) if r.event
            ] == written
        async with reader.transaction():
            await reader.fetchval("SELECT pg_current_xact_id()")
            await outbox.write(2)
            assert await tail.read(rows_max=10, bytes_max=BYTES) == []
    assert len(await tail.read(rows_max=10, bytes_max=BYTES)) == 2


async def test_what_is_rolled_back_is_never_seen_and_leaves_no_gap(outbox, shard_log):
    tail = await begin(shard_log)
    async with outbox.connected() as connection:
        transaction = connection.transaction()
        await transaction.start()
        await outbox.write(3, connection=connection)
        await transaction.rollback()
    written = await outbox.write(3)
    follower = Follower()
    follower.take_in(await read_all(tail))
    assert follower.events == written
    assert follower.gaps == []


async def test_two_changes_of_one_order_may_stand_in_the_log_against_their_versions(outbox, shard_log):
    """A transaction takes its xid before it waits for the row: the first to get one may change last."""
    await outbox.write(1, buckets=[5])
    change = (
        "INSERT INTO ordermesh.outbox (event_id, order_id, created_at, user_id, bucket, stream_partition,"
        " read_routing, version, kind, occurred_at, payload)"
        " SELECT gen_random_uuid(), order_id, created_at, user_id, bucket, stream_partition, read_routing,"
        " $1, 'X', ordermesh.clock(), payload FROM ordermesh.outbox LIMIT 1"
    )
    lock = "SELECT pg_advisory_xact_lock(7, 7)"
    async with outbox.connected() as first, outbox.connected() as second:
        holding, waiting = first.transaction(), second.transaction()
        await waiting.start()
        await second.fetchval("SELECT pg_current_xact_id()")
        await holding.start()
        await first.execute(lock)
        queued = asyncio.create_task(second.execute(lock), name="waits-for-the-row")
        await first.execute(change, 2)
        await holding.commit()
        await queued
        await second.execute(change, 3)
        await waiting.commit()
    records = await read_all(await begin(shard_log))
    assert [record.event.version for record in records if record.event] == [1, 3, 2]
    assert all(later.prev < later.position for later in records)


async def test_a_beat_never_says_a_time_at_which_something_above_it_was_committed(outbox, shard_log):
    tail = await begin(shard_log)
    async with outbox.connected() as slow, outbox.connected() as connection:
        transaction = slow.transaction()
        await transaction.start()
        await slow.fetchval("SELECT pg_current_xact_id()")
        await outbox.write(1)
        committed_before = await connection.fetchval("SELECT clock_timestamp()")
        for _ in range(3):
            beats = await read_all(tail)
            assert all(beat.at < committed_before for beat in beats)
        await transaction.commit()
    beats = [record for record in await read_all(tail) if record.event is None]
    assert len(beats) == COUNT
    assert all(beat.at > committed_before for beat in beats)


def test_the_time_of_the_fence_is_that_of_the_last_look_whose_ceiling_it_passed():
    start = LONG_AGO + timedelta(days=9000)
    clock = FenceClock()
    clock.look(10, 12, start)
    assert clock.at is None, "10 and 11 may be committed and are above the fence"
    clock.look(11, 14, start + timedelta(seconds=1))
    assert clock.at is None
    clock.look(12, 20, start + timedelta(seconds=2))
    assert clock.at == start
    clock.look(19, 21, start + timedelta(seconds=3))
    assert clock.at == start
    clock.look(21, 21, start + timedelta(seconds=4))
    assert clock.at == start + timedelta(seconds=4)


async def test_a_rewind_gives_the_rest_of_one_partition_again_and_of_no_other(outbox, shard_log):
    written = await outbox.write(32)
    positions = await outbox.positions()
    tail = await begin(shard_log)
    before = await read_all(tail)
    of_three = [record for record in before if record.stream_partition == 3 and record.event]
    tail.rewind({3: of_three[1].position})
    again = [record for record in await read_all(tail) if record.event]
    assert again == of_three[2:]
    late = await outbox.write(8)
    assert {r.event.event_id for r in await read_all(tail) if r.event} == set(late)
    tail.rewind({3: BEGINNING})
    first = next(record for record in await read_all(tail) if record.event)
    assert first.event is not None
    assert (first.prev, first.event.event_id) == (BEGINNING, written[3])
    assert first.position == positions[written[3]]


async def test_a_tail_goes_on_at_the_stored_watermarks(outbox, shard_log):
    await outbox.write(16)
    follower = Follower()
    follower.take_in(await read_all(await begin(shard_log)))
    await outbox.set_watermarks(follower.watermarks)
    late = await outbox.write(8)
    follower.take_in(records := await read_all(await begin(shard_log)))
    assert {record.event.event_id for record in records if record.event} == set(late)
    assert follower.gaps == []


async def test_below_the_floor_the_chain_says_that_something_is_missing(outbox, shard_log):
    await outbox.write(16)
    tail = await begin(shard_log)
    async with outbox.connected() as connection:
        floor = await connection.fetchval("SELECT pg_current_xact_id()::text")
        await connection.execute("DELETE FROM ordermesh.outbox")
        raise_floor = (
            "INSERT INTO ordermesh.outbox_floor (log_epoch, xid, raised_at) VALUES (1, $1::text::xid8, now())"
        )
        await connection.execute(raise_floor, floor)
    await outbox.write(16)
    for each in (tail, await begin(shard_log)):
        follower = Follower()
        follower.take_in(await read_all(each))
        assert {record.stream_partition for record in follower.gaps} == set(range(COUNT))
        assert follower.watermarks == {}


async def test_a_log_of_another_epoch_is_noticed_and_read_from_its_beginning(outbox, shard_log):
    await outbox.write(8)
    tail = await begin(shard_log)
    follower = Follower()
    follower.take_in(await read_all(tail))
    await outbox.set_watermarks(follower.watermarks)
    async with outbox.connected() as connection:
        await connection.execute("UPDATE ordermesh.shard_identity SET log_epoch = 2")
    with pytest.raises(LogReplaced):
        await tail.read(rows_max=10, bytes_max=BYTES)
    records = await read_all(await begin(shard_log))
    assert len([record for record in records if record.event]) == 8
    follower.take_in(records)
    assert follower.gaps == [], "the chain goes on from what is searchable"
    assert {mark.log_epoch for mark in follower.watermarks.values()} == {2}


def nodes(plan: dict[str, Any]) -> Iterator[dict[str, Any]]:
    yield plan
    for child in plan.get("Plans", ()):
        yield from nodes(child)


async def test_the_tail_walks_its_index_from_where_it_stands_and_leaves_old_days_alone(outbox, shard_log):
    async with outbox.connected() as connection:
        for days in range(6, 0, -1):
            await connection.execute(
                "SELECT ordermesh.ensure_partition('outbox', to_char($1::date, 'YYYY_MM_DD'), 'occurred_at',"
                " $1::date, $1::date + 1)",
                (await connection.fetchval("SELECT now()")).date() - timedelta(days=days),
            )
        await outbox.write(5000, connection=connection)
        await connection.execute("ANALYZE")
        middle = await connection.fetchrow(
            "SELECT xid::text, seq FROM ordermesh.outbox ORDER BY xid, seq OFFSET 2500 LIMIT 1"
        )
    since = "now() - interval '1 day'"
    given = f"'{middle[0]}', {middle[1]}, {since}, 100, 10000000, '{{0,0}}', '{{0,0}}', 0"
    kinds = "xid8, bigint, timestamptz, int, bigint, text[], bigint[], int"
    async with shard_log._database.connection() as connection:
        await connection.execute(f"PREPARE tail ({kinds}) AS {QUERIES.read_tail}")
        (plan,) = await connection.fetch(f"EXPLAIN (ANALYZE, FORMAT JSON, TIMING OFF) EXECUTE tail ({given})")
        await connection.execute("DEALLOCATE tail")
    scans = [
        node
        for node in nodes(json.loads(plan[0])[0]["Plan"] if isinstance(plan[0], str) else plan[0][0]["Plan"])
        if str(node.get("Relation Name", "")).startswith("outbox_20")
    ]
    run = [scan for scan in scans if scan["Actual Loops"]]
    assert {scan["Node Type"] for scan in scans} == {"Index Scan"}
    assert all("xid_seq" in scan["Index Name"] for scan in scans)
    assert sum(scan["Actual Rows"] for scan in run) <= 101
    assert len(run) <= 2 + 7, "today, yesterday and the days that are made ahead"
