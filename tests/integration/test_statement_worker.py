"""What a worker of statements does when things go wrong, and what is left when they are over."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import replace
from datetime import timedelta
from uuid import UUID, uuid4

import grpc
import pytest
from google.rpc import error_details_pb2
from prometheus_client import REGISTRY

from archive_svc.errors import ArchiveCold
from archive_svc.statement.asking import Limits
from archive_svc.statement.files import fence_of, prefix_of
from archive_svc.statement.outbox import MailOutbox
from archive_svc.statement.standing import Standing
from archive_svc.statement.sweeper import Sweeper, pause_after
from chassis.errors import InternalError, OrderArchived, Reason, ShardUnavailable
from chassis.s3 import PUT_BYTES_MAX
from chassis.testing import eventually
from ordermesh.archive.v1 import statement_service_pb2 as pb
from tests.buckets import Place
from tests.conftest import DatabaseFactory
from tests.inprocess_s3 import InProcessS3
from tests.listeners import Trust
from tests.statements import TURNS, HandMaker, Statements, named, opened, running, sweeper_of, told

State = pb.Statement


@pytest.fixture
async def s3() -> AsyncIterator[InProcessS3]:
    async with InProcessS3.serving() as server:
        yield server


@pytest.fixture
async def statements(tmp_path, shard_database: DatabaseFactory, s3: InProcessS3) -> AsyncIterator[Statements]:
    async with opened(await shard_database(), Place.of(s3), Trust.make(tmp_path), tmp_path) as ready:
        yield ready


def sweeper_at_once(statements: Statements) -> Sweeper:
    return sweeper_of(statements.store, statements.objects, after=timedelta(0))


class Hold:
    """Lets a test see that a place was reached, and hold whoever is there."""

    def __init__(self) -> None:
        self.reached = asyncio.Event()
        self.go_on = asyncio.Event()

    async def __call__(self) -> None:
        self.reached.set()
        await self.go_on.wait()


@pytest.mark.parametrize(
    ("months", "state"), [(-1, "PLANNING"), (0, "READING"), (2, "READING"), (3, "RENDERING")]
)
async def test_a_statement_that_is_ended_stops_at_once_in_every_phase(
    statements: Statements, months: int, state: str
) -> None:
    hold = statements.maker.holds[months] = Hold()
    asked = await statements.request()
    async with running(statements.worker):
        await hold.reached.wait()
        seen = told(await statements.wait(asked))
        assert State.State.Name(seen.state) == state
        assert seen.read_month_count == max(0, months)
        over = await statements.cancel(asked)
        assert (over.done, over.error.code) == (True, grpc.StatusCode.CANCELLED.value[0])

        async def ended() -> bool:
            return statements.maker.ended == 1

        await eventually(ended)
        # Nothing keeps the next one from being made.
        statements.maker.holds.clear()
        await statements.until(await statements.request(locale="hi"), "READY")
    assert await statements.cancel(asked) == over
    assert await statements.value("SELECT count(*) FROM ordermesh.statement_mails") == 1


async def test_a_statement_that_is_ended_while_its_file_is_stored_leaves_no_file(
    statements: Statements, s3: InProcessS3
) -> None:
    asked = await statements.request()
    s3.stall("PutObject")
    async with running(statements.worker):
        await statements.until(asked, "STORING")
        await statements.cancel(asked)
    # The answer was on its way when the turn was lost: the object may be there.
    statement_id = told(asked).statement_id
    await statements.objects.create(f"{prefix_of('s1', UUID(statement_id))}1.zip", b"in vain")
    await sweeper_at_once(statements).once()
    assert await statements.keys() == []
    assert told(await statements.wait(asked)).state == State.CANCELLED


async def test_a_large_statement_keeps_no_small_one_waiting(
    tmp_path, shard_database: DatabaseFactory, s3: InProcessS3
) -> None:
    limits = Limits(large_bytes=0)
    async with opened(
        await shard_database(), Place.of(s3), Trust.make(tmp_path), tmp_path, limits=limits
    ) as statements:
        large = await statements.request()
        assert await statements.value("SELECT is_large FROM ordermesh.statements")
        lane = statements.another_worker(only_small=True)
        assert not await lane.once()
        hold = statements.maker.holds[1] = Hold()
        async with running(statements.worker):
            await hold.reached.wait()
            # Somebody else's, asked for after it.
            statements.maker.holds.clear()
            await statements.database.execute(
                "INSERT INTO ordermesh.statements SELECT (jsonb_populate_record(s, jsonb_build_object("
                "'user_id', 'bob', 'statement_id', $1::uuid, 'is_large', false, 'state', 'WAITING', "
                "'lease_until', '1970-01-01'))).* FROM ordermesh.statements s",
                uuid4(),
            )
            assert await lane.once()
            states = "SELECT state FROM ordermesh.statements WHERE user_id = $1"
            assert await statements.value(states, "bob") == "READY"
            assert await statements.value(states, "alice") == "READING"
            hold.go_on.set()
            await statements.until(large, "READY")


async def test_one_that_is_larger_than_it_seemed_is_left_to_who_makes_large_ones(
    statements: Statements,
) -> None:
    asked = await statements.request()
    lane = statements.another_worker(turns=replace(TURNS, small_orders_max=10), only_small=True)
    labels = {"shard": "s1", "outcome": "left"}
    before = REGISTRY.get_sample_value("ordermesh_statement_turns_total", labels) or 0
    assert await lane.once()
    assert REGISTRY.get_sample_value("ordermesh_statement_turns_total", labels) == before + 1
    left = await statements.database.fetchrow("SELECT state, is_large, attempts FROM ordermesh.statements")
    assert left is not None
    assert tuple(left) == ("WAITING", True, 0)
    assert not await lane.once()
    assert await statements.another_worker(turns=replace(TURNS, small_orders_max=10)).once()
    assert told(await statements.wait(asked)).state == State.READY
    # Once more it is asked for as it was at first: what it takes is not known before.
    assert await statements.request(locale="hi")
    assert not await statements.value("SELECT is_large FROM ordermesh.statements WHERE locale = 'hi'")


async def test_what_lies_in_cold_storage_ends_a_statement_for_good(statements: Statements) -> None:
    asked = await statements.request()
    statements.maker.failures = [ArchiveCold(key="orders/a")]
    assert await statements.worker.once()
    over = await statements.wait(asked)
    assert told(over).state == State.FAILED
    assert (over.error.code, over.error.message) == (
        grpc.StatusCode.FAILED_PRECONDITION.value[0],
        ArchiveCold.sentence(),
    )


async def test_what_is_waiting_is_ended_without_a_worker(statements: Statements) -> None:
    asked = await statements.request()
    await statements.cancel(asked)
    assert not await statements.worker.once()
    assert statements.maker.wishes == []


async def test_a_ready_statement_stays_when_somebody_would_end_it(statements: Statements) -> None:
    asked = await statements.request()
    assert await statements.worker.once()
    over = await statements.cancel(asked)
    assert told(over).state == State.READY


async def test_what_may_pass_is_tried_again_and_given_up_after_the_last_try(statements: Statements) -> None:
    asked = await statements.request()
    statements.maker.failures = [ShardUnavailable(), OSError("disk full")]
    async with running(statements.worker):
        await statements.until(asked, "READY")
    assert len(statements.maker.wishes) == TURNS.attempts_max

    asked = await statements.request(locale="hi")
    statements.maker.failures = [RuntimeError("a bug")] * (TURNS.attempts_max - 1) + [ShardUnavailable()]
    async with running(statements.worker):
        await statements.until(asked, "FAILED")
    over = await statements.wait(asked)
    info = error_details_pb2.ErrorInfo()
    assert over.error.details[0].Unpack(info)
    assert (over.done, over.error.code) == (True, grpc.StatusCode.UNAVAILABLE.value[0])
    assert info.reason == Reason.SHARD_UNAVAILABLE


async def test_what_cannot_pass_fails_at_once_says_why_and_is_begun_again_by_the_same_wish(
    statements: Statements,
) -> None:
    request_id = uuid4()
    asked = await statements.request(request_id)
    statements.maker.failures = [OrderArchived(month="2024-04")]
    assert await statements.worker.once()
    over = await statements.wait(asked)
    assert over.error.code == grpc.StatusCode.FAILED_PRECONDITION.value[0]
    assert over.error.message == OrderArchived.sentence()
    assert told(over).state == State.FAILED

    again = await statements.request()
    assert again.name == asked.name
    assert not again.done
    assert told(again).order_count == 0
    assert await statements.worker.once()
    assert told(await statements.wait(asked)).state == State.READY
    assert (await statements.request(request_id)).name == asked.name
    # As of the first time: the same file whenever it is made.
    first, second = statements.maker.wishes
    assert first.as_of == second.as_of


async def test_a_statement_that_nobody_makes_is_told_by_when_it_was_asked_for(statements: Statements) -> None:
    standing = Standing(statements.store, MailOutbox("s1", statements.database))

    async def shown() -> tuple[timedelta, float | None]:
        """How long ago the oldest was asked for that is not over, and how many wait."""
        now = await statements.value("SELECT clock_timestamp()")
        await standing.tell()
        until_s = REGISTRY.get_sample_value("ordermesh_statements_made_until_seconds", {"shard": "s1"})
        assert until_s is not None
        labels = {"shard": "s1", "state": "WAITING"}
        waiting = REGISTRY.get_sample_value("ordermesh_statements", labels)
        return timedelta(seconds=round((now.timestamp() - until_s) / 3600) * 3600), waiting

    assert await shown() == (timedelta(0), 0)
    operation = await statements.request()
    await statements.later(hours=3)
    assert await shown() == (timedelta(hours=3), 1)
    statements.maker.failures.append(ShardUnavailable(shard="s1"))
    assert await statements.worker.once()
    assert await shown() == (timedelta(hours=3), 1), "a turn that failed makes nothing"
    await statements.database.execute("UPDATE ordermesh.statements SET not_before = 'epoch'")
    assert await statements.worker.once()
    assert told(await statements.wait(operation)).state == State.READY
    assert await shown() == (timedelta(0), 0)
    standing.forget()
    assert REGISTRY.get_sample_value("ordermesh_statement_mails_dead", {"shard": "s1"}) is None


async def test_a_worker_that_dies_each_time_ends_in_a_failure(statements: Statements) -> None:
    asked = await statements.request()
    for _ in range(TURNS.attempts_max):
        assert await statements.store.claim("one that dies", timedelta(0))
    assert await statements.worker.once()
    over = await statements.wait(asked)
    assert over.error.message == InternalError.sentence()
    assert statements.maker.wishes == []


async def test_a_worker_that_lost_its_turn_writes_nothing(statements: Statements, tmp_path) -> None:
    slow = HandMaker(tmp_path, body=b"of the slow one")
    hold = slow.holds[3] = Hold()
    asked = await statements.request()
    # It says that it lives no more than once a minute: it is frozen, as far as anybody can see.
    frozen = statements.another_worker(slow, replace(TURNS, lease=timedelta(0), beat_s=60.0))
    turn = asyncio.create_task(frozen.once())
    await hold.reached.wait()
    assert await statements.worker.once()
    hold.go_on.set()
    assert await turn
    over = told(await statements.wait(asked))
    assert over.state == State.READY
    stays = await statements.value("SELECT object_key FROM ordermesh.statements")
    assert fence_of(stays) == 2
    assert (await statements.objects.read(await statements.objects.head(stays))) == statements.maker.body
    assert await statements.value("SELECT count(*) FROM ordermesh.statement_mails") == 1


async def test_a_worker_that_is_stopped_gives_its_turn_back(statements: Statements) -> None:
    hold = statements.maker.holds[1] = Hold()
    asked = await statements.request()
    async with running(statements.worker):
        await hold.reached.wait()
    assert told(await statements.wait(asked)).state == State.WAITING
    statements.maker.holds.clear()
    assert await statements.worker.once()
    assert told(await statements.wait(asked)).state == State.READY
    assert await statements.value("SELECT attempts FROM ordermesh.statements") == 1


async def test_answers_of_s3_that_are_lost_make_no_second_file(
    statements: Statements, s3: InProcessS3
) -> None:
    s3.lose_answer("PutObject", times=2)
    s3.fail("PutObject", 503, "SlowDown", times=1)
    asked = await statements.request()
    assert await statements.worker.once()
    assert told(await statements.wait(asked)).state == State.READY
    assert len(await statements.keys()) == 1


async def test_a_file_larger_than_one_request_is_stored_in_parts(
    statements: Statements,
) -> None:
    statements.maker.body = b"x" * (PUT_BYTES_MAX + 1)
    asked = await statements.request()
    assert await statements.worker.once()
    ready = told(await statements.wait(asked))
    assert (ready.state, ready.size_bytes) == (State.READY, PUT_BYTES_MAX + 1)
    stored = await statements.objects.head(
        await statements.value("SELECT object_key FROM ordermesh.statements")
    )
    assert stored.size_bytes == PUT_BYTES_MAX + 1
    assert (await statements.link(asked)).url


async def test_no_file_is_left_on_the_machine(statements: Statements, tmp_path) -> None:
    before = set(tmp_path.iterdir())
    await statements.request()
    assert await statements.worker.once()
    assert set(tmp_path.iterdir()) == before


async def test_a_statement_expires_and_its_file_goes(statements: Statements) -> None:
    asked = await statements.request()
    assert await statements.worker.once()
    await statements.sweeper.once()
    assert told(await statements.wait(asked)).state == State.READY
    assert len(await statements.keys()) == 1

    await statements.later(days=7)
    await statements.sweeper.once()
    over = await statements.wait(asked)
    assert (over.done, told(over).state) == (True, State.EXPIRED)
    assert await statements.keys() == []
    assert await statements.value("SELECT is_clean FROM ordermesh.statements")
    # The same wish makes another one.
    assert (await statements.request()).name != asked.name


async def test_cleaning_spares_what_was_stored_since(statements: Statements) -> None:
    asked = await statements.request()
    statements.maker.failures = [OrderArchived()]
    assert await statements.worker.once()
    (left,) = await statements.store.unclean(timedelta(0))
    assert (await statements.request()).name == asked.name
    assert await statements.worker.once()
    # Somebody who looked before it was begun again cleans only now.
    await sweeper_at_once(statements)._clean(left)
    await statements.store.cleaned(left)
    assert len(await statements.keys()) == 1
    assert not await statements.value("SELECT is_clean FROM ordermesh.statements")


async def test_a_file_that_cannot_go_keeps_no_other(statements: Statements, s3: InProcessS3) -> None:
    for locale in ("en", "hi"):
        asked = await statements.request(locale=locale)
        assert await statements.worker.once()
        assert told(await statements.wait(asked)).state == State.READY
    await statements.later(days=7)
    s3.fail("DeleteObject", 403, "AccessDenied")
    await statements.sweeper.once()
    assert len(await statements.keys()) == 1
    assert await statements.value("SELECT count(*) FROM ordermesh.statements WHERE is_clean") == 1
    await statements.later(minutes=1)
    await statements.sweeper.once()
    assert await statements.keys() == []


async def test_files_that_cannot_go_hold_up_no_younger_however_many_they_are(
    statements: Statements, s3: InProcessS3, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("archive_svc.statement.store.SWEEP_MAX", 1)
    left = []
    for locale in ("en", "hi"):
        asked = await statements.request(locale=locale)
        assert await statements.worker.once()
        left.append(named(asked)[1])
    await statements.later(days=7)
    for failures in (1, 2):
        s3.fail("DeleteObject", 403, "AccessDenied")
        await statements.sweeper.once()
        stuck = await statements.database.fetch(
            "SELECT statement_id::text, clean_from > clock_timestamp() FROM ordermesh.statements"
            " WHERE clean_failures > 0 ORDER BY ended_at"
        )
        assert [tuple(row) for row in stuck] == [(each, True) for each in left[:failures]]
    await statements.later(hours=1)
    for _ in left:
        await statements.sweeper.once()
    assert await statements.keys() == []
    assert not await statements.value("SELECT count(*) FROM ordermesh.statements WHERE clean_failures > 0")


def test_what_cannot_go_is_looked_at_ever_later_and_at_least_once_an_hour() -> None:
    pauses = [pause_after(failures, 1.0) for failures in range(100)]
    assert pauses[0] == timedelta(minutes=1)
    assert pauses == sorted(pauses)
    assert pauses[-1] == timedelta(hours=1)
    assert pause_after(3, 0.0) == pauses[3] / 2


async def test_an_s3_that_is_away_for_too_long_is_named(statements: Statements, s3: InProcessS3) -> None:
    asked = await statements.request()
    s3.fail("PutObject", 503, "SlowDown", times=100)
    async with running(statements.worker):
        await statements.until(asked, "FAILED")
    over = await statements.wait(asked)
    info = error_details_pb2.ErrorInfo()
    assert over.error.details[0].Unpack(info)
    assert info.reason == Reason.STORAGE_UNAVAILABLE
    assert await statements.keys() == []
