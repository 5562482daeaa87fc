"""The handlers of StatementService: proto -> the shard of the user's hashed bucket -> proto.

Where a user's statements are never changes: by the hash alone, whatever bucket the user's orders go to.
"""

from __future__ import annotations

import asyncio
from datetime import timedelta
from typing import TYPE_CHECKING
from uuid import UUID, uuid4

from archive_svc.errors import (
    RequestIdReused,
    StatementLimit,
    StatementNotFound,
    StatementNotReady,
    StatementRunning,
    StatementTooLarge,
)
from archive_svc.statement import asking, wire
from archive_svc.statement.amendments import Amendments
from chassis.errors import PlacementMissing, ShardUnavailable
from chassis.ids import parse_user_id, parse_uuid, user_bucket
from chassis.placement import placement_of
from ordermesh.archive.v1 import statement_service_pb2 as pb

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from datetime import datetime

    from google.longrunning import operations_pb2

    from archive_svc.statement.asking import Ask, Limits
    from archive_svc.statement.deadmails import DeadMails
    from archive_svc.statement.store import Statement, StatementStore, Verdict
    from archive_svc.statement.wakes import Wakes
    from chassis import rpc
    from chassis.auth import Subject
    from chassis.clock import Clock
    from chassis.placement import Held
    from chassis.s3 import ObjectStore
    from chassis.tokens import PageTokens

LINK_S = 300
ZIP = "application/zip"
MARGIN_S = 0.2
"""Left of a call's time when its wait ends, for the answer."""
LOOK_S = 0.5
LOOK_AGAIN_S = 2.0
"""When whoever wants a file that is being made may ask once more."""
WAITS_MAX = 256
"""Calls that wait at once; more are answered as things stand."""


class StatementService:
    """Implements ordermesh.archive.v1.StatementService. stores: by shard."""

    def __init__(
        self,
        stores: Mapping[str, StatementStore],
        dead_mails: DeadMails,
        objects: ObjectStore,
        limits: Limits,
        tokens: PageTokens,
        wakes: Wakes,
        clock: Clock,
    ) -> None:
        self._stores = stores
        self._dead_mails = dead_mails
        self._objects = objects
        self._limits = limits
        self._tokens = tokens
        self._wakes = wakes
        self._clock = clock
        self._waits = 0

    async def RequestStatement(
        self, request: pb.RequestStatementRequest, call: rpc.Call
    ) -> operations_pb2.Operation:
        """Begin a statement, or find the one that is meant."""
        user_id = _own(request.user_id, call.subject)
        request_id = parse_uuid(request.request_id, field_name="request_id")
        ask = asking.ask(user_id, request_id, wire.wish(request.wish), self._limits)
        placement = placement_of(call.metadata)
        home = self._home(user_id, placement).until(call.deadline)
        size, amendments = await self._check(placement, ask, call.deadline)
        is_large = size >= self._limits.large_bytes
        verdict = await home.request(
            uuid4(), ask, placement, call.subject.name, self._limits, amendments, is_large=is_large
        )
        _refuse(verdict)
        assert verdict.statement_id is not None, "only refusals name none"
        self._wakes.wake(home.shard)
        statement = await _found(home, user_id, verdict.statement_id)
        return wire.operation(statement, was_there=verdict.said == "SAME")

    async def WaitStatement(
        self, request: pb.WaitStatementRequest, call: rpc.Call
    ) -> operations_pb2.Operation:
        """Show a statement, after a while when it is not over yet."""
        user_id, statement_id, home = self._meant(request, call)
        wait_s = min(wire.wait_s(request), call.time_remaining() - MARGIN_S)
        return wire.operation(await self._over(home, user_id, statement_id, wait_s))

    async def CancelStatement(
        self, request: pb.CancelStatementRequest, call: rpc.Call
    ) -> operations_pb2.Operation:
        """End a statement that is not ready."""
        user_id, statement_id, home = self._meant(request, call)
        await home.cancel(user_id, statement_id)
        return wire.operation(await _found(home, user_id, statement_id))

    async def ListStatements(
        self, request: pb.ListStatementsRequest, call: rpc.Call
    ) -> pb.ListStatementsResponse:
        """List a user's statements."""
        user_id, size = _own(request.user_id, call.subject), wire.page_size(request)
        query = f"statements of {user_id}"
        after = self._after(request.page_token, query)
        home = self._home(user_id, placement_of(call.metadata)).until(call.deadline)
        found = await home.statements_of(user_id, after, size + 1)
        page = found[:size]
        return pb.ListStatementsResponse(
            operations=[wire.operation(each) for each in page],
            next_page_token=self._next(page[-1].created_at, page[-1].wanted.statement_id, query)
            if len(found) > size
            else "",
        )

    async def LinkStatement(
        self, request: pb.LinkStatementRequest, call: rpc.Call
    ) -> pb.LinkStatementResponse:
        """Let whoever has the answer fetch the file, for some minutes."""
        user_id, statement_id, home = self._meant(request, call)
        statement = await _found(home, user_id, statement_id)
        left_s = self._left_s(statement)
        if statement.stored is None or left_s < 1:
            raise _not_ready(statement)
        valid_s, filename = min(LINK_S, left_s), wire.filename(statement)
        url = await self._objects.link(statement.stored, valid_s=valid_s, filename=filename, content_type=ZIP)
        return pb.LinkStatementResponse(
            url=url,
            expire_time=wire.stamp(self._clock.now() + timedelta(seconds=valid_s)),
            filename=filename,
        )

    async def ListDeadMails(
        self, request: pb.ListDeadMailsRequest, call: rpc.Call
    ) -> pb.ListDeadMailsResponse:
        """List the mails that were given up, of everybody."""
        size, query = wire.page_size(request), f"dead mails of {request.shard}"
        after = self._after(request.page_token, query)
        found = await self._dead_mails.page(request.shard, after, size + 1, call.deadline)
        page = found.mails[:size]
        answer = pb.ListDeadMailsResponse(
            mails=[wire.mail(shard, told) for shard, told in page],
            unreachable=[f"shards/{shard}" for shard in found.unreachable],
        )
        if len(found.mails) > size:
            last = page[-1][1]
            assert last.ended_at is not None, "it was given up"
            answer.next_page_token = self._next(last.ended_at, last.statement_id, query)
        return answer

    async def RetryMail(self, request: pb.RetryMailRequest, call: rpc.Call) -> pb.RetryMailResponse:
        """Have a mail sent again that was given up."""
        wish = wire.retry(request, call.subject.name)
        shard, told = await self._dead_mails.retry(wish, call.deadline)
        return pb.RetryMailResponse(mail=wire.mail(shard, told))

    def _after(self, token: str, query: str) -> tuple[datetime, UUID]:
        """Where a page begins. Raises: PageTokenInvalid."""
        if not token:
            return self._clock.now() + timedelta(days=1), UUID(int=0)
        return wire.unpack(self._tokens.open(token, query))

    def _next(self, at: datetime, statement_id: UUID, query: str) -> str:
        return self._tokens.seal(wire.pack(at, statement_id), query)

    async def _check(
        self, placement: Mapping[str, Sequence[Held]], ask: Ask, deadline: float
    ) -> tuple[int, Amendments]:
        """See that the user's orders are where the proxy says, and not too many; about how many bytes of the
        archive they take, and their amendments.

        Raises: StaleRoute, ShardUnavailable, StatementTooLarge.
        """
        stores = {shard: self._of(shard).until(deadline) for shard in placement}
        await asyncio.gather(*(stores[shard].check(held) for shard, held in placement.items()))
        sizes = await asyncio.gather(
            *(store.archive_bytes_of(ask.user_id, ask.since, ask.until) for store in stores.values())
        )
        if sum(sizes) > self._limits.bytes_max:
            raise StatementTooLarge(bytes=sum(sizes), bytes_max=self._limits.bytes_max)
        found = await asyncio.gather(
            *(store.amendments_of(ask.user_id, ask.since, ask.until) for store in stores.values())
        )
        return sum(sizes), Amendments.of_all(found)

    async def _over(self, home: StatementStore, user_id: str, statement_id: UUID, wait_s: float) -> Statement:
        """A statement once it is over, or as it is when the wait is."""
        end = self._clock.monotonic() + wait_s
        statement = await _found(home, user_id, statement_id)
        if self._waits >= WAITS_MAX:
            return statement
        self._waits += 1
        try:
            while statement.is_running and (left_s := end - self._clock.monotonic()) > 0:
                await self._clock.sleep(min(LOOK_S, left_s))
                statement = await _found(home, user_id, statement_id)
        finally:
            self._waits -= 1
        return statement

    def _left_s(self, statement: Statement) -> int:
        """How long a file is still kept."""
        if statement.expires_at is None:
            return 0
        return int((statement.expires_at - self._clock.now()).total_seconds())

    def _meant(self, request: object, call: rpc.Call) -> tuple[str, UUID, StatementStore]:
        user_id, statement_id = wire.whose(request)
        call.subject.must_own(user_id)
        return user_id, statement_id, self._home(user_id, placement_of(call.metadata)).until(call.deadline)

    def _home(self, user_id: str, placement: Mapping[str, Sequence[Held]]) -> StatementStore:
        """Where a user's statements are. Raises: PlacementMissing, ShardUnavailable."""
        bucket = user_bucket(user_id)
        for shard, held in placement.items():
            if any(one.bucket == bucket for one in held):
                return self._of(shard)
        raise PlacementMissing

    def _of(self, shard: str) -> StatementStore:
        if shard not in self._stores:
            raise ShardUnavailable(shard=shard)
        return self._stores[shard]


async def _found(home: StatementStore, user_id: str, statement_id: UUID) -> Statement:
    """A statement of a user. Raises: StatementNotFound."""
    statement = await home.statement(user_id, statement_id)
    if statement is None:
        raise StatementNotFound
    return statement


def _not_ready(statement: Statement) -> StatementNotReady:
    """Why there is no file: one whose time is over is gone, whether or not anybody wrote that down."""
    if statement.is_running:
        return StatementNotReady(statement.state, LOOK_AGAIN_S)
    return StatementNotReady("EXPIRED" if statement.state == "READY" else statement.state)


def _own(user_id: str, subject: Subject) -> str:
    """The user, of whom the subject may ask. Raises: InvalidField, NotYourOrder."""
    checked = parse_user_id(user_id)
    subject.must_own(checked)
    return checked


def _refuse(verdict: Verdict) -> None:
    """Raise what a request was refused with, if it was."""
    if verdict.said == "REUSED":
        raise RequestIdReused
    if verdict.said == "FUTURE":
        raise wire.future("wish.first_day")
    if verdict.said == "RUNNING":
        raise StatementRunning(verdict.retry_s)
    if verdict.said == "LIMIT":
        raise StatementLimit(verdict.retry_s)
