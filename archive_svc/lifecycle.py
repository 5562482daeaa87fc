"""The way of a month out of a shard: which states it passes, and which step is due. Pure.

WANTED, FROZEN, PLANNED, EXPORTED, VERIFIED, COMMITTED, DETACHING, GRACE, DROPPED, in this order. Readers turn
to the copy at COMMITTED and at no other moment; nothing before it changes what they see, nothing after it can
lose what they need. Before it a month can be thawed, after it restored.
"""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from enum import StrEnum
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from uuid import UUID

DAMAGES_MAX = 3
"""Segments of a month that did not read back as written before a person has to look."""
PAUSE = timedelta(seconds=1)
PAUSE_MAX = timedelta(minutes=10)


class State(StrEnum):
    """Where a month stands."""

    WANTED = "WANTED"
    FROZEN = "FROZEN"
    PLANNED = "PLANNED"
    EXPORTED = "EXPORTED"
    VERIFIED = "VERIFIED"
    COMMITTED = "COMMITTED"
    DETACHING = "DETACHING"
    GRACE = "GRACE"
    DROPPED = "DROPPED"
    THAWED = "THAWED"
    RESTORING = "RESTORING"
    RESTORED = "RESTORED"


class Course(StrEnum):
    """What a wish does to a month: it begins to leave, goes on from where it stands, or stays as it is."""

    BEGIN = "BEGIN"
    GO_ON = "GO_ON"
    STAY = "STAY"


class Refusal(StrEnum):
    """Why a wish would lead a month nowhere.

    IN_TABLES:  there is nothing to bring back, as readers read the tables.
    COMMITTED:  it cannot be thawed, as readers read the copy.
    PAST:       it went further already.
    COMES_BACK: it is on its way into the tables.
    """

    IN_TABLES = "IN_TABLES"
    COMMITTED = "COMMITTED"
    PAST = "PAST"
    COMES_BACK = "COMES_BACK"


class Step(StrEnum):
    """What is done next to a month."""

    FREEZE = "FREEZE"
    PLAN = "PLAN"
    EXPORT = "EXPORT"
    VERIFY = "VERIFY"
    COMMIT = "COMMIT"
    LEAVE = "LEAVE"
    DETACH = "DETACH"
    DROP = "DROP"
    THAW = "THAW"
    MAKE_TABLES = "MAKE_TABLES"
    RESTORE = "RESTORE"


WAY = (
    State.WANTED,
    State.FROZEN,
    State.PLANNED,
    State.EXPORTED,
    State.VERIFIED,
    State.COMMITTED,
    State.DETACHING,
    State.GRACE,
    State.DROPPED,
)
REACHES = (State.VERIFIED, State.COMMITTED, State.GRACE, State.DROPPED, State.THAWED, State.RESTORED)
"""Where somebody may ask a month to be."""
_STEPS = {
    State.WANTED: Step.FREEZE,
    State.FROZEN: Step.PLAN,
    State.PLANNED: Step.EXPORT,
    State.EXPORTED: Step.VERIFY,
    State.VERIFIED: Step.COMMIT,
    State.COMMITTED: Step.LEAVE,
    State.DETACHING: Step.DETACH,
    State.GRACE: Step.DROP,
}
_BACK = {
    State.COMMITTED: Step.RESTORE,
    State.DETACHING: Step.DETACH,
    State.GRACE: Step.RESTORE,
    State.DROPPED: Step.MAKE_TABLES,
    State.RESTORING: Step.RESTORE,
}
"""What brings a month back, from where it stands; a detach that was begun is ended first."""
CHANGES_TABLES = frozenset({Step.FREEZE, Step.LEAVE, Step.DETACH, Step.DROP, Step.MAKE_TABLES, Step.RESTORE})
"""Steps that the kill switch stops. A thaw is not one of them: it gives back."""
_SERVED = frozenset(WAY[WAY.index(State.COMMITTED) :])
_MONTH_IN_KEY = re.compile(r"/(?:month=)?(\d{4}-\d{2})/")
_EDITION = re.compile(r"-(\d{10})\.json$")
_BEFORE_COMMIT = frozenset(WAY[: WAY.index(State.COMMITTED)])


@dataclass(frozen=True, slots=True)
class Month:
    """A month of one shard that somebody wants out of it.

    reach:        the state in which it is to be.
    quarantined:  why a person has to look; empty when nobody has to.
    orders_oid, journal_oid: its tables while it has some.
    orders_hash, journal_hash: of all rows before they were copied and when they were proven; each is a sum.
    manifest_key: of the one that its catalog shows; empty when none does.
    edition:      of what its manifest would say; grows with every change of that. 0: none has a number.
    detach_from, drop_from:  when they may be detached, and dropped; aware.
    failures:     of the step that is due, in a row; it waits until `not_before`.
    damages:      segments that did not read back as they were written.
    """

    month: date
    archive_id: UUID
    state: State
    reach: State
    quarantined: str
    begins_at: datetime
    ends_at: datetime
    orders_oid: int | None = None
    journal_oid: int | None = None
    orders_hash: int | None = None
    journal_hash: int | None = None
    manifest_key: str = ""
    edition: int = 0
    frozen_at: datetime | None = None
    detach_from: datetime | None = None
    drop_from: datetime | None = None
    failures: int = 0
    damages: int = 0
    not_before: datetime = datetime(1970, 1, 1, tzinfo=UTC)

    @property
    def name(self) -> str:
        """As people and keys write it: `2023-08`."""
        return f"{self.month:%Y-%m}"

    @property
    def is_manifest_older(self) -> bool:
        """Whether readers read a copy of which the manifest says what was true before."""
        return self.state in _SERVED and edition_of(self.manifest_key) < self.edition


def month_of(at: datetime) -> date:
    """The first day of the month of an instant, in UTC."""
    return at.astimezone(UTC).date().replace(day=1)


def ripe_until(at: datetime, months_min: int, days_min: int) -> datetime:
    """A month that ends by then is old enough: so many calendar months and days before `at`."""
    first = month_of(at - timedelta(days=days_min))
    years, left = divmod(first.month - 1 - months_min, 12)
    return datetime(first.year + years, left + 1, 1, tzinfo=UTC)


def due_step(month: Month, at: datetime, *, is_halted: bool) -> Step | None:
    """What to do with a month now; None when it is where it is to be, has to wait, or needs a person."""
    if month.quarantined or at < month.not_before:
        return None
    step = _wanted_step(month)
    if step is None or (is_halted and step in CHANGES_TABLES):
        return None
    if step is Step.LEAVE and (month.detach_from is None or at < month.detach_from):
        return None
    if step is Step.DROP and (month.drop_from is None or at < month.drop_from):
        return None
    return step


def course(state: State | None, reach: State) -> Course | Refusal:
    """What a wish does to a month that stands somewhere. state: None when nobody asked for it yet.

    What is accepted leads there: a step is due until the month is where it is to be.
    """
    if reach is State.RESTORED:
        if state is State.RESTORED:
            return Course.STAY
        return Course.GO_ON if state in _BACK else Refusal.IN_TABLES
    if reach is State.THAWED:
        if state is State.THAWED:
            return Course.STAY
        if state in (None, State.RESTORED):
            return Course.BEGIN
        return Course.GO_ON if state in _BEFORE_COMMIT else Refusal.COMMITTED
    if state in (None, State.THAWED, State.RESTORED):
        return Course.BEGIN
    if state not in WAY:
        return Refusal.COMES_BACK
    return Course.GO_ON if WAY.index(state) <= WAY.index(reach) else Refusal.PAST


def never_left(state: State | None, reach: State) -> bool:
    """Whether a month is to come back that is where it would come to. One that is about to leave is not."""
    return reach is State.RESTORED and state in (None, State.THAWED)


def _wanted_step(month: Month) -> Step | None:
    if month.state is State.DETACHING:
        return Step.DETACH
    if month.reach is State.THAWED:
        return Step.THAW if month.state in _BEFORE_COMMIT else None
    if month.reach is State.RESTORED:
        return _BACK.get(month.state)
    if month.reach not in WAY or month.state not in WAY:
        return None
    return _STEPS[month.state] if WAY.index(month.state) < WAY.index(month.reach) else None


def next_due(months: Iterable[Month], at: datetime, *, is_halted: bool) -> tuple[Month, Step] | None:
    """The oldest month that something is to be done to, and what; one at a time, so that the older go first.

    None is committed before readers have turned to the copies of all older ones; else one that waits holds up
    nobody. Older months that nobody asked for are seen by the database.
    """
    is_open = False
    for month in sorted(months, key=lambda each: each.month):
        step = due_step(month, at, is_halted=is_halted)
        if step is not None and not (is_open and step is Step.COMMIT):
            return month, step
        is_open = is_open or month.state in _BEFORE_COMMIT
    return None


def pause_after(failures: int, jitter: float) -> timedelta:
    """How long a step waits that failed for the nth time: full jitter below a bound that doubles.

    jitter: 0 to 1.
    """
    bound = min(PAUSE_MAX, PAUSE * 2.0 ** min(failures, 16))
    return bound * (0.5 + 0.5 * jitter)


def data_key(shard: str, month: date, of_table: str, part: int, attempt: str) -> str:
    """Where a segment is stored; with the attempt, so that no latecomer overwrites the one that counts."""
    return f"{of_table}/v1/shard={shard}/month={month:%Y-%m}/part-{part:05}-{attempt}.parquet"


def manifest_prefix(shard: str) -> str:
    """Where a shard's manifests are stored, apart from the data, which engines read by prefix."""
    return f"_manifest/orders/v1/shard={shard}/"


def manifest_key(shard: str, month: Month, body: bytes) -> str:
    """Where a month's manifest is stored: what it says is in the key, and which edition it is."""
    said = hashlib.sha256(body).hexdigest()[:16]
    name = f"{month.archive_id}-{said}-{month.edition:010}.json"
    return f"{manifest_prefix(shard)}{month.name}/{name}"


def month_in(key: str) -> date | None:
    """The month that a segment's or a manifest's key names."""
    match = _MONTH_IN_KEY.search(key)
    return date.fromisoformat(f"{match[1]}-01") if match else None


def edition_of(key: str) -> int:
    """Which edition a manifest is, by its key; 0 for one from before they were numbered."""
    match = _EDITION.search(key)
    return int(match[1]) if match else 0


def mismatches(expected: Sequence[tuple[str, object, object]]) -> str:
    """What differs of (name, in the segment, in Postgres); empty when nothing does."""
    return "; ".join(
        f"{name}: {copied} copied, {there} there" for name, copied, there in expected if copied != there
    )
