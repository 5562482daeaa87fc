"""What is found out about an order after it was archived is noted, told, and goes with its user."""

from __future__ import annotations

import json
import time
from collections.abc import AsyncIterator
from functools import partial
from io import BytesIO
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast
from uuid import UUID, uuid4
from zipfile import ZipFile

import pytest

from archive_svc.amendment import Noted, prefix_of
from archive_svc.errors import ArchivedOrderNotFound, OrdersMoved, StatementIncomplete, StorageUnavailable
from archive_svc.lifecycle import State
from archive_svc.service import ArchiveService
from archive_svc.statement.amending import Amender
from archive_svc.statement.fetching import Fetcher
from archive_svc.statement.legs import SESSION
from archive_svc.statement.maker import StatementMaker
from archive_svc.statement.rows import Row
from chassis import pg
from chassis.auth import Role, Subject
from chassis.errors import InvalidField, OrdermeshError
from ordermesh.archive.v1 import archive_service_pb2 as pb
from tests.archiving import AUGUST, PACING, Archive, fill, opened
from tests.buckets import Place
from tests.conftest import DatabaseFactory
from tests.inprocess_s3 import InProcessS3
from tests.listeners import Trust
from tests.papers import known_rows, reader, rows_of, wanted
from tests.statements import named, placement_of
from tests.statements import opened as opened_statements

USERS = ("user.a", "user.b")
USER_A = Subject("user.a", frozenset({Role.USER}), "spiffe://ordermesh/gateway")
ALL = "SELECT * FROM ordermesh.archive_amendments ORDER BY amended_at"
CALL = cast("Any", SimpleNamespace(deadline=time.monotonic() + 3600, subject=SimpleNamespace(name="ops:ann")))


@pytest.fixture
async def server() -> AsyncIterator[InProcessS3]:
    async with InProcessS3.serving() as running:
        yield running


@pytest.fixture
async def archive(shard_database: DatabaseFactory, server: InProcessS3) -> AsyncIterator[Archive]:
    async with opened(await shard_database(), Place.of(server)) as ready:
        await fill(ready.database, 80, AUGUST, seed=1, users=USERS)
        yield ready


def service(archive: Archive) -> ArchiveService:
    settings = pg.PgSettings(dsn=archive.database.dsn, session=SESSION)
    sessions = partial(pg.open_session, settings, name="amender")
    amenders = {"s1": Amender("s1", sessions, Fetcher(archive.store), archive.store)}
    return ArchiveService(
        {"s1": archive.catalog},
        {"s1": archive.sweeps},
        {"s1": archive.holds},
        PACING,
        archive.store,
        amenders,
    )


def wish(row: Row, **fields: Any) -> pb.AmendOrderRequest:
    told = {"request_id": str(uuid4()), "user_id": "user.a", "order_id": row.order_id}
    return pb.AmendOrderRequest(**(told | {"note": "paid by hand", "reason": "case 7"} | fields))


async def statement(archive: Archive) -> dict[str, Row]:
    rows = await rows_of([reader(archive.database.dsn, archive.store)], wanted("user.a"))
    return {row.order_id: row for row in rows}


async def test_an_amendment_is_told_with_its_order_and_nothing_else_changes(
    archive: Archive, tmp_path: Path
) -> None:
    known = (await known_rows(archive))["user.a"]
    failed = next(row for row in known if row.status == "FAILED")
    await archive.want(AUGUST)
    await archive.work()
    answers = service(archive)
    first = wish(failed, succeeded=True, upstream_ref="by-hand-1", note="=paid")
    answer = await answers.AmendOrder(first, CALL)
    assert answer == pb.AmendOrderResponse(shard="s1", status="SUCCESS", amendment_count=1)
    assert await answers.AmendOrder(first, CALL) == answer, "the same request notes nothing more"
    second = await answers.AmendOrder(wish(failed, description="a lamp", note="it was a lamp"), CALL)
    assert (second.status, second.amendment_count) == ("SUCCESS", 2)

    told = await statement(archive)
    assert told.pop(failed.order_id) == failed._replace(
        status="SUCCESS",
        upstream_ref="by-hand-1",
        failure_reason="",
        description="a lamp",
        note="=paid; it was a lamp",
    )
    assert list(told.values()) == [row for row in known if row != failed]
    maker = StatementMaker({"s1": reader(archive.database.dsn, archive.store)}, tmp_path)
    bundle = await maker.make(wanted("user.a"), _nobody)
    assert sum(t.orders for t in bundle.totals if t.status == "SUCCESS") == 1 + sum(
        row.status == "SUCCESS" for row in known
    )
    assert "'=paid; it was a lamp" in ZipFile(bundle.path).read("orders.csv").decode()
    noted = await archive.rows("SELECT actor, reason FROM ordermesh.archive_amendments")
    assert {tuple(row) for row in noted} == {("ops:ann", "case 7")}


async def test_the_same_wish_after_an_amendment_is_another_statement_that_tells_it(
    archive: Archive, server: InProcessS3, tmp_path: Path
) -> None:
    failed = next(row for row in (await known_rows(archive))["user.a"] if row.status == "FAILED")
    await archive.want(AUGUST)
    await archive.work()
    trust = Trust.make(tmp_path)
    async with opened_statements(archive.database, Place.of(server), trust, tmp_path) as statements:
        maker = StatementMaker({"s1": reader(archive.database.dsn, archive.store)}, tmp_path)
        worker = statements.another_worker(maker)

        async def csv() -> tuple[str, str]:
            """The operation of one wish, always the same, and what its statement tells."""
            asked = await statements.request(
                user_id="user.a",
                first="2023-08-01",
                last="2023-08-31",
                subject=USER_A,
                placement=placement_of("user.a"),
            )
            await worker.once()
            ready = await statements.store.statement("user.a", UUID(named(asked)[1]))
            assert ready is not None
            assert ready.stored is not None
            body = await statements.objects.read(ready.stored)
            return asked.name, ZipFile(BytesIO(body)).read("orders.csv").decode()

        first = await csv()
        assert await csv() == first
        assert "paid by hand" not in first[1]
        seen = {first}
        for note in ("paid by hand", "by card"):
            await service(archive).AmendOrder(wish(failed, note=note), CALL)
            again = await csv()
            assert note in again[1]
            assert await csv() == again
            seen.add(again)
        assert len({name for name, _ in seen}) == 3

        # What is outside of the period is not told, and makes no other statement.
        await statements.database.execute(
            "UPDATE ordermesh.archive_amendments SET order_id = '018c0000-0000-7000-8000-000000000000',"
            " created_at = ordermesh.id_time('018c0000-0000-7000-8000-000000000000')"
        )
        assert await csv() == first


async def _nobody(_: object) -> None:
    """Hears nothing."""


async def test_what_is_no_amendment_is_refused(archive: Archive) -> None:
    known = (await known_rows(archive))["user.a"]
    success = next(row for row in known if row.status == "SUCCESS")
    failed = next(row for row in known if row.status == "FAILED")
    answers = service(archive)
    with pytest.raises(ArchivedOrderNotFound):
        await answers.AmendOrder(wish(failed), CALL)
    await archive.want(AUGUST)
    await archive.work()
    for other in (
        wish(failed, user_id="user.b"),
        wish(failed._replace(order_id=str(UUID(int=7 << 76 | 2 << 62 | 1)))),
    ):
        with pytest.raises(ArchivedOrderNotFound):
            await answers.AmendOrder(other, CALL)
    used = wish(failed)
    await answers.AmendOrder(used, CALL)
    for wrong, field in (
        (wish(success, succeeded=True, upstream_ref="x"), "succeeded"),
        (wish(success, upstream_ref=""), "upstream_ref"),
        (wish(failed, succeeded=True), "upstream_ref"),
        (wish(failed, note=""), "note"),
        (wish(failed, note="a\0b"), "note"),
        (wish(failed, reason=""), "reason"),
        (wish(failed, reason="case\0 7"), "reason"),
        (wish(failed, description="x" * 513), "description"),
        (wish(failed, order_id="x"), "order_id"),
        (wish(failed, order_id="ffffffff-ffff-4fff-bfff-ffffffffffff"), "order_id"),
        (wish(failed, user_id="a b"), "user_id"),
        (wish(failed, request_id="1"), "request_id"),
        (wish(success, request_id=used.request_id), "request_id"),
    ):
        with pytest.raises(InvalidField) as refused:
            await answers.AmendOrder(wrong, CALL)
        assert [violation.field for violation in refused.value.violations] == [field]
    assert await archive.value("SELECT count(*) FROM ordermesh.archive_amendments") == 1


async def test_a_month_that_is_back_is_told_as_its_table_has_it_and_takes_amendments_along(
    archive: Archive,
) -> None:
    known = (await known_rows(archive))["user.a"]
    first, second = [row for row in known if row.status == "FAILED"][:2]
    await archive.want(AUGUST)
    await archive.work()
    answers = service(archive)
    for row in (first, second):
        await answers.AmendOrder(wish(row, succeeded=True, upstream_ref="by-hand", note="paid"), CALL)
    amended = await statement(archive)
    assert {amended[row.order_id].status for row in (first, second)} == {"SUCCESS"}

    await archive.want(AUGUST, State.RESTORED)
    assert (await archive.work()).state is State.RESTORED
    there = (await known_rows(archive))["user.a"]
    assert there == known, "lists and GetOrder read the table, in which it is the one it was"
    assert list((await statement(archive)).values()) == there
    # One is corrected while it is back, by who may: that is younger than what was noted before.
    await archive.shard.execute(
        "UPDATE ordermesh.orders SET status = 'SUCCESS', failure_reason = '', upstream_ref = 'by-upstream',"
        " version = version + 1, route_epoch = NULL, updated_at = clock_timestamp() WHERE order_id = $1",
        UUID(second.order_id),
    )
    there = (await known_rows(archive))["user.a"]
    assert there != known
    assert list((await statement(archive)).values()) == there

    await archive.want(AUGUST)
    assert (await archive.work()).state is State.DROPPED
    told = await statement(archive)
    assert told[second.order_id] == next(row for row in there if row.order_id == second.order_id)
    assert told[first.order_id] == amended[first.order_id]
    # What is noted now is younger than the correction.
    await answers.AmendOrder(wish(second, description="a lamp", note="it was a lamp"), CALL)
    last = (await statement(archive))[second.order_id]
    assert (last.upstream_ref, last.description, last.note) == ("by-upstream", "a lamp", "it was a lamp")


async def test_the_table_itself_lets_no_success_become_a_failure(archive: Archive) -> None:
    row = (await known_rows(archive))["user.a"][0]
    await archive.want(AUGUST, State.COMMITTED)
    await archive.work()
    for changes in ({"status": "FAILED"}, {"status": "SUCCESS"}, {"amount_minor": "1"}):
        with pytest.raises(OrdermeshError):
            await archive.shard.execute(
                "INSERT INTO ordermesh.archive_amendments SELECT $1, $2, 'user.a', ordermesh.id_time($2), "
                "'n', $3, 'a', 'r', now()",
                *(uuid4(), UUID(row.order_id), changes),
            )


async def test_an_amendment_comes_back_with_a_lost_catalog(archive: Archive) -> None:
    known = (await known_rows(archive))["user.a"]
    failed = next(row for row in known if row.status == "FAILED")
    await archive.want(AUGUST)
    await archive.work()
    answers = service(archive)
    await answers.AmendOrder(wish(failed, succeeded=True, upstream_ref="by-hand-1"), CALL)
    await answers.AmendOrder(wish(failed, note="it was a lamp", description="a lamp"), CALL)
    told, noted = await statement(archive), await archive.rows(ALL)
    await archive.shard.execute("DELETE FROM ordermesh.archive_months")
    await archive.shard.execute("DELETE FROM ordermesh.archive_amendments")

    rebuild = pb.RebuildCatalogRequest(shard="s1", reason="it was lost")
    rebuilt = await answers.RebuildCatalog(rebuild, CALL)
    assert (rebuilt.amendment_count, list(rebuilt.unreadable_amendments)) == (2, [])
    assert await statement(archive) == told
    assert told[failed.order_id].note == "paid by hand; it was a lamp"
    assert await archive.rows(ALL) == noted
    assert (await answers.RebuildCatalog(rebuild, CALL)).amendment_count == 0, "what is noted stays as it is"

    key = next(found.key for found in (await archive.store.list("_amendment/")).objects)
    await archive.store.replace(await archive.store.head(key), b"{}")
    await archive.shard.execute("DELETE FROM ordermesh.archive_amendments")
    rebuilt = await answers.RebuildCatalog(rebuild, CALL)
    assert (rebuilt.amendment_count, list(rebuilt.unreadable_amendments)) == (1, [key])


@pytest.mark.parametrize("changes", [{"reason": "case\0 7"}, {"note": "n" * 600}, {"note": 7}])
async def test_an_amendment_that_the_shard_refuses_keeps_no_other(
    archive: Archive, changes: dict[str, Any]
) -> None:
    known = (await known_rows(archive))["user.a"]
    await archive.want(AUGUST)
    await archive.work()
    answers = service(archive)
    for row in known[:3]:
        await answers.AmendOrder(wish(row), CALL)
    key = (await archive.store.list("_amendment/")).objects[0].key
    there = await archive.store.head(key)
    told = json.loads(await archive.store.read(there)) | changes
    await archive.store.replace(there, json.dumps(told).encode())
    await archive.shard.execute("DELETE FROM ordermesh.archive_amendments")
    rebuild = pb.RebuildCatalogRequest(shard="s1", reason="it was lost")
    rebuilt = await answers.RebuildCatalog(rebuild, CALL)
    assert (rebuilt.amendment_count, list(rebuilt.unreadable_amendments)) == (2, [key])


async def test_what_the_shard_does_not_take_any_more_leaves_no_object(
    archive: Archive, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The month comes back while an order of it is amended."""
    row = (await known_rows(archive))["user.a"][0]
    await archive.want(AUGUST)
    await archive.work()
    answers = service(archive)
    amender = answers._amenders["s1"]
    stored = amender._stored

    async def while_it_comes_back(noted: Noted) -> Any:
        made = await stored(noted)
        await archive.want(AUGUST, State.RESTORED)
        await archive.work()
        return made

    monkeypatch.setattr(amender, "_stored", while_it_comes_back)
    with pytest.raises(ArchivedOrderNotFound):
        await answers.AmendOrder(wish(row), CALL)
    assert (await archive.store.list("_amendment/")).objects == ()


async def test_without_storage_nothing_is_noted(archive: Archive, server: InProcessS3) -> None:
    row = (await known_rows(archive))["user.a"][0]
    await archive.want(AUGUST)
    await archive.work()
    asked = wish(row)
    server.fail("PutObject", 403, "AccessDenied")
    with pytest.raises(StorageUnavailable):
        await service(archive).AmendOrder(asked, CALL)
    assert await archive.rows(ALL) == []
    assert (await service(archive).AmendOrder(asked, CALL)).amendment_count == 1


async def test_who_is_erased_takes_his_amendments_along(archive: Archive) -> None:
    known = await known_rows(archive)
    await archive.want(AUGUST)
    await archive.work()
    answers = service(archive)
    for user_id in USERS:
        await answers.AmendOrder(wish(known[user_id][0], user_id=user_id), CALL)
    await archive.store.create(f"{prefix_of('s1', 'user.a')}{uuid4()}.json", b"of a try that was killed")
    erase = pb.EraseUserRequest(request_id=str(uuid4()), user_id="user.a", reason="asked for it")
    await answers.EraseUser(erase, CALL)
    await archive.work()
    assert (await answers.EraseUser(erase, CALL)).shards[0].HasField("end_time")
    assert await statement(archive) == {}
    left = await archive.rows("SELECT user_id FROM ordermesh.archive_amendments")
    assert [row["user_id"] for row in left] == ["user.b"]
    (kept,) = (await archive.store.list("_amendment/")).objects
    assert kept.key.startswith(prefix_of("s1", "user.b")), "the objects went, also one that no row named"


async def test_a_segment_that_another_took_the_place_of_is_read_again_and_a_lost_one_is_not_told(
    archive: Archive, monkeypatch: pytest.MonkeyPatch
) -> None:
    known = await known_rows(archive)
    await archive.want(AUGUST)
    await archive.work()
    answers = service(archive)
    erase = pb.EraseUserRequest(request_id=str(uuid4()), user_id="user.b", reason="asked for it")
    asked = reader(archive.database.dsn, archive.store)
    legs_of = asked._legs

    async def while_another_is_erased(*args: Any) -> Any:
        legs = await legs_of(*args)
        await answers.EraseUser(erase, CALL)
        await archive.work()
        return legs

    monkeypatch.setattr(asked, "_legs", while_another_is_erased)
    with pytest.raises(OrdersMoved):
        await rows_of([asked], wanted("user.a"))
    assert list((await statement(archive)).values()) == known["user.a"]
    for segment in await archive.segments():
        await archive.store.delete(segment.stored)
    with pytest.raises(StatementIncomplete):
        await statement(archive)
