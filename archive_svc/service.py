"""The handlers of ArchiveService: proto -> the shards' catalogs -> proto.

Any archive_svc answers: what is asked for is a row in each shard, and whoever holds the shard carries it on.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING
from uuid import uuid5

from archive_svc import wire
from archive_svc.errors import (
    ArchivedOrderNotFound,
    LegalHold,
    MonthNotFound,
    StorageUnavailable,
    UnknownShard,
    YoungerMonthFirst,
)
from archive_svc.foresee import foreseen
from archive_svc.lifecycle import State, never_left, ripe_until
from archive_svc.rebuild import Rebuilder
from chassis.errors import Contended, DeadlineExceeded, InvalidField, Overloaded, ShardUnavailable
from chassis.s3 import S3Error
from ordermesh.archive.v1 import archive_service_pb2 as pb

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from datetime import date
    from uuid import UUID

    from archive_svc.archiver import Pacing
    from archive_svc.catalog import Catalog
    from archive_svc.entries import MonthView
    from archive_svc.holds import Holds
    from archive_svc.statement.amending import Amender
    from archive_svc.sweep import Sweeps
    from chassis import rpc
    from chassis.s3 import ObjectStore


class ArchiveService:
    """Implements ordermesh.archive.v1.ArchiveService.

    catalogs, sweeps, holds, amenders: by shard; the last are there with an S3 alone.
    """

    def __init__(
        self,
        catalogs: Mapping[str, Catalog],
        sweeps: Mapping[str, Sweeps],
        holds: Mapping[str, Holds],
        pacing: Pacing,
        objects: ObjectStore | None,
        amenders: Mapping[str, Amender],
    ) -> None:
        self._amenders = amenders
        self._catalogs = catalogs
        self._sweeps = sweeps
        self._holds = holds
        self._pacing = pacing
        self._objects = objects

    async def ListMonths(self, request: pb.ListMonthsRequest, call: rpc.Call) -> pb.ListMonthsResponse:
        """Say which months each shard has and had."""
        catalogs = self._of(request.shard)
        said = await asyncio.gather(*(self._listed(catalog.shard, call.deadline) for catalog in catalogs))
        return pb.ListMonthsResponse(
            shards=[each for each in said if each is not None],
            unreachable=[
                f"shards/{catalog.shard}"
                for catalog, each in zip(catalogs, said, strict=True)
                if each is None
            ],
        )

    async def MoveMonth(self, request: pb.MoveMonthRequest, call: rpc.Call) -> pb.MoveMonthResponse:
        """Note where a month is to be, in one shard or in all that have it."""
        asked = wire.move(request)
        homes = [catalog.until(call.deadline) for catalog in self._of(asked.shard)]
        views = [(there, await self._view(there, asked.month)) for there in homes]
        have = [(there, view) for there, view in views if view is not None]
        if not have:
            raise MonthNotFound(month=request.month)
        may_stay = not asked.shard and not all(never_left(view.state, asked.reach) for _, view in have)
        for there, view in have:  # Before any shard is told.
            if not await there.knows(asked.request_id, asked.month, asked.reach):
                await self._see_way(there, view, asked.reach, may_stay=may_stay)
        found: list[pb.Month] = []
        for there, _ in have:
            await there.want(
                asked.month,
                id_in(asked.request_id, there.shard),
                asked.reach,
                call.subject.name,
                asked.reason,
                request_id=asked.request_id,
                may_stay=may_stay,
            )
            now = await self._view(there, asked.month)
            assert now is not None, "it was there just now"
            if not (may_stay and never_left(now.state, asked.reach)):
                found.append(wire.month(there.shard, now))
        return pb.MoveMonthResponse(months=found)

    async def VerifyMonth(self, request: pb.VerifyMonthRequest, call: rpc.Call) -> pb.VerifyMonthResponse:
        """Let a month be read back once more, in one shard or in all that have it in the archive."""
        month = wire.month_of_request(request.month)
        found: list[pb.Month] = []
        for catalog in self._of(request.shard):
            there = catalog.until(call.deadline)
            await there.check_month(month, call.subject.name)
            view = await self._view(there, month)
            if view is not None and view.committed_at is not None:
                found.append(wire.month(catalog.shard, view))
        if not found:
            raise MonthNotFound(month=request.month)
        return pb.VerifyMonthResponse(months=found)

    async def EraseUser(self, request: pb.EraseUserRequest, call: rpc.Call) -> pb.EraseUserResponse:
        """Note that a user is to be erased, in one shard or in all; say how far it is."""
        asked = wire.erase(request)
        found = []
        await self._must_be_free(asked.shard, asked.user_id, call.deadline)
        if request.validate_only:
            return await self._foreseen(asked, call.deadline)
        for catalog in self._of(asked.shard):
            erasure_id = id_in(asked.request_id, catalog.shard)
            erasure = await catalog.until(call.deadline).want_erasure(
                erasure_id, asked.user_id, call.subject.name, asked.reason
            )
            if erasure.user_id != asked.user_id:
                raise InvalidField.of("request_id", "was used for another user")
            found.append(wire.erased(catalog.shard, erasure))
        return pb.EraseUserResponse(shards=found)

    async def AmendOrder(self, request: pb.AmendOrderRequest, call: rpc.Call) -> pb.AmendOrderResponse:
        """Note what was found out about an archived order, in the shard whose archive has it."""
        asked = wire.amend(request)
        if self._objects is None:
            raise StorageUnavailable
        for shard, amender in self._amenders.items():
            found = await amender.amend(asked, id_in(asked.request_id, shard), call.subject.name)
            if found is not None:
                return pb.AmendOrderResponse(
                    shard=found.shard, status=found.status, amendment_count=found.amendments
                )
        raise ArchivedOrderNotFound(order_id=request.order_id)

    async def SweepStrays(self, request: pb.SweepStraysRequest, call: rpc.Call) -> pb.SweepStraysResponse:
        """Note that strays are to be looked for, in one shard or in all; say how far it is."""
        asked = wire.sweep(request)
        if self._objects is None:
            raise StorageUnavailable
        found = []
        for catalog in self._of(asked.shard):
            sweeps = self._sweeps[catalog.shard].until(call.deadline)
            sweep = await sweeps.want(
                id_in(asked.request_id, catalog.shard), call.subject.name, asked.reason, deletes=asked.deletes
            )
            if sweep.deletes != asked.deletes:
                raise InvalidField.of("request_id", "was used for another wish")
            strays = await sweeps.strays_of(sweep.sweep_id, wire.STRAYS_MAX)
            found.append(wire.swept(catalog.shard, sweep, strays))
        return pb.SweepStraysResponse(shards=found)

    async def PutLegalHold(self, request: pb.PutLegalHoldRequest, call: rpc.Call) -> pb.PutLegalHoldResponse:
        """Keep a user or a month from being deleted, on one shard or on all."""
        asked = wire.legal_hold(request)
        found = []
        for holds in self._holds_of(asked.shard, call.deadline):
            hold = await holds.put(asked.user_id, asked.month, call.subject.name, asked.reason)
            found.append(wire.held(holds.shard, hold))
        return pb.PutLegalHoldResponse(holds=found)

    async def LiftLegalHold(
        self, request: pb.LiftLegalHoldRequest, call: rpc.Call
    ) -> pb.LiftLegalHoldResponse:
        """Let a user or a month go again, on one shard or on all."""
        asked = wire.legal_hold(request)
        found = []
        for holds in self._holds_of(asked.shard, call.deadline):
            hold = await holds.lift(asked.user_id, asked.month, call.subject.name, asked.reason)
            if hold is not None:
                found.append(wire.held(holds.shard, hold))
        return pb.LiftLegalHoldResponse(holds=found)

    async def ListLegalHolds(
        self, request: pb.ListLegalHoldsRequest, call: rpc.Call
    ) -> pb.ListLegalHoldsResponse:
        """Say what is kept, and what was."""
        found = [
            wire.held(holds.shard, hold)
            for holds in self._holds_of(request.shard, call.deadline)
            for hold in await holds.listed()
        ]
        return pb.ListLegalHoldsResponse(holds=found)

    async def RebuildCatalog(
        self, request: pb.RebuildCatalogRequest, call: rpc.Call
    ) -> pb.RebuildCatalogResponse:
        """Make a lost catalog again of the manifests in S3."""
        if wrong := [*wire.why(request.reason)]:
            raise InvalidField(*wrong)
        if not request.shard:
            raise InvalidField.of("shard", "must be the name of a shard")
        catalog = self._of(request.shard)[0]
        if self._objects is None:
            raise StorageUnavailable
        rebuilder = Rebuilder(catalog.until(call.deadline), self._objects, self._pacing.grace)
        try:
            rebuilt = await rebuilder.rebuild(call.subject.name, request.reason, replaces=request.replace)
            amendments = await rebuilder.amendments()
        except S3Error as failed:
            raise StorageUnavailable from failed
        return pb.RebuildCatalogResponse(
            months=[
                pb.RebuildCatalogResponse.Found(month=r.month, reason=r.because, replaceable=r.is_replaceable)
                for r in rebuilt
            ],
            amendment_count=amendments.noted,
            unreadable_amendments=amendments.unreadable,
        )

    async def HaltArchive(self, request: pb.HaltArchiveRequest, call: rpc.Call) -> pb.HaltArchiveResponse:
        """Set the kill switch of one shard or of all."""
        if wrong := [*wire.why(request.reason)]:
            raise InvalidField(*wrong)
        for catalog in self._of(request.shard):
            await catalog.until(call.deadline).halt(request.halted, call.subject.name, request.reason)
        return pb.HaltArchiveResponse()

    async def _foreseen(self, asked: wire.Erase, deadline: float) -> pb.EraseUserResponse:
        """What an erasure would take out. Raises: StorageUnavailable."""
        found = []
        for catalog in self._of(asked.shard):
            if catalog.shard not in self._amenders:
                raise StorageUnavailable
            reader = self._amenders[catalog.shard].reader
            months = await foreseen(catalog.until(deadline), reader, asked.user_id)
            found.append(wire.foreseen(catalog.shard, months))
        return pb.EraseUserResponse(shards=found)

    async def _must_be_free(self, shard: str, user_id: str, deadline: float) -> None:
        """See that no shard has a legal hold of a user, before anything begins. Raises: LegalHold."""
        for catalog in self._of(shard):
            if held := await catalog.until(deadline).legal_hold(user_id=user_id):
                raise LegalHold(shard=catalog.shard, hold=held)

    def _holds_of(self, shard: str, deadline: float) -> list[Holds]:
        """The legal holds of one shard, or of all. Raises: UnknownShard."""
        return [self._holds[catalog.shard].until(deadline) for catalog in self._of(shard)]

    async def _listed(self, shard: str, deadline: float) -> pb.ListMonthsResponse.Shard | None:
        """One shard's months; None when it does not answer, or a month of it is locked just now."""
        catalog = self._catalogs[shard].until(deadline)
        try:
            totals = await self._sweeps[shard].until(deadline).totals()
            control = await catalog.control()
            ripe = ripe_until(control.at, self._pacing.months_min, self._pacing.days_min)
            months, floor = await catalog.overview(ripe), await catalog.floor()
            return wire.shard(shard, control, totals, floor, months, self._pacing.part_bytes)
        except (Contended, DeadlineExceeded, Overloaded, ShardUnavailable):
            return None

    async def _see_youngest(self, catalog: Catalog, month: date) -> None:
        """See that no younger month stays in the archive when this one comes back.

        Raises: YoungerMonthFirst.
        """
        views = await self._overview(catalog)
        if any(view.month == month and view.committed_at is not None for view in views):
            younger = [view.month for view in views if view.month > month and view.committed_at is not None]
            if younger:
                raise YoungerMonthFirst(
                    shard=catalog.shard, month=f"{month:%Y-%m}", first=f"{max(younger):%Y-%m}"
                )

    async def _see_way(self, catalog: Catalog, view: MonthView, reach: State, *, may_stay: bool) -> None:
        """See that a wish leads a month somewhere, and leaves no hole in lists.

        Raises: YoungerMonthFirst; as `Catalog.course`.
        """
        if may_stay and never_left(view.state, reach):
            return
        if reach is State.RESTORED:
            await self._see_youngest(catalog, view.month)
        catalog.course(view.month, view.state, reach)

    async def _view(self, catalog: Catalog, month: date) -> MonthView | None:
        return next((view for view in await self._overview(catalog) if view.month == month), None)

    async def _overview(self, catalog: Catalog) -> Sequence[MonthView]:
        control = await catalog.control()
        ripe = ripe_until(control.at, self._pacing.months_min, self._pacing.days_min)
        return await catalog.overview(ripe)

    def _of(self, shard: str) -> list[Catalog]:
        """The catalog of one shard, or all. Raises: UnknownShard."""
        if not shard:
            return list(self._catalogs.values())
        if shard not in self._catalogs:
            raise UnknownShard(shard=shard)
        return [self._catalogs[shard]]


def id_in(request_id: UUID, shard: str) -> UUID:
    """What a wish begins in one shard; the same for the same wish."""
    return uuid5(request_id, shard)
