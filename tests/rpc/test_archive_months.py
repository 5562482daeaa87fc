"""Months of the archive on the wire: what is in it is older than what is not, whichever way a month goes."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass
from datetime import date, timedelta
from typing import Any
from uuid import UUID, uuid4

import asyncpg
import grpc
import pytest

from archive_svc.app import SERVICE
from archive_svc.errors import MonthCommitted
from archive_svc.lifecycle import REACHES, WAY, State
from archive_svc.service import ArchiveService
from chassis import rpc
from chassis.errors import Reason
from chassis.s3 import Stored
from ordermesh.archive.v1 import archive_service_pb2 as pb
from ordermesh.archive.v1 import archive_service_pb2_grpc as pb_grpc
from tests.archiving import AUGUST, PACING, SEPTEMBER, Archive, fill, opened
from tests.buckets import Place
from tests.conftest import DatabaseFactory
from tests.inprocess_s3 import InProcessS3
from tests.listeners import CALL_S, OPERATOR, Trust, refused


@dataclass
class Asked:
    """An archive, and an operator who asks for its months."""

    archive: Archive
    stub: Any
    trust: Trust

    async def move(
        self, month: date, reach: State, shard: str = "", request_id: UUID | None = None
    ) -> list[pb.Month]:
        request = pb.MoveMonthRequest(
            request_id=str(request_id or uuid4()),
            shard=shard,
            month=f"{month:%Y-%m}",
            reach=pb.Month.State.Value(reach),
            reason="a test asks for it",
        )
        metadata = self.trust.metadata(OPERATOR)
        answer = await self.stub.MoveMonth(request, timeout=CALL_S, metadata=metadata)
        return list(answer.months)

    async def listed(self) -> pb.ListMonthsResponse:
        metadata = self.trust.metadata(OPERATOR)
        answer = await self.stub.ListMonths(pb.ListMonthsRequest(), timeout=CALL_S, metadata=metadata)
        assert isinstance(answer, pb.ListMonthsResponse)
        return answer

    async def gone(self, *months: date) -> None:
        for month in months:
            await self.archive.want(month)
            assert (await self.archive.work(month=month)).state is State.DROPPED

    async def floor(self) -> Any:
        return await self.archive.value("SELECT nullif(ordermesh.archive_floor(), '-infinity')")


@pytest.fixture
async def asked(tmp_path, shard_database: DatabaseFactory) -> AsyncIterator[Asked]:
    trust = Trust.make(tmp_path)
    async with InProcessS3.serving() as s3, opened(await shard_database(), Place.of(s3)) as archive:
        for seed, month in enumerate((AUGUST, SEPTEMBER)):
            await fill(archive.database, 60, month, seed=seed)
        catalogs, sweeps = {"s1": archive.catalog}, {"s1": archive.sweeps}
        service = ArchiveService(catalogs, sweeps, {}, PACING, archive.store, {})
        gate, tls = trust.lane(), trust.server("archive_svc")
        async with rpc.serve("127.0.0.1:0", [rpc.Mount(SERVICE, service)], gate=gate, tls=tls) as server:
            target = f"127.0.0.1:{server.port}"
            channel = rpc.Channel(target, service="archive_svc", tls=trust.files("shard_proxy"))
            async with channel:
                yield Asked(archive, pb_grpc.ArchiveServiceStub(channel), trust)


async def test_a_month_comes_back_only_after_every_younger_one(asked: Asked) -> None:
    await asked.gone(AUGUST, SEPTEMBER)
    before = await asked.archive.month(AUGUST)
    for shard in ("", "s1"):
        with refused(grpc.StatusCode.FAILED_PRECONDITION, Reason.YOUNGER_MONTH_FIRST) as facts:
            await asked.move(AUGUST, State.RESTORED, shard)
        told = {"shard": "s1", "month": "2023-08", "first": "2023-09"}
        assert told.items() <= facts[0].metadata.items()
    assert await asked.archive.month(AUGUST) == before

    await asked.move(SEPTEMBER, State.RESTORED)
    with refused(grpc.StatusCode.FAILED_PRECONDITION, Reason.YOUNGER_MONTH_FIRST):
        await asked.move(AUGUST, State.RESTORED)
    assert (await asked.archive.work(month=SEPTEMBER)).state is State.RESTORED
    (month,) = await asked.move(AUGUST, State.RESTORED)
    assert month.reach == pb.Month.RESTORED
    assert (await asked.archive.work()).state is State.RESTORED
    assert await asked.floor() is None


async def test_while_a_month_comes_back_or_is_back_no_younger_one_leaves(asked: Asked) -> None:
    archive = asked.archive
    await asked.gone(AUGUST)
    await archive.want(SEPTEMBER)
    assert (await archive.work(until=State.VERIFIED, month=SEPTEMBER)).state is State.VERIFIED
    # On its way back, its tables stand alone; then they are back where they were.
    await asked.move(AUGUST, State.RESTORED)
    nowhere = Stored("manifest", 0, "", "", "")
    tried = await archive.catalog.commit(
        await archive.month(SEPTEMBER), await archive.fence(), nowhere, "", timedelta(0)
    )
    assert tried == ("OLDER_MONTH_FIRST",)
    assert (await archive.work()).state is State.RESTORED
    await archive.work(month=SEPTEMBER)
    september = await archive.month(SEPTEMBER)
    assert september.state is State.VERIFIED
    assert await asked.floor() is None

    await asked.move(AUGUST, State.DROPPED)
    await archive.shard.execute("UPDATE ordermesh.archive_months SET not_before = 'epoch'")
    assert (await archive.work()).state is State.DROPPED
    await archive.shard.execute("UPDATE ordermesh.archive_months SET not_before = 'epoch'")
    assert (await archive.work(month=SEPTEMBER)).state is State.DROPPED


async def test_a_shard_with_a_month_that_is_locked_just_now_is_listed_as_one_that_gives_no_answer(
    asked: Asked,
) -> None:
    other = await asyncpg.connect(asked.archive.database.dsn)
    try:
        async with other.transaction():
            await other.execute("LOCK TABLE ordermesh.orders_2023_08 IN ACCESS EXCLUSIVE MODE")
            listed = await asked.listed()
        assert (list(listed.shards), list(listed.unreachable)) == ([], ["shards/s1"])
    finally:
        await other.close()
    listed = await asked.listed()
    assert [each.shard for each in listed.shards] == ["s1"]
    assert not listed.unreachable


async def test_a_month_that_readers_read_from_its_copy_is_restored_and_not_thawed(asked: Asked) -> None:
    archive = asked.archive
    await archive.want(AUGUST, State.COMMITTED)
    assert (await archive.work()).state is State.COMMITTED
    await archive.catalog.quarantine(await archive.month(AUGUST), await archive.fence(), "somebody looks")
    before = await archive.month(AUGUST)
    for shard in ("", "s1"):
        with refused(grpc.StatusCode.FAILED_PRECONDITION, Reason.ILLEGAL_TRANSITION) as facts:
            await asked.move(AUGUST, State.THAWED, shard)
        assert {"shard": "s1", "month": "2023-08"}.items() <= facts[0].metadata.items()
    with pytest.raises(MonthCommitted):
        await archive.want(AUGUST, State.THAWED)
    assert await archive.month(AUGUST) == before, "it is in quarantine still"
    await asked.move(AUGUST, State.RESTORED)
    assert (await archive.work()).state is State.RESTORED
    await asked.move(AUGUST, State.THAWED)
    assert (await archive.work()).state is State.THAWED


async def test_a_month_that_never_left_does_not_come_back(asked: Asked) -> None:
    archive = asked.archive
    with refused(grpc.StatusCode.FAILED_PRECONDITION, Reason.ILLEGAL_TRANSITION) as facts:
        await asked.move(AUGUST, State.RESTORED)
    assert {"shard": "s1", "month": "2023-08", "state": "HOT"}.items() <= facts[0].metadata.items()
    assert not await archive.catalog.months(), "nobody asked for it"
    await archive.want(AUGUST)
    for state in WAY[: WAY.index(State.COMMITTED)]:
        before = await archive.work(until=state)
        assert before.state is state
        for shard in ("", "s1"):
            with refused(grpc.StatusCode.FAILED_PRECONDITION, Reason.ILLEGAL_TRANSITION) as facts:
                await asked.move(AUGUST, State.RESTORED, shard)
            assert facts[-1].metadata["state"] == state
        assert await archive.month(AUGUST) == before
    # So it goes on, and holds up no younger one.
    await asked.gone(AUGUST, SEPTEMBER)


async def test_a_month_that_is_back_stays_whoever_repeats_what(asked: Asked) -> None:
    archive, left = asked.archive, uuid4()
    await asked.move(AUGUST, State.DROPPED, request_id=left)
    assert (await archive.work()).state is State.DROPPED
    came = uuid4()
    await asked.move(AUGUST, State.RESTORED, request_id=came)
    assert (await archive.work(until=State.RESTORING)).state is State.RESTORING
    with refused(grpc.StatusCode.FAILED_PRECONDITION, Reason.ILLEGAL_TRANSITION):
        await asked.move(AUGUST, State.DROPPED)
    (month,) = await asked.move(AUGUST, State.RESTORED)
    assert month.state == pb.Month.RESTORING
    back = await archive.work()
    assert back.state is State.RESTORED
    again = uuid4()
    for request_id in (came, again, left):
        reach = State.DROPPED if request_id is left else State.RESTORED
        (month,) = await asked.move(AUGUST, reach, request_id=request_id)
        assert (month.state, month.reach) == (pb.Month.RESTORED, pb.Month.RESTORED)
        assert await archive.work() == back, "nothing was begun"
    with refused(grpc.StatusCode.INVALID_ARGUMENT, Reason.INVALID_FIELD):
        await asked.move(AUGUST, State.DROPPED, request_id=came)
    with refused(grpc.StatusCode.INVALID_ARGUMENT, Reason.INVALID_FIELD):
        await asked.move(SEPTEMBER, State.RESTORED, request_id=came)
    # A wish that found the month where it wanted it is known as well.
    await asked.move(AUGUST, State.DROPPED)
    assert (await archive.work()).state is State.DROPPED
    for request_id in (came, again):
        (month,) = await asked.move(AUGUST, State.RESTORED, request_id=request_id)
        assert (month.state, month.reach) == (pb.Month.DROPPED, pb.Month.DROPPED)


async def test_a_month_that_went_further_is_not_called_back_half_way(asked: Asked) -> None:
    archive = asked.archive
    await archive.want(AUGUST)
    for state in (State.COMMITTED, State.DETACHING, State.GRACE, State.DROPPED):
        before = await archive.work(until=state)
        assert before.state is state
        for reach in WAY[: WAY.index(state)]:
            if reach in REACHES:
                with refused(grpc.StatusCode.FAILED_PRECONDITION, Reason.ILLEGAL_TRANSITION):
                    await asked.move(AUGUST, reach)
        assert await archive.month(AUGUST) == before


async def test_the_same_request_at_the_same_time_begins_one_move(asked: Asked) -> None:
    request_id = uuid4()
    moves = [asked.move(AUGUST, State.VERIFIED, request_id=request_id) for _ in range(8)]
    answers = await asyncio.gather(*moves)
    assert {month.state for (month,) in answers} == {pb.Month.WANTED}
    known = await asked.archive.rows("SELECT request_id, month, reach FROM ordermesh.archive_wishes")
    assert [tuple(row) for row in known] == [(request_id, AUGUST, "VERIFIED")]
