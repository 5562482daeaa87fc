"""A statement up to now has every order that was being written when it was asked for, or is not made yet."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest

from archive_svc.errors import OrdersUnsettled
from archive_svc.statement import legs
from archive_svc.statement.maker import StatementMaker
from archive_svc.statement.wish import Wanted
from chassis.clock import Clock, SystemClock
from chassis.errors import Reason
from ordermesh.archive.v1 import statement_service_pb2 as pb
from tests.buckets import Place
from tests.conftest import DatabaseFactory
from tests.histories import connected, order_at, write
from tests.inprocess_s3 import InProcessS3
from tests.listeners import Trust
from tests.papers import Impatient, reader, rows_of, wanted
from tests.statements import TURNS, Statements, opened, told, worker_of

USER = "alice"
WITHIN_S = 60.0
HOUR = timedelta(hours=1)
State = pb.Statement


class Watched(SystemClock):
    """A clock that tells when somebody waits."""

    def __init__(self) -> None:
        self.waits = asyncio.Event()

    async def sleep(self, seconds: float) -> None:
        """Sleep, and let it be known."""
        self.waits.set()
        await super().sleep(seconds)


@pytest.fixture
async def statements(tmp_path: Path, shard_database: DatabaseFactory) -> AsyncIterator[Statements]:
    async with InProcessS3.serving() as s3:
        place, trust = Place.of(s3), Trust.make(tmp_path)
        async with opened(await shard_database(), place, trust, tmp_path) as ready:
            await ready.value("SELECT ordermesh.ensure_month(clock_timestamp())")
            yield ready


@asynccontextmanager
async def being_written(statements: Statements) -> AsyncIterator[tuple[UUID, Any]]:
    """An order of alice that was made just now, and the transaction that wrote it, which is not over."""
    async with connected(statements.shard) as connection:
        transaction = connection.transaction()
        await transaction.start()
        order = order_at(await connection.fetchval("SELECT clock_timestamp()"), USER)
        await write(connection, order)
        yield order.order_id, transaction


async def up_to_now(statements: Statements) -> Wanted:
    """A wish for what alice ordered in this last hour."""
    now: datetime = await statements.value("SELECT clock_timestamp()")
    return replace(wanted(USER, now - HOUR, now), as_of=now)


async def written_late(statements: Statements, wish: Wanted) -> UUID:
    """An order of the last moment of a period, written after it; its id."""
    async with connected(statements.shard) as connection:
        order = order_at(wish.until - timedelta(milliseconds=1), USER)
        await write(connection, order)
        return order.order_id


async def read(statements: Statements, wish: Wanted, clock: Clock) -> list[UUID]:
    asked = reader(statements.shard.database.dsn, statements.objects, clock=clock)
    return [UUID(row.order_id) for row in await rows_of([asked], wish)]


async def asked_up_to_now(statements: Statements) -> Any:
    today = await statements.value("SELECT (clock_timestamp() AT TIME ZONE 'UTC')::date")
    return await statements.request(first=str(today - timedelta(days=1)), last=str(today), zone="UTC")


async def turn(statements: Statements, clock: Clock, folder: Path) -> bool:
    """One turn of a worker at the statement, which is made of what the shard has."""
    asked = reader(statements.shard.database.dsn, statements.objects, clock=clock)
    maker = StatementMaker({"s1": asked}, folder)
    store, objects, places = statements.store, statements.objects, statements.places
    return await worker_of(store, objects, maker, TURNS, places, statements.wakes).once()


async def test_an_order_that_commits_after_the_wish_is_in_the_statement(
    statements: Statements, tmp_path: Path
) -> None:
    clock = Watched()
    async with being_written(statements) as (_, writing):
        asked = await asked_up_to_now(statements)
        making = asyncio.create_task(turn(statements, clock, tmp_path), name="turn")
        await asyncio.wait_for(clock.waits.wait(), WITHIN_S)
        assert not told(await statements.wait(asked)).order_count
        await writing.commit()
        assert await asyncio.wait_for(making, WITHIN_S)
    said = told(await statements.wait(asked))
    assert (said.state, said.order_count) == (State.READY, 1)


async def test_without_the_wait_it_would_be_missing(
    statements: Statements, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def at_once(*_: object) -> None:
        """Waits for nobody."""

    monkeypatch.setattr(legs, "settled", at_once)
    async with being_written(statements) as (_, writing):
        asked = await asked_up_to_now(statements)
        assert await turn(statements, Watched(), tmp_path)
        await writing.commit()
    said = told(await statements.wait(asked))
    assert (said.state, said.order_count) == (State.READY, 0), "the hole that the wait closes is there"


async def test_a_transaction_that_does_not_end_puts_the_statement_off_and_it_is_made_afterwards(
    statements: Statements, tmp_path: Path
) -> None:
    async with being_written(statements) as (_, writing):
        asked = await asked_up_to_now(statements)
        for attempt in (1, 2):
            await statements.database.execute("UPDATE ordermesh.statements SET not_before = 'epoch'")
            assert await turn(statements, Impatient(), tmp_path)
            row = await statements.database.fetchrow("SELECT * FROM ordermesh.statements")
            assert row is not None
            assert (row["state"], row["attempts"]) == ("WAITING", attempt)
            assert (row["error_reason"], row["error_message"]) == (
                Reason.CONTENDED.value,
                OrdersUnsettled().sentence(),
            )
        await writing.commit()
    await statements.database.execute("UPDATE ordermesh.statements SET not_before = 'epoch'")
    assert await turn(statements, Watched(), tmp_path)
    said = told(await statements.wait(asked))
    assert (said.state, said.order_count) == (State.READY, 1)


async def test_who_has_the_greatest_transaction_id_is_waited_for(statements: Statements) -> None:
    """Nobody commits after it began, so that it is at the xmax of every snapshot and not below."""
    clock = Watched()
    async with being_written(statements) as (order_id, writing):
        wish = await up_to_now(statements)
        reading = asyncio.create_task(read(statements, wish, clock), name="read")
        await asyncio.wait_for(clock.waits.wait(), WITHIN_S)
        await writing.commit()
        assert await asyncio.wait_for(reading, WITHIN_S) == [order_id]


async def test_who_only_reads_and_what_is_long_over_hold_up_nobody(statements: Statements) -> None:
    async with connected(statements.shard) as another:
        reading = another.transaction(isolation="repeatable_read", readonly=True)
        await reading.start()
        assert await another.fetchval("SELECT count(*) FROM ordermesh.orders") == 0
        assert await read(statements, await up_to_now(statements), Watched()) == []
        async with being_written(statements):
            now = await up_to_now(statements)
            earlier = replace(now, since=now.since - 2 * HOUR, until=now.until - 2 * HOUR)
            assert await read(statements, earlier, Impatient()) == []
            with pytest.raises(OrdersUnsettled):
                await read(statements, now, Impatient())
        await reading.rollback()


async def test_a_period_that_is_not_over_by_the_shards_clock_is_not_read(statements: Statements) -> None:
    now = await up_to_now(statements)
    with pytest.raises(OrdersUnsettled):
        await read(statements, replace(now, until=now.until + HOUR, as_of=now.as_of + HOUR), Impatient())


async def test_an_order_that_reaches_the_shard_after_the_wish_is_in_the_statement(
    statements: Statements,
) -> None:
    clock = Watched()
    wish = await up_to_now(statements)
    reading = asyncio.create_task(read(statements, wish, clock), name="read")
    await asyncio.wait_for(clock.waits.wait(), WITHIN_S)
    late = await written_late(statements, wish)
    assert await asyncio.wait_for(reading, WITHIN_S) == [late]


async def test_if_ids_were_taken_however_old_it_would_be_missing(statements: Statements) -> None:
    async with connected(statements.shard) as connection:
        await connection.execute(
            "CREATE OR REPLACE FUNCTION ordermesh.arrives_within() RETURNS interval"
            " IMMUTABLE RETURN interval '0 s'"
        )
    wish = await up_to_now(statements)
    assert await read(statements, wish, Watched()) == []
    late = await written_late(statements, wish)
    assert await read(statements, wish, Watched()) == [late], "the hole that the wait closes is there"
