"""Statements on the wire: asked for, made, fetched; and everything that is refused."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from datetime import UTC, date, datetime, timedelta
from typing import Any
from uuid import UUID, uuid4

import grpc
import httpx
import pytest
from google.longrunning import operations_pb2

from archive_svc.statement.asking import Limits
from chassis import rpc
from chassis.auth import Role, Subject
from chassis.errors import OrderArchived, Reason
from chassis.placement import Held
from ordermesh.archive.v1 import statement_service_pb2 as pb
from tests.buckets import Place
from tests.conftest import DatabaseFactory
from tests.inprocess_s3 import InProcessS3
from tests.listeners import OPERATOR, Trust, refused
from tests.statements import BODY, PLACEMENT, Statements, named, opened, placement_of, running, told, wish

BOB = Subject("bob", frozenset({Role.USER}), "spiffe://ordermesh/gateway")
State = pb.Statement
Code = grpc.StatusCode


@pytest.fixture
async def place() -> AsyncIterator[Place]:
    async with InProcessS3.serving() as server:
        yield Place.of(server)


@pytest.fixture
async def statements(tmp_path, shard_database: DatabaseFactory, place: Place) -> AsyncIterator[Statements]:
    async with opened(await shard_database(), place, Trust.make(tmp_path), tmp_path) as ready:
        yield ready


async def test_a_statement_is_asked_for_made_and_fetched(statements: Statements) -> None:
    asked = await statements.request(formats=(pb.StatementWish.PDF,))
    first = told(asked)
    assert not asked.done
    assert asked.name == f"users/alice/statements/{first.statement_id}"
    assert first.state == State.WAITING
    assert list(first.wish.formats) == [pb.StatementWish.CSV, pb.StatementWish.PDF]

    async with running(statements.worker):
        over = await statements.wait(asked, wait_s=8)
    ready = pb.Statement()
    assert over.done
    assert over.response.Unpack(ready)
    assert ready == told(over)
    assert (ready.state, ready.order_count, ready.size_bytes) == (State.READY, 3, len(BODY))
    assert [(t.currency_code, t.status, t.order_count, t.amount_minor) for t in ready.totals] == [
        ("EUR", "SUCCESS", 2, str(2**70)),
        ("JPY", "FAILED", 1, "5"),
    ]
    assert ready.mail == State.MAIL_WAITING

    link = await statements.link(asked)
    async with httpx.AsyncClient() as http:
        got = await http.get(link.url)
    assert got.content == BODY
    assert got.headers["content-disposition"] == 'attachment; filename="statement-2024-04-01-2025-03-31.zip"'
    assert link.expire_time.ToDatetime(UTC) - datetime.now(UTC) <= timedelta(minutes=5)


async def test_the_maker_is_told_instants_of_the_users_zone_and_every_bucket(statements: Statements) -> None:
    placement = f"{PLACEMENT},4100:s1:1"
    asked = await statements.request(placement=placement)
    assert await statements.worker.once()
    wanted = statements.maker.wishes[0]
    assert wanted.since == datetime(2024, 3, 31, 18, 30, tzinfo=UTC)
    assert wanted.until == datetime(2025, 3, 31, 18, 30, tzinfo=UTC)
    assert wanted.placements == {"s1": (Held(701, 1), Held(4100, 1))}
    assert wanted.as_of == told(asked).as_of_time.ToDatetime(UTC)
    assert (wanted.user_id, wanted.time_zone, wanted.locale, wanted.formats) == (
        *("alice", "Asia/Kolkata", "en"),
        ("CSV",),
    )


async def test_what_has_not_been_yet_is_cut_off_and_not_promised(statements: Statements) -> None:
    today = datetime.now(UTC).date()
    asked = await statements.request(first=str(today - timedelta(days=40)), last=str(today), zone="UTC")
    assert await statements.worker.once()
    assert statements.maker.wishes[0].until == told(asked).as_of_time.ToDatetime(UTC)

    with refused(Code.INVALID_ARGUMENT, Reason.INVALID_FIELD):
        await statements.request(first=str(today + timedelta(days=3)), last=str(today + timedelta(days=9)))


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"first": "2024-4-1"}, "wish.first_day"),
        ({"first": ""}, "wish.first_day"),
        ({"first": "20240401"}, "wish.first_day"),
        ({"last": "2024-02-30"}, "wish.last_day"),
        ({"last": "9999-12-31"}, "wish.last_day"),
        ({"last": "2024-03-31"}, "wish.last_day"),
        ({"first": "2021-01-01", "last": "2024-01-01"}, "wish.last_day"),
        ({"last": "2025-04-01", "formats": (pb.StatementWish.PDF,)}, "wish.last_day"),
        ({"zone": "Mars/Olympus"}, "wish.time_zone"),
        ({"zone": "../../etc/passwd"}, "wish.time_zone"),
        ({"zone": "Asia"}, "wish.time_zone"),
        ({"zone": "localtime"}, "wish.time_zone"),
        ({"zone": "x" * 4000}, "wish.time_zone"),
        ({"zone": "/etc/localtime"}, "wish.time_zone"),
        ({"locale": "xx"}, "wish.locale"),
        ({"formats": (7,)}, "wish.formats"),
        ({"first": "2011-12-30", "last": "2011-12-30", "zone": "Pacific/Apia"}, "wish.last_day"),
    ],
)
async def test_a_wish_that_cannot_be_met_is_refused_by_field(
    statements: Statements, changes: dict[str, Any], field: str
) -> None:
    with pytest.raises(grpc.aio.AioRpcError) as said:
        await statements.request(**changes)
    error = rpc.error_of(said.value)
    assert error.reason == Reason.INVALID_FIELD
    assert field in {violation.field for violation in error.violations}
    assert await statements.value("SELECT count(*) FROM ordermesh.statements") == 0


async def test_the_longest_periods_are_taken(statements: Statements) -> None:
    assert await statements.request(first="2021-01-01", last="2023-12-31")
    assert await statements.worker.once()
    assert await statements.request(last="2025-03-31", formats=(pb.StatementWish.PDF,))


async def test_the_same_request_returns_the_first_operation_and_another_wish_is_refused(
    statements: Statements,
) -> None:
    request_id = uuid4()
    first = await statements.request(request_id)
    again = await statements.request(request_id)
    assert (again.name, again.done) == (first.name, first.done)
    assert (told(first).was_there, told(again).was_there) == (False, True)
    assert told(await statements.request()).was_there, "the same wish began nothing either"
    assert not told(await statements.wait(first)).was_there
    with refused(Code.FAILED_PRECONDITION, Reason.REQUEST_ID_REUSED):
        await statements.request(request_id, locale="hi")

    assert await statements.worker.once()
    await statements.later(hours=2)
    assert (await statements.request(request_id)).name == first.name


async def test_a_request_that_found_a_statement_means_it_from_then_on(statements: Statements) -> None:
    first, second, third = uuid4(), uuid4(), uuid4()
    made = await statements.request(first)
    assert (await statements.request(second)).name == made.name
    with refused(Code.FAILED_PRECONDITION, Reason.REQUEST_ID_REUSED):
        await statements.request(second, locale="hi")
    # It fails, and another request of the same wish begins it again.
    statements.maker.failures = [OrderArchived()]
    assert await statements.worker.once()
    assert told(await statements.wait(made)).state == State.FAILED
    assert (await statements.request(third)).name == made.name
    assert await statements.worker.once()
    assert told(await statements.wait(made)).state == State.READY
    # The hour is over, and the same wish is another statement; whoever repeats a request gets what it began.
    await statements.later(minutes=61)
    for request_id in (first, second, third):
        assert (await statements.request(request_id)).name == made.name
        with refused(Code.FAILED_PRECONDITION, Reason.REQUEST_ID_REUSED):
            await statements.request(request_id, locale="hi")
    assert await statements.value("SELECT count(*) FROM ordermesh.statements") == 1
    assert (await statements.request()).name != made.name


async def test_one_that_failed_is_begun_again_by_the_same_wish_within_the_hour(
    statements: Statements,
) -> None:
    first, second = uuid4(), uuid4()
    failed = await failing(statements, first)
    again = told(await statements.request(second))
    assert (again.statement_id, again.state) == (failed.statement_id, State.WAITING)
    assert not again.was_there, "it was begun"
    assert again.as_of_time == failed.as_of_time
    assert await statements.worker.once()
    for request_id in (first, second):
        assert told(await statements.request(request_id)).statement_id == failed.statement_id
    assert await statements.value("SELECT count(*) FROM ordermesh.statements") == 1


async def test_what_a_request_means_stays_of_its_moment_when_another_asks_for_the_same_after_the_hour(
    statements: Statements,
) -> None:
    first, second = uuid4(), uuid4()
    failed = await failing(statements, first)
    await statements.later(minutes=61)
    newer = told(await statements.request(second))
    assert newer.statement_id != failed.statement_id
    assert newer.as_of_time.ToDatetime() > failed.as_of_time.ToDatetime()
    assert await statements.worker.once()
    listed = await statements.call("ListStatements", pb.ListStatementsRequest(user_id="alice"))
    assert [told(each).statement_id for each in listed.operations] == [
        newer.statement_id,
        failed.statement_id,
    ], "the newest wish is found first"
    # The first one is begun again by its own request alone, and is of the same moment, whenever that comes.
    moved = timedelta(days=9)
    await statements.later(days=moved.days)
    again = told(await statements.request(first))
    assert (again.statement_id, again.state) == (failed.statement_id, State.WAITING)
    assert again.create_time == again.as_of_time
    assert again.as_of_time.ToDatetime() == failed.as_of_time.ToDatetime() - timedelta(minutes=61) - moved
    assert told(await statements.request(second)).statement_id == newer.statement_id


async def test_one_begun_again_is_known_by_what_it_tells_then(statements: Statements) -> None:
    request_id = uuid4()
    await failing(statements, request_id)
    await statements.database.execute("UPDATE ordermesh.statements SET content_key = sha256('amended since')")
    again = await statements.request(request_id)
    assert await statements.worker.once()
    assert (await statements.request()).name == again.name


async def test_one_that_was_found_to_be_large_is_large_when_it_is_begun_again(
    statements: Statements,
) -> None:
    await failing(statements)
    await statements.database.execute("UPDATE ordermesh.statements SET is_large = true")
    await statements.request()
    assert await statements.value("SELECT is_large AND state = 'WAITING' FROM ordermesh.statements")


async def test_limits_count_each_begin_when_it_was(statements: Statements) -> None:
    request_id = uuid4()
    await failing(statements, request_id)
    # Once a day is never five in 24 hours, and after twenty days twenty in 30.
    for _ in range(19):
        await statements.later(days=1)
        await failing(statements, request_id)
    with pytest.raises(grpc.aio.AioRpcError) as said:
        await statements.request(request_id)
    error = rpc.error_of(said.value)
    assert (error.code, error.reason) == (Code.RESOURCE_EXHAUSTED, Reason.STATEMENT_LIMIT)
    assert error.retry_after_s is not None
    assert 10 * 86_400 < error.retry_after_s <= 11 * 86_400, "the first one is 19 days ago"
    # Once each eight days it goes on for ever, and what is older than 30 days is kept nowhere.
    await statements.later(days=11)
    for _ in range(4):
        await failing(statements, request_id)
        await statements.later(days=8)
    assert await statements.value("SELECT asks FROM ordermesh.statements") == 24
    for _ in range(5):
        await failing(statements, request_id)
    assert await statements.value("SELECT cardinality(begun_before) FROM ordermesh.statements") == 4 + 3
    with refused(Code.RESOURCE_EXHAUSTED, Reason.STATEMENT_LIMIT):
        await statements.request(request_id)


async def failing(statements: Statements, request_id: UUID | None = None) -> pb.Statement:
    """A statement that was asked for, and failed."""
    asked = await statements.request(request_id)
    statements.maker.failures = [OrderArchived()]
    assert await statements.worker.once()
    failed = told(await statements.wait(asked))
    assert failed.state == State.FAILED
    return failed


async def test_the_same_wish_means_one_that_is_made_for_hours_and_one_that_is_ready_for_one(
    statements: Statements,
) -> None:
    made = await statements.request()
    await statements.later(hours=3)
    assert (await statements.request()).name == made.name
    assert await statements.worker.once()
    assert (await statements.request()).name != made.name
    assert await statements.worker.once()
    # It counts from the moment that it is of, wherever the clock's full hour lies.
    await statements.database.execute("UPDATE ordermesh.statements SET state = 'EXPIRED', expires_at = now()")
    young = await statements.request()
    assert await statements.worker.once()
    await statements.later(minutes=59)
    assert (await statements.request()).name == young.name
    await statements.later(minutes=2)
    assert (await statements.request()).name != young.name


async def test_requests_of_one_statement_have_a_bound(statements: Statements) -> None:
    known = uuid4()
    made = await statements.request(known)
    repeated = [uuid4() for _ in range(100)]
    for request_id in repeated:
        assert (await statements.request(request_id)).name == made.name
    with refused(Code.RESOURCE_EXHAUSTED, Reason.STATEMENT_LIMIT):
        await statements.request()
    for request_id in (known, repeated[0], repeated[-1]):
        assert (await statements.request(request_id)).name == made.name


async def test_fifty_equal_wishes_at_once_are_one_operation_one_file_and_one_mail(
    statements: Statements,
) -> None:
    async with running(statements.worker, statements.another_worker()):
        said = await asyncio.gather(*(statements.request() for _ in range(50)))
        assert len({operation.name for operation in said}) == 1
        await statements.until(said[0], "READY")
    assert len(await statements.keys()) == 1
    assert await statements.value("SELECT count(*) FROM ordermesh.statement_mails") == 1
    assert len(statements.maker.wishes) == 1


async def test_one_is_made_at_a_time_and_five_a_day_and_twenty_a_month(statements: Statements) -> None:
    await statements.request()
    with pytest.raises(grpc.aio.AioRpcError) as said:
        await statements.request(locale="hi")
    error = rpc.error_of(said.value)
    assert (error.code, error.reason) == (Code.RESOURCE_EXHAUSTED, Reason.STATEMENT_RUNNING)
    assert error.retry_after_s == 5

    assert await statements.worker.once()
    for number in range(2, 21):
        await statements.request(last=f"2025-03-{number:02}")
        assert await statements.worker.once()
        if number % 5:
            continue
        with pytest.raises(grpc.aio.AioRpcError) as said:
            await statements.request(last="2024-12-31")
        error = rpc.error_of(said.value)
        assert (error.code, error.reason) == (Code.RESOURCE_EXHAUSTED, Reason.STATEMENT_LIMIT)
        assert error.retry_after_s is not None
        if number < 20:
            assert 86_000 < error.retry_after_s <= 86_400
            await statements.later(days=1)
    # Twenty in four days: the first five leave the 30 days after 27 more.
    assert error.retry_after_s is not None
    assert 26 * 86_400 < error.retry_after_s <= 27 * 86_400
    await statements.later(days=27)
    assert await statements.request(last="2024-12-31")


async def test_a_period_that_is_too_large_to_read_is_refused(
    tmp_path, shard_database: DatabaseFactory, place: Place
) -> None:
    limits = Limits(bytes_max=-1)
    async with opened(await shard_database(), place, Trust.make(tmp_path), tmp_path, limits=limits) as small:
        with refused(Code.RESOURCE_EXHAUSTED, Reason.TOO_LARGE):
            await small.request()


async def test_users_see_only_what_is_theirs(statements: Statements) -> None:
    asked = await statements.request()
    _, statement_id = named(asked)
    meant: dict[str, Any] = {"user_id": "alice", "statement_id": statement_id}
    calls: list[tuple[str, Any]] = [
        (
            "RequestStatement",
            pb.RequestStatementRequest(user_id="alice", request_id=str(uuid4()), wish=wish()),
        ),
        ("WaitStatement", pb.WaitStatementRequest(**meant)),
        ("CancelStatement", pb.CancelStatementRequest(**meant)),
        ("ListStatements", pb.ListStatementsRequest(user_id="alice")),
        ("LinkStatement", pb.LinkStatementRequest(**meant)),
    ]
    for method, request in calls:
        with refused(Code.PERMISSION_DENIED, Reason.NOT_YOUR_ORDER):
            await statements.call(method, request, subject=BOB)
    # By the id alone nobody finds a statement under another user's name.
    with refused(Code.NOT_FOUND, Reason.STATEMENT_NOT_FOUND):
        await statements.call(
            "WaitStatement",
            pb.WaitStatementRequest(user_id="bob", statement_id=meant["statement_id"]),
            subject=BOB,
            placement=placement_of("bob"),
        )
    said = await statements.call("WaitStatement", pb.WaitStatementRequest(**meant), subject=OPERATOR)
    assert said.name == asked.name


async def test_a_route_that_is_old_is_refused_before_anything_begins(statements: Statements) -> None:
    await statements.shard.fence(4100, left_epoch=2, epoch=2)
    with refused(Code.ABORTED, Reason.STALE_ROUTE):
        await statements.request(placement=f"{PLACEMENT},4100:s1:1")
    with refused(Code.INVALID_ARGUMENT, Reason.ROUTING_KEY_MISSING):
        await statements.request(placement=None)
    with refused(Code.UNAVAILABLE, Reason.SHARD_UNAVAILABLE):
        await statements.request(placement=f"{PLACEMENT},4100:v9:1")
    assert await statements.value("SELECT count(*) FROM ordermesh.statements") == 0


async def test_statements_are_listed_page_by_page_the_newest_first(statements: Statements) -> None:
    names = []
    for day in range(1, 6):
        names.append((await statements.request(last=f"2025-03-{day:02}")).name)
        assert await statements.worker.once()
    found: list[str] = []
    token = ""
    while True:
        page = await statements.call(
            "ListStatements", pb.ListStatementsRequest(user_id="alice", page_size=2, page_token=token)
        )
        found += [operation.name for operation in page.operations]
        token = page.next_page_token
        if not token:
            break
        with refused(Code.INVALID_ARGUMENT, Reason.PAGE_TOKEN_INVALID):
            await statements.call(
                "ListStatements",
                pb.ListStatementsRequest(user_id="bob", page_token=token),
                subject=BOB,
                placement=placement_of("bob"),
            )
    assert found == names[::-1]
    with refused(Code.INVALID_ARGUMENT, Reason.INVALID_FIELD):
        await statements.call("ListStatements", pb.ListStatementsRequest(user_id="alice", page_size=101))


async def test_there_is_no_link_to_what_is_not_there(statements: Statements) -> None:
    async def no_link(asked: operations_pb2.Operation) -> tuple[str, float | None]:
        with pytest.raises(grpc.aio.AioRpcError) as said:
            await statements.link(asked)
        error = rpc.error_of(said.value)
        assert (error.code, error.reason) == (Code.FAILED_PRECONDITION, Reason.STATEMENT_NOT_READY)
        return error.metadata["state"], error.retry_after_s

    asked = await statements.request()
    assert await no_link(asked) == ("WAITING", 2.0)
    assert await statements.worker.once()
    assert (await statements.link(asked)).url

    await statements.later(days=7)
    assert await no_link(asked) == ("EXPIRED", None), "also before anybody noted it"
    await statements.sweeper.once()
    assert await no_link(asked) == ("EXPIRED", None)
    ended = await statements.request(locale="hi")
    await statements.cancel(ended)
    assert await no_link(ended) == ("CANCELLED", None)
    with refused(Code.NOT_FOUND, Reason.STATEMENT_NOT_FOUND):
        await statements.call(
            "LinkStatement", pb.LinkStatementRequest(user_id="alice", statement_id=str(uuid4()))
        )


async def test_a_wait_ends_with_the_statement_or_with_its_time(statements: Statements) -> None:
    asked = await statements.request()
    assert not (await statements.wait(asked, wait_s=1)).done
    waiting = asyncio.create_task(statements.wait(asked, wait_s=9))
    await statements.cancel(asked)
    over = await waiting
    assert over.done
    assert over.error.code == Code.CANCELLED.value[0]
    with refused(Code.INVALID_ARGUMENT, Reason.INVALID_FIELD):
        await statements.wait(asked, wait_s=31)


async def test_days_are_as_they_were_asked_for(statements: Statements) -> None:
    asked = told(await statements.request(zone=""))
    assert date.fromisoformat(asked.wish.first_day) == date(2024, 4, 1)
    assert (asked.wish.last_day, asked.wish.time_zone, asked.wish.locale) == ("2025-03-31", "UTC", "en")
