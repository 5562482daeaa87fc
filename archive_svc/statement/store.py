"""Statements on one shard: what is asked for, who makes it, and what came of it.

Every change by a worker names the fence of its turn; under an older one nothing is written, and TurnLost says
so.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from archive_svc.errors import TurnLost
from archive_svc.statement.amendments import Amendments
from archive_svc.statement.places import packed, see_owned, unpacked
from archive_svc.statement.wish import Progress, Total, Wanted
from chassis import pg
from chassis.s3 import Stored
from chassis.store_spans import traced

if TYPE_CHECKING:
    from collections.abc import Sequence
    from datetime import date, datetime, timedelta
    from uuid import UUID

    from archive_svc.statement.asking import Ask, Limits
    from archive_svc.statement.places import Places
    from archive_svc.statement.wish import Bundle
    from chassis.placement import Held

QUERIES = pg.queries("archive_svc.statement", "statements.sql")
RUNNING = frozenset({"WAITING", "PLANNING", "READING", "RENDERING", "STORING"})
SCHEMA = 2
"""Of the documents; another one makes another file of the same wish."""
SWEEP_MAX = 100


@dataclass(frozen=True, slots=True)
class Failure:
    """Why a statement failed, or waits for another try. code: gRPC's number."""

    code: int
    reason: str
    message: str


@dataclass(frozen=True, slots=True)
class Statement:
    """One statement as its row says it.

    state: as in the proto. fence: the number of the turn that made it so; attempts: turns since it was asked.
    stored: the file, while it is READY. failure: of a FAILED one. mail: WAITING, SENT, DEAD; empty before.
    """

    wanted: Wanted
    first_day: date
    last_day: date
    state: str
    progress: Progress
    fence: int
    attempts: int
    stored: Stored | None
    totals: tuple[Total, ...]
    pdf_note: str
    failure: Failure
    mail: str
    created_at: datetime
    ended_at: datetime | None
    expires_at: datetime | None

    @property
    def is_running(self) -> bool:
        """Whether something is still to happen."""
        return self.state in RUNNING


@dataclass(frozen=True, slots=True)
class Verdict:
    """What became of a request. retry_s: when to come back, of RUNNING and LIMIT."""

    said: str
    statement_id: UUID | None
    retry_s: float


@dataclass(frozen=True, slots=True)
class Leftover:
    """A statement that is over.

    fence: of its last turn; only older files go. stays: the key of its file. failures: tries to clean it.
    """

    statement_id: UUID
    fence: int
    stays: str
    failures: int = 0


@traced
class StatementStore:
    """The statements of one shard. Every method raises what chassis.pg raises."""

    def __init__(self, shard: str, database: pg.Database) -> None:
        self.shard = shard
        self._database = database

    def until(self, deadline: float) -> StatementStore:
        """The same statements for one call: nothing is waited for after its deadline."""
        return StatementStore(self.shard, self._database.until(deadline))

    async def check(self, held: Sequence[Held]) -> None:
        """See that this shard has these buckets, as the proxy knows them. Raises: StaleRoute."""
        await see_owned(self._database, held)

    async def archive_bytes_of(self, user_id: str, since: datetime, until: datetime) -> int:
        """About how much of the archive would be read."""
        size: int = await self._database.fetchval(QUERIES.archive_bytes_of, user_id, since, until)
        return size

    async def amendments_of(self, user_id: str, since: datetime, until: datetime) -> Amendments:
        """The amendments that a statement of this period would tell of this shard's orders."""
        row = await self._database.fetchrow(QUERIES.amendments_of, user_id, since, until)
        assert row is not None, "an aggregate has a row"
        return Amendments(**row)

    async def request(
        self,
        statement_id: UUID,
        ask: Ask,
        placements: Places,
        actor: str,
        limits: Limits,
        amendments: Amendments,
        *,
        is_large: bool = False,
    ) -> Verdict:
        """Begin a statement, or find the one that is meant. Idempotent by the request's id.

        amendments: of all shards; one that was made before these were may be told as well.
        is_large:   whether workers that keep to small ones leave it.
        If cancelled here: it may have begun.
        """
        row = await self._database.fetchrow(
            QUERIES.request,
            statement_id,
            ask.user_id,
            ask.request_id,
            ask.first_day,
            ask.last_day,
            ask.time_zone,
            ask.locale,
            list(ask.formats),
            ask.since,
            ask.until,
            packed(placements),
            SCHEMA,
            actor,
            limits.day_max,
            limits.month_max,
            amendments.mark(),
            is_large,
        )
        assert row is not None, "a function returns one row"
        return Verdict(row["verdict"], row["statement"], row["retry_s"] or 0.0)

    async def statement(self, user_id: str, statement_id: UUID) -> Statement | None:
        """One statement of a user."""
        row = await self._database.fetchrow(QUERIES.statement, user_id, statement_id)
        return None if row is None else _statement(row)

    async def statements_of(self, user_id: str, after: tuple[datetime, UUID], limit: int) -> list[Statement]:
        """A page, the newest first."""
        rows = await self._database.fetch(QUERIES.statements_of, user_id, *after, limit)
        return [_statement(row) for row in rows]

    async def cancel(self, user_id: str, statement_id: UUID) -> None:
        """End a statement that is not ready; one that is stays. Idempotent."""
        await self._database.execute(QUERIES.cancel, user_id, statement_id)

    async def claim(self, holder: str, lease: timedelta, *, only_small: bool = False) -> Statement | None:
        """Take the turn at the oldest one that nobody makes; of the small ones, if that is said."""
        row = await self._database.fetchrow(QUERIES.claim, holder, lease, only_small)
        return None if row is None else _statement(row)

    async def keep(self, mine: Statement, lease: timedelta) -> None:
        """Keep the turn. Raises: TurnLost, also when the statement was cancelled."""
        _must(await self._database.fetchval(QUERIES.keep, *_turn(mine), lease))

    async def progress(self, mine: Statement, state: str, so_far: Progress, lease: timedelta) -> None:
        """Note where it stands, and keep the turn. Raises: TurnLost."""
        _must(
            await self._database.fetchval(
                QUERIES.progress,
                *_turn(mine),
                state,
                so_far.months,
                so_far.months_in_all,
                so_far.rows,
                so_far.archive_bytes,
                lease,
            )
        )

    async def re_place(self, mine: Statement, placements: Places) -> None:
        """Note where the user's orders are by now. Raises: TurnLost."""
        _must(await self._database.fetchval(QUERIES.re_place, *_turn(mine), packed(placements)))

    async def ready(
        self, mine: Statement, stored: Stored, made: Bundle, *, kept: timedelta, mailed: timedelta
    ) -> None:
        """Note that its file is stored, and that a mail is to say so. Raises: TurnLost; then neither is."""
        _must(
            await self._database.fetchval(
                QUERIES.ready,
                *_turn(mine),
                stored.key,
                stored.version_id,
                stored.etag,
                made.size_bytes,
                made.sha256,
                made.orders,
                [[each.currency, each.status, each.orders, str(each.amount_minor)] for each in made.totals],
                made.pdf_note,
                kept,
                mailed,
            )
        )

    async def put_off(self, mine: Statement, pause: timedelta, why: Failure) -> None:
        """Let it be tried again later. Raises: TurnLost."""
        _must(
            await self._database.fetchval(
                QUERIES.put_off, *_turn(mine), pause, why.code, why.reason, why.message
            )
        )

    async def give_back(self, mine: Statement) -> None:
        """Let another worker begin at once. Raises: TurnLost."""
        _must(await self._database.fetchval(QUERIES.give_back, *_turn(mine)))

    async def leave(self, mine: Statement) -> None:
        """Leave it, as it is large, to workers that make such. Raises: TurnLost."""
        _must(await self._database.fetchval(QUERIES.leave, *_turn(mine)))

    async def fail(self, mine: Statement, why: Failure) -> None:
        """Give it up. Raises: TurnLost."""
        _must(await self._database.fetchval(QUERIES.fail, *_turn(mine), why.code, why.reason, why.message))

    async def expire(self) -> int:
        """Let those go whose time is over; how many."""
        late: int = await self._database.fetchval(QUERIES.expire, SWEEP_MAX)
        return late

    async def unclean(self, after: timedelta) -> list[Leftover]:
        """Ended statements of which objects may be left."""
        rows = await self._database.fetch(QUERIES.unclean, after, SWEEP_MAX)
        return [Leftover(**row) for row in rows]

    async def cleaned(self, left: Leftover) -> None:
        """Note that nothing is left of it but what stays; not when it was begun again meanwhile."""
        await self._database.execute(QUERIES.cleaned, left.statement_id, left.fence, left.stays)

    async def not_cleaned(self, left: Leftover, pause: timedelta) -> None:
        """Let one wait of which something could not go."""
        await self._database.execute(QUERIES.not_cleaned, left.statement_id, pause)

    async def made_until(self) -> datetime:
        """Every statement that was asked for before this instant is over."""
        at: datetime = await self._database.fetchval(QUERIES.made_until)
        return at

    async def counts(self) -> dict[str, int]:
        """How many of those that are being made are where."""
        return {row["state"]: row["statements"] for row in await self._database.fetch(QUERIES.counts)}


def _must(still_mine: bool | None) -> None:
    if not still_mine:
        raise TurnLost


def _turn(mine: Statement) -> tuple[UUID, int]:
    return mine.wanted.statement_id, mine.fence


def _statement(row: Any) -> Statement:
    wanted = Wanted(
        statement_id=row["statement_id"],
        user_id=row["user_id"],
        placements=unpacked(row["placements"]),
        since=row["since"],
        until=row["until"],
        time_zone=row["time_zone"],
        locale=row["locale"],
        formats=tuple(row["formats"]),
        as_of=row["as_of"],
    )
    stored = Stored(
        row["object_key"], row["size_bytes"], row["object_etag"], row["object_version"], row["sha256"]
    )
    return Statement(
        wanted=wanted,
        first_day=row["first_day"],
        last_day=row["last_day"],
        state=row["state"],
        progress=Progress(row["read_months"], row["months"], row["read_orders"], row["archive_bytes"]),
        fence=row["fence"],
        attempts=row["attempts"],
        stored=stored if row["state"] == "READY" else None,
        totals=tuple(
            Total(currency, status, orders, int(amount)) for currency, status, orders, amount in row["totals"]
        ),
        pdf_note=row["pdf_note"],
        failure=Failure(row["error_code"], row["error_reason"], row["error_message"]),
        mail=row["mail"] or "",
        created_at=row["created_at"],
        ended_at=row["ended_at"],
        expires_at=row["expires_at"],
    )
