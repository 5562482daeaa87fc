"""The archive's catalog on one shard: what may be believed about its months, and who may change it.

Every change names the fence under which it is made and does nothing under an older one: then it raises
LeaseLost, and whoever made it stops at once.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from archive_svc.entries import (
    CataloguedSegment,
    Control,
    Erasure,
    Hanging,
    MonthView,
    Part,
    erasure_of,
    month_of,
    part_of,
    segment_of,
    view_of,
)
from archive_svc.errors import LeaseLost, MonthAhead, MonthComesBack, MonthCommitted, MonthInTables
from archive_svc.lifecycle import Course, Month, Refusal, State, course, never_left
from archive_svc.segment import Facts, Sum
from chassis import pg
from chassis.errors import Contended, InvalidField
from chassis.ids import id_time
from chassis.s3 import Stored
from chassis.store_spans import traced

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping, Sequence
    from datetime import date, datetime, timedelta
    from uuid import UUID

    from archive_svc.amendment import Noted
    from archive_svc.columns import Shape
    from chassis.errors import OrdermeshError

QUERIES = pg.queries("archive_svc", "catalog.sql")
WANTS_MAX = 5
"""Tries to ask for a month that goes on meanwhile."""
REFUSALS: Mapping[Refusal, type[OrdermeshError]] = {
    Refusal.IN_TABLES: MonthInTables,
    Refusal.COMMITTED: MonthCommitted,
    Refusal.PAST: MonthAhead,
    Refusal.COMES_BACK: MonthComesBack,
}
PLAN_S_MAX = 1800.0
"""Cutting or proving a month reads all of it."""


@traced
class Catalog:
    """The catalog of one shard. Every method raises what chassis.pg raises."""

    def __init__(self, shard: str, database: pg.Database) -> None:
        self.shard = shard
        self._database = database

    def until(self, deadline: float) -> Catalog:
        """The same catalog for one call: nothing is waited for after its deadline."""
        return Catalog(self.shard, self._database.until(deadline))

    async def take_lease(self, holder: str, lease: timedelta) -> int | None:
        """The fence under which this holder archives the shard now; None while somebody else does."""
        fence: int | None = await self._database.fetchval(QUERIES.take_lease, holder, lease)
        return fence

    async def renew_lease(self, fence: int, lease: timedelta) -> None:
        """Keep the shard. Raises: LeaseLost."""
        await self._must(await self._database.fetchval(QUERIES.renew_lease, fence, lease))

    async def give_lease_back(self, fence: int) -> None:
        """Let the next one begin at once."""
        await self._database.execute(QUERIES.give_lease_back, fence)

    async def control(self) -> Control:
        """Who has the shard, and the kill switch."""
        row = await self._database.fetchrow(QUERIES.control)
        assert row is not None, "the migration wrote it"
        return Control(**row)

    async def halt(self, is_halted: bool, actor: str, reason: str) -> None:
        """Set the kill switch: from then on no step changes a table. Idempotent."""
        await self._database.execute(QUERIES.halt, is_halted, actor, reason)

    async def months(self) -> list[Month]:
        """Every month that was ever asked for, the oldest first."""
        return [month_of(row) for row in await self._database.fetch(QUERIES.months)]

    async def overview(self, ripe_until: datetime) -> list[MonthView]:
        """Every month that the shard has or had, the oldest first."""
        return [view_of(row) for row in await self._database.fetch(QUERIES.overview, ripe_until)]

    async def floor(self) -> datetime | None:
        """Before this instant lists are not answered from the tables; None when nothing is archived."""
        at: datetime | None = await self._database.fetchval(QUERIES.floor)
        return at

    async def knows(self, request_id: UUID, month: date, reach: State) -> bool:
        """Whether a request was made here before. Raises: InvalidField when it was for another wish."""
        row = await self._database.fetchrow(QUERIES.wish, request_id)
        if row is not None and (row["month"], row["reach"]) != (month, reach):
            raise _reused()
        return row is not None

    def course(self, month: date, state: State | None, reach: State) -> Course:
        """What a wish does to a month. Raises: `REFUSALS` when it would lead nowhere."""
        said = course(state, reach)
        if isinstance(said, Refusal):
            raise REFUSALS[said](
                shard=self.shard, month=f"{month:%Y-%m}", state=state or "HOT", reach=reach.value
            )
        return said

    async def want(
        self,
        month: date,
        archive_id: UUID,
        reach: State,
        actor: str,
        reason: str,
        *,
        request_id: UUID | None = None,
        may_stay: bool = False,
    ) -> None:
        """Ask for a month to be somewhere; one that goes already is only told how far. Idempotent by the id.

        request_id: None when nobody asks again. may_stay: one that is in its tables is not to come back.
        Raises: as `course`, and nothing is changed then; InvalidField when the id was of another wish;
        Contended when the month moves again and again meanwhile.
        """
        for _ in range(WANTS_MAX):
            if request_id is not None and await self.knows(request_id, month, reach):
                return
            seen = await self._database.fetchval(QUERIES.state_of, month)
            state = None if seen is None else State(seen)
            stays = may_stay and never_left(state, reach)
            stays = stays or self.course(month, state, reach) is Course.STAY
            said = await self._database.fetchval(
                QUERIES.want, request_id, month, archive_id, reach, seen, stays, actor, reason
            )
            if said == "REUSED":
                raise _reused()
            if said != "MOVED":
                return
        raise Contended(shard=self.shard)

    async def freeze(self, month: Month, fence: int, ripe_until: datetime) -> tuple[str, ...]:
        """Stop changes of a month; why not, or nothing. Raises: LeaseLost; Contended while it is written."""
        return self._blockers(await self._database.fetchval(QUERIES.freeze, month.month, fence, ripe_until))

    async def thaw(self, month: Month, fence: int) -> None:
        """Let changes of a month happen again. Raises: LeaseLost, also when its copy is read by now."""
        await self._must(await self._database.fetchval(QUERIES.thaw, month.month, fence))

    async def is_searchable(self, at: datetime) -> bool:
        """Whether the read model has everything that happened before an instant."""
        return bool(await self._database.fetchval(QUERIES.is_searchable, at))

    async def plan(self, month: Month, fence: int, part_bytes: int) -> int:
        """Cut a frozen month into parts; how many, -1 while a request of it may still be repeated.

        Raises: LeaseLost.
        """
        planned: int | None = await self._database.fetchval(
            QUERIES.plan, month.month, fence, part_bytes, timeout_s=PLAN_S_MAX
        )
        if planned is None:
            raise LeaseLost(shard=self.shard)
        return planned

    async def move(self, month: Month, fence: int, to: State) -> None:
        """Note that a month is in its next state. Raises: LeaseLost."""
        await self._must(
            await self._database.fetchval(QUERIES.move, month.month, fence, month.state, to.value)
        )

    async def parts(self, archive_id: UUID) -> list[Part]:
        """In the order of their keys."""
        return [part_of(row) for row in await self._database.fetch(QUERIES.parts, archive_id)]

    async def segments(self, archive_id: UUID) -> list[CataloguedSegment]:
        """In the order of their keys, orders before journal."""
        return [segment_of(row) for row in await self._database.fetch(QUERIES.segments, archive_id)]

    async def add_segment(
        self, fence: int, archive_id: UUID, part: int, stored: Stored, facts: Facts
    ) -> None:
        """Note which object holds a part of a table. Raises: LeaseLost."""
        await self._must(
            await self._database.fetchval(
                QUERIES.add_segment,
                fence,
                archive_id,
                part,
                facts.table,
                stored.key,
                stored.version_id,
                stored.etag,
                stored.size_bytes,
                facts.sha256,
                facts.rows,
                facts.as_json(),
                stored.locked_until,
            )
        )

    async def forget_segment(self, fence: int, archive_id: UUID, segment: CataloguedSegment) -> None:
        """Have a segment that is damaged made anew, under another key. Raises: LeaseLost."""
        await self._must(
            await self._database.fetchval(
                QUERIES.forget_segment, fence, archive_id, segment.part, segment.table
            )
        )

    async def note_verified(
        self, fence: int, archive_id: UUID, segment: CataloguedSegment, enough_for: timedelta
    ) -> None:
        """Note that every byte was read and compared. Raises: LeaseLost."""
        await self._note(QUERIES.verified, fence, archive_id, segment, enough_for)

    async def due_check(self, last: Collection[str] = ()) -> tuple[date, UUID, CataloguedSegment] | None:
        """The segment to read once more, with its month and archive_id; None when none is due.

        last: keys of objects that come after all others.
        """
        row = await self._database.fetchrow(QUERIES.due_check, [*last])
        return None if row is None else (row["month"], row["archive_id"], segment_of(row))

    async def check_month(self, month: date, actor: str) -> None:
        """Let a month's segments be read once more now; one in quarantine is let go when all are whole."""
        await self._database.execute(QUERIES.check_month, month, actor)

    async def put_back(self, fence: int, archive_id: UUID, segment: CataloguedSegment) -> None:
        """Let another version of a segment's object count, of the same bytes. Raises: LeaseLost."""
        stored = segment.stored
        await self._note(QUERIES.put_back, fence, archive_id, segment, stored.version_id, stored.etag)

    async def note_manifest(self, fence: int, month: Month, stored: Stored) -> None:
        """Note where a month's manifest is now. Raises: LeaseLost."""
        said = (month.archive_id, stored.key, stored.version_id, stored.sha256)
        await self._must(await self._database.fetchval(QUERIES.note_manifest, fence, *said))

    async def release(self, fence: int) -> list[tuple[date, str]]:
        """Let months out of quarantine that are proven whole since somebody asked; which, and who asked."""
        return [(row["month"], row["actor"]) for row in await self._database.fetch(QUERIES.release, fence)]

    async def note_seen(self, fence: int, archive_id: UUID, segment: CataloguedSegment) -> None:
        """Note that the object is there as it was written. Raises: LeaseLost."""
        await self._note(QUERIES.seen, fence, archive_id, segment)

    async def _note(
        self, sql: str, fence: int, archive_id: UUID, segment: CataloguedSegment, *more: object
    ) -> None:
        await self._must(
            await self._database.fetchval(
                sql, fence, archive_id, segment.part, segment.table, segment.facts.sha256, *more
            )
        )

    async def sums(self, parts: Sequence[Part], shape: Shape) -> dict[int, tuple[Sum, ...]]:
        """What Postgres itself says of the rows of each part in a table, as a segment says it of its own."""
        if not parts:
            return {}
        by = ", ".join(f"t.{name}" for name in shape.sum_by)
        template: str = QUERIES.sums_by_part
        rows = await self._database.fetch(
            template.format(table=parts[0].table(shape), by=by, sums=shape.sums_list("t")),
            [part.until.user_id for part in parts],
            [part.until.created_at for part in parts],
            [part.until.order_id for part in parts],
            timeout_s=PLAN_S_MAX,
        )
        # Parts are numbered from 0. Rows beyond the last would have the next number.
        found: dict[int, list[Sum]] = {part.number: [] for part in parts}
        for number, *values, count, total in rows:
            found.setdefault(number, []).append(
                Sum(tuple(values), count, None if total is None else int(total))
            )
        return {number: tuple(sorted(sums)) for number, sums in found.items()}

    async def prove(self, month: Month, fence: int) -> tuple[str, ...]:
        """Note that every row is in a segment that was read back; why not, or nothing. Raises: LeaseLost."""
        return self._blockers(
            await self._database.fetchval(QUERIES.prove, month.month, fence, timeout_s=PLAN_S_MAX)
        )

    async def raise_edition(self, fence: int, month: Month, edition: int) -> None:
        """Number what a month's manifest says higher. Raises: LeaseLost, also when it has that number."""
        await self._must(
            await self._database.fetchval(QUERIES.raise_edition, fence, month.archive_id, edition)
        )

    async def commit(
        self, month: Month, fence: int, manifest: Stored, sha256: str, settle: timedelta
    ) -> tuple[str, ...]:
        """Turn readers to the copy; why not, or nothing. Raises: LeaseLost."""
        return self._blockers(
            await self._database.fetchval(
                QUERIES.commit, month.month, fence, manifest.key, manifest.version_id, sha256, settle
            )
        )

    async def hanging(self, month: Month) -> list[Hanging]:
        """The tables of a month that hang on their parents."""
        rows = await self._database.fetch(QUERIES.attached, month.orders_oid, month.journal_oid)
        return [Hanging(row["leaf"], row["parent"], row["is_pending"]) for row in rows]

    async def has_drifted(self, month: Month) -> bool:
        """Whether the tables of a month that is taken off are not what was proven. Reads all of them."""
        return bool(await self._database.fetchval(QUERIES.drifted, month.month, timeout_s=PLAN_S_MAX))

    async def part_with(self, month: Month, fence: int, grace: timedelta) -> None:
        """Note that the tables of a month stand alone. Raises: LeaseLost, also when they do not."""
        await self._must(await self._database.fetchval(QUERIES.part_with, month.month, fence, grace))

    async def drop(self, month: Month, fence: int) -> tuple[str, ...]:
        """Give the tables of a month up; why not, or nothing. Raises: LeaseLost."""
        return self._blockers(
            await self._database.fetchval(QUERIES.drop, month.month, fence, timeout_s=PLAN_S_MAX)
        )

    async def adopt(
        self,
        manifest: Mapping[str, Any],
        where: Stored,
        sha256: str,
        grace: timedelta,
        actor: str,
        reason: str,
        instead_of: str = "",
    ) -> bool:
        """Make the catalog of a month again of its manifest.

        False when the shard has or knows the month, or its tables stand as no step leaves them.
        instead_of: the manifest that its catalog shows now, to be replaced.
        """
        said = (manifest, where.key, where.version_id, sha256, grace, actor, reason)
        if instead_of:
            return bool(await self._database.fetchval(QUERIES.replace, *said, instead_of))
        return bool(await self._database.fetchval(QUERIES.adopt, *said))

    async def is_odd(self, month: date, begins_at: datetime) -> bool:
        """Whether the tables of a month stand as no step of the archive leaves them."""
        stand: str = await self._database.fetchval(QUERIES.tables_stand, month, begins_at)
        return stand == "ODD"

    async def adopt_amendment(self, noted: Noted) -> bool:
        """Note an amendment again; False when it is noted, or its user was erased since."""
        return bool(
            await self._database.fetchval(
                QUERIES.adopt_amendment,
                *(noted.amendment_id, noted.order_id, noted.user_id, id_time(noted.order_id), noted.note),
                *(dict(noted.changes), noted.actor, noted.reason, noted.amended_at),
            )
        )

    async def begin_restore(self, month: Month, fence: int) -> None:
        """Make the tables of a month that comes back, empty and alone. Raises: LeaseLost."""
        await self._must(await self._database.fetchval(QUERIES.begin_restore, month.month, fence))

    async def restore(self, month: Month, fence: int) -> tuple[str, ...]:
        """Turn readers back to the tables of a month; why not, or nothing. Raises: LeaseLost."""
        return self._blockers(
            await self._database.fetchval(QUERIES.restore, month.month, fence, timeout_s=PLAN_S_MAX)
        )

    async def tables_of(self, month: Month) -> dict[str, str]:
        """A month's tables as SQL writes them, by what they are a part of."""
        row = await self._database.fetchrow(QUERIES.table_names, month.orders_oid, month.journal_oid)
        assert row is not None
        return dict(row)

    async def want_erasure(self, erasure_id: UUID, user_id: str, actor: str, reason: str) -> Erasure:
        """Ask for a user's rows to be taken out; the wish as it is now. Idempotent by its id."""
        row = await self._database.fetchrow(QUERIES.want_erasure, erasure_id, user_id, actor, reason)
        assert row is not None
        return erasure_of(row)

    async def due_erasure(self) -> Erasure | None:
        """The oldest wish that is not carried out and does not wait."""
        row = await self._database.fetchrow(QUERIES.due_erasure)
        return None if row is None else erasure_of(row)

    async def segments_of(self, user_id: str) -> list[tuple[UUID, CataloguedSegment]]:
        """The segments that may hold a user's rows, with the archive_id of their copy, the oldest first."""
        rows = await self._database.fetch(QUERIES.segments_of, user_id)
        return [(row["archive_id"], segment_of(row)) for row in rows]

    async def frozen_with(self, user_id: str) -> list[date]:
        """The months with a user's orders that are being copied and not committed, the oldest first."""
        return [row["month"] for row in await self._database.fetch(QUERIES.frozen_with, user_id)]

    async def legal_hold(self, month: date | None = None, user_id: str | None = None) -> str:
        """Why nothing of a month, or of a user, may be deleted; empty when it may."""
        return await self._database.fetchval(QUERIES.legal_hold, month, user_id) or ""

    async def erased_months(self, erasure_id: UUID) -> list[UUID]:
        """The copies that an erasure took rows out of."""
        return [row["archive_id"] for row in await self._database.fetch(QUERIES.erased_months, erasure_id)]

    async def erased_until(self, erasure_id: UUID) -> datetime:
        """When an erasure last took something out of the archive, or was asked for."""
        at: datetime = await self._database.fetchval(QUERIES.erased_until, erasure_id)
        return at

    async def unname_bounds(self, fence: int, erasure: Erasure, archive_id: UUID) -> None:
        """Let no part of a copy begin or end at an order of a user who is erased. Idempotent."""
        await self._database.execute(QUERIES.unname_bounds, fence, archive_id, erasure.user_id)

    async def renew_manifest(self, fence: int, erasure: Erasure, archive_id: UUID, stored: Stored) -> None:
        """Note where a month's manifest is now. Raises: LeaseLost."""
        await self._must(
            await self._database.fetchval(
                QUERIES.renew_manifest,
                *(fence, erasure.erasure_id, archive_id, stored.key, stored.version_id, stored.sha256),
            )
        )

    async def give_up_copy(self, fence: int, erasure: Erasure, archive_id: UUID, note: str) -> bool:
        """Give the copy of a month up that readers read from the tables; False when it is none, or is held.

        Its manifest is left behind by the erasure; its segments are nobody's.
        """
        said = (fence, erasure.erasure_id, archive_id, note)
        return bool(await self._database.fetchval(QUERIES.give_up_copy, *said))

    async def leave_behind(self, fence: int, erasure: Erasure, there: Stored, month: str) -> None:
        """Let an object that nothing names go with an erasure. Raises: LeaseLost, also when it is named."""
        await self._must(
            await self._database.fetchval(
                QUERIES.leave_behind, fence, erasure.erasure_id, there.key, there.version_id, month
            )
        )

    async def left_behind(self, erasure_id: UUID) -> list[tuple[str, str]]:
        """Key and version of the objects that others took the place of and that are not deleted yet."""
        rows = await self._database.fetch(QUERIES.left_behind, erasure_id)
        return [(row["key"], row["version_id"]) for row in rows]

    async def note_deleted(self, fence: int, erasure: Erasure, key: str) -> None:
        """Note that an object is gone. Raises: LeaseLost."""
        await self._must(await self._database.fetchval(QUERIES.note_deleted, fence, erasure.erasure_id, key))

    async def defer_erasure(self, fence: int, erasure: Erasure, wait: timedelta, note: str) -> None:
        """Let an erasure wait, and say why. Raises: LeaseLost."""
        await self._must(
            await self._database.fetchval(QUERIES.defer_erasure, fence, erasure.erasure_id, wait, note)
        )

    async def erase_amendments(self, fence: int, user_id: str) -> dict[UUID, str]:
        """Delete a user's amendments; those that a legal hold keeps, with the hold. Raises: LeaseLost."""
        await self._must(await self._database.fetchval(QUERIES.erase_amendments, fence, user_id))
        kept = await self._database.fetch(QUERIES.kept_amendments, user_id)
        return {row["amendment_id"]: row["hold"] for row in kept}

    async def end_erasure(self, fence: int, erasure: Erasure) -> None:
        """Note that a user is erased. Raises: LeaseLost."""
        await self._must(await self._database.fetchval(QUERIES.end_erasure, fence, erasure.erasure_id))

    async def quarantine(self, month: Month, fence: int, why: str) -> None:
        """Let nothing be done to a month until a person says so. Raises: LeaseLost."""
        await self._must(await self._database.fetchval(QUERIES.quarantine, month.month, fence, why))

    async def defer(self, month: Month, fence: int, wait: timedelta, note: str, *, is_failure: bool) -> None:
        """Let a month wait, and say why. Raises: LeaseLost."""
        await self._must(
            await self._database.fetchval(QUERIES.defer, month.month, fence, wait, note, is_failure)
        )

    def _blockers(self, found: Sequence[str]) -> tuple[str, ...]:
        if list(found) == ["FENCED"]:
            raise LeaseLost(shard=self.shard)
        return tuple(found)

    async def _must(self, done: object) -> None:
        if not done:
            raise LeaseLost(shard=self.shard)


def _reused() -> InvalidField:
    return InvalidField.of("request_id", "was used for another wish")
