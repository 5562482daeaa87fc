"""What a law, a court or a lock wants kept is not deleted: by nobody, and with the reason told."""

import time
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from types import SimpleNamespace
from typing import Any, cast
from uuid import uuid4

import pytest

from archive_svc.entries import Erasure
from archive_svc.errors import LegalHold
from archive_svc.lifecycle import State, data_key
from archive_svc.retention import NOT_LOCKED, Retention
from archive_svc.service import ArchiveService
from chassis.errors import InvalidField, Reason
from chassis.s3 import ObjectLocked, ObjectNotFound
from ops.seaweedfs import SeaweedServer
from ordermesh.archive.v1 import archive_service_pb2 as pb
from tests.archiving import AUGUST, PACING, Archive, Twin, fill, opened
from tests.buckets import Place
from tests.conftest import DatabaseFactory
from tests.inprocess_s3 import InProcessS3

USER = "user.7"
COUNT = 400
CALL = cast("Any", SimpleNamespace(deadline=time.monotonic() + 3600, subject=SimpleNamespace(name="ops:ann")))


@pytest.fixture
async def server() -> AsyncIterator[InProcessS3]:
    async with InProcessS3.serving() as running:
        yield running


@pytest.fixture
async def archive(shard_database: DatabaseFactory, server: InProcessS3) -> AsyncIterator[Archive]:
    async with opened(await shard_database(), Place.of(server)) as ready:
        await fill(ready.database, COUNT)
        yield ready


def service(archive: Archive) -> ArchiveService:
    return ArchiveService(
        {"s1": archive.catalog}, {"s1": archive.sweeps}, {"s1": archive.holds}, PACING, archive.store, {}
    )


async def wished(archive: Archive, erasure: Erasure | None = None) -> Erasure:
    """The erasure of USER, as it is now."""
    erasure_id = uuid4() if erasure is None else erasure.erasure_id
    return await archive.catalog.want_erasure(erasure_id, USER, "a test", "he asked for it")


async def again(archive: Archive) -> None:
    """Let what waits be looked at."""
    await archive.shard.execute("UPDATE ordermesh.archive_erasures SET not_before = 'epoch'")
    await archive.shard.execute("UPDATE ordermesh.archive_months SET not_before = 'epoch'")
    await archive.work()


async def test_a_month_below_a_legal_hold_keeps_its_tables_until_it_is_lifted(archive: Archive) -> None:
    answers = service(archive)
    put = pb.PutLegalHoldRequest(month="2023-08", reason="case 7")
    first = await answers.PutLegalHold(put, CALL)
    assert await answers.PutLegalHold(put, CALL) == first, "one that is kept stays so"
    await archive.want(AUGUST)
    assert (await archive.work()).state is State.COMMITTED
    note = await archive.value("SELECT note FROM ordermesh.archive_months")
    assert note == "LEGAL_HOLD of 2023-08 by ops:ann: case 7"
    (said,) = (await answers.ListMonths(pb.ListMonthsRequest(), CALL)).shards
    assert [each.legal_hold for each in said.months if each.month == "2023-08"] == [note]

    lifted = await answers.LiftLegalHold(pb.LiftLegalHoldRequest(month="2023-08", reason="over"), CALL)
    assert [(each.month, each.lift_actor) for each in lifted.holds] == [("2023-08", "ops:ann")]
    await archive.shard.execute("UPDATE ordermesh.archive_months SET not_before = 'epoch'")
    assert (await archive.work(until=State.GRACE)).state is State.GRACE

    # One that is put between the detach and the drop is seen by the drop's own guard.
    await answers.PutLegalHold(pb.PutLegalHoldRequest(month="2023-08", reason="case 8"), CALL)
    assert (await archive.work()).state is State.GRACE
    assert await archive.exists("orders_2023_08")
    await answers.LiftLegalHold(pb.LiftLegalHoldRequest(month="2023-08", reason="over"), CALL)
    await again(archive)
    assert (await archive.month(AUGUST)).state is State.DROPPED
    listed = (await answers.ListLegalHolds(pb.ListLegalHoldsRequest(), CALL)).holds
    assert [(each.reason, each.lift_reason) for each in listed] == [("case 8", "over"), ("case 7", "over")]


async def test_a_user_below_a_legal_hold_is_not_erased(archive: Archive) -> None:
    twin = Twin(archive)
    await twin.remember()
    await archive.want(AUGUST)
    assert (await archive.work()).state is State.DROPPED
    answers = service(archive)
    early = await wished(archive)
    await answers.PutLegalHold(pb.PutLegalHoldRequest(user_id=USER, reason="case 7"), CALL)
    with pytest.raises(LegalHold) as refused:
        await answers.EraseUser(
            pb.EraseUserRequest(request_id=str(uuid4()), user_id=USER, reason="he asked"), CALL
        )
    assert refused.value.reason is Reason.LEGAL_HOLD
    await archive.work()
    early = await wished(archive, early)
    assert (early.orders, early.ended_at) == (0, None)
    assert early.note == "LEGAL_HOLD of user.7 by ops:ann: case 7", "a wish from before waits"
    assert await twin.differences(AUGUST) == {}

    lift = pb.LiftLegalHoldRequest(user_id=USER, reason="over")
    assert len((await answers.LiftLegalHold(lift, CALL)).holds) == 1
    assert len((await answers.LiftLegalHold(lift, CALL)).holds) == 0
    await again(archive)
    assert (await wished(archive, early)).ended_at is not None
    await twin.forget(USER)
    assert await twin.differences(AUGUST) == {}


async def test_a_hold_that_comes_while_a_user_is_erased_is_seen_by_the_swap_itself(
    archive: Archive, monkeypatch: pytest.MonkeyPatch
) -> None:
    twin = Twin(archive)
    await twin.remember()
    await archive.want(AUGUST)
    await archive.work()
    erasure = await wished(archive)
    await archive.holds.put(None, AUGUST, "ops:ann", "case 7")

    async def nothing_held(*_: object, **__: object) -> str:
        return ""

    with monkeypatch.context() as blind:
        blind.setattr(type(archive.catalog), "legal_hold", nothing_held)
        assert not await archive.archiver._erase(await archive.fence())
    erasure = await wished(archive, erasure)
    assert (erasure.orders, "LegalHold" in erasure.note) == (0, True)
    await again(archive)
    assert (await wished(archive, erasure)).note.endswith("LEGAL_HOLD of 2023-08 by ops:ann: case 7")
    assert await twin.differences(AUGUST) == {}


async def test_nothing_of_a_month_below_a_legal_hold_is_a_stray(archive: Archive) -> None:
    await archive.want(AUGUST)
    await archive.work()
    key = data_key("s1", AUGUST, "orders", 0, uuid4().hex)
    await archive.store.create(key, b"left behind")
    await archive.holds.put(None, AUGUST, "ops:ann", "case 7")
    for deleted in (0, 1):
        wanted = await archive.sweeps.want(uuid4(), "a test", "to see", deletes=True)
        await archive.work()
        over = await archive.sweeps.want(wanted.sweep_id, "a test", "to see", deletes=True)
        assert (over.deleted, over.refusal, over.ended_at is not None) == (deleted, "", True)
        await archive.holds.lift(None, AUGUST, "ops:ann", "over")


async def test_what_a_legal_hold_is_of_is_checked(archive: Archive) -> None:
    for wrong, field in (
        ({"reason": "r"}, "user_id"),
        ({"reason": "r", "user_id": "a", "month": "2023-08"}, "user_id"),
        ({"reason": "r", "user_id": "a b"}, "user_id"),
        ({"reason": "r", "month": "2023-13"}, "month"),
        ({"month": "2023-08"}, "reason"),
    ):
        with pytest.raises(InvalidField) as refused:
            await service(archive).PutLegalHold(pb.PutLegalHoldRequest(**wrong), CALL)
        assert [violation.field for violation in refused.value.violations] == [field]


@pytest.mark.parametrize("kind", ["in_process", "seaweedfs"])
async def test_what_is_archived_is_locked_and_an_erasure_waits_or_may_bypass_it(
    shard_database: DatabaseFactory, server: InProcessS3, s3: SeaweedServer, kind: str
) -> None:
    place = Place.of(server if kind == "in_process" else s3)
    kept = Retention(timedelta(days=30))
    async with opened(await shard_database(), place, retention=kept) as archive:
        await fill(archive.database, COUNT)
        twin = Twin(archive)
        await twin.remember()
        await archive.want(AUGUST)
        assert (await archive.work()).state is State.DROPPED
        manifest = await archive.value("SELECT manifest_key FROM ordermesh.archive_months")
        for key in (manifest, *(each.stored.key for each in await archive.segments())):
            there = await archive.store.head(key)
            assert there.locked_until is not None
            assert there.locked_until > datetime.now(UTC) + timedelta(days=29)
            with pytest.raises(ObjectLocked):
                await archive.store.delete(there)
        (said,) = (await service(archive).ListMonths(pb.ListMonthsRequest(), CALL)).shards
        (month,) = [each for each in said.months if each.month == "2023-08"]
        assert month.lock_time.ToDatetime(UTC) > datetime.now(UTC) + timedelta(days=29)

        erasure = await wished(archive)
        await archive.work()
        erasure = await wished(archive, erasure)
        assert erasure.ended_at is None
        assert "waits for the lock of _manifest/" in erasure.note
        await twin.forget(USER)
        assert await twin.differences(AUGUST) == {}, "nobody reads the old objects any more"
        assert (await archive.store.head(manifest)).key == manifest

        archive.archiver._eraser._retention = Retention(kept.keeps, bypasses=True)
        await again(archive)
        assert (await wished(archive, erasure)).ended_at is not None
        with pytest.raises(ObjectNotFound):
            await archive.store.head(manifest)


async def test_without_a_retention_nothing_is_locked(archive: Archive) -> None:
    assert NOT_LOCKED.until() is None
    await archive.want(AUGUST, State.COMMITTED)
    await archive.work()
    assert {
        (await archive.store.head(each.stored.key)).locked_until for each in await archive.segments()
    } == {None}
