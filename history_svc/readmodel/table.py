"""The read model in a table of a Postgres database of its own: for a laptop, and for small installations.

It behaves as Elasticsearch does, with one difference that helps nobody to be wrong: what is stored is
searchable at once. Whatever the database cannot do now is ReadModelUnavailable.
"""

from __future__ import annotations

from contextlib import contextmanager
from datetime import UTC, date, datetime, timedelta
from typing import TYPE_CHECKING, Any
from uuid import UUID

import orjson

from chassis import pg
from chassis.errors import Contended, DeadlineExceeded, InternalError, Overloaded, ShardUnavailable
from chassis.store_spans import traced
from history_svc.document import columns, from_us, to_us
from history_svc.errors import IndexNotOurs, ReadModelUnavailable, TooMuchAtOnce
from history_svc.page import Key, Row
from history_svc.readmodel.fields import NOT_SHOWN, why_refused
from history_svc.readmodel.port import DaySum, Entry, IndexIdentity, Outcome, Verdict

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from history_svc.page import Window
    from history_svc.readmodel.port import Place, Write

QUERIES = pg.queries("history_svc.readmodel")
SESSION = {"plan_cache_mode": "force_custom_plan"}
"""A search names its indices; only a plan made for them leaves the other partitions out."""
BODY_BYTES_MAX = 32 * 1024 * 1024
"""A batch lies in memory several times over while it is written."""
INDEX_NAME_CHARS_MAX = 58
"""A partition is named after its index, and its constraint after it; Postgres cuts names at 63."""
CARE_TIMEOUT_S = 15.0
"""Of what nobody waits for on a screen."""
DAY = timedelta(days=1)
_NO_PARTITION_STATE = "23514"
_STORED = Outcome(Verdict.STORED)
_STALE = Outcome(Verdict.STALE)
_MISSING = Outcome(Verdict.MISSING)


@traced
class TableReadModel:
    """Documents in Postgres."""

    def __init__(self, database: pg.Database) -> None:
        self._database = database

    async def create(self, name: str) -> IndexIdentity:
        """The index of this name, made when it is missing."""
        if len(name) > INDEX_NAME_CHARS_MAX:
            raise ValueError(f"an index name of more than {INDEX_NAME_CHARS_MAX} characters: {name!r}")
        with _typed_errors():
            await self._database.execute(QUERIES.create_index, name)
        found = await self.identities([name])
        if name not in found:
            raise ReadModelUnavailable(index=name)
        return found[name]

    async def seal(self, names: Sequence[str]) -> None:
        """Nothing is needed: the statement that searches says which indices it read."""

    async def identities(self, names: Sequence[str]) -> dict[str, IndexIdentity]:
        """Those of some indices that exist."""
        with _typed_errors():
            rows = await self._database.fetch(QUERIES.read_identities, list(names))
        return {row["name"]: IndexIdentity(*row) for row in rows}

    async def drop(self, name: str) -> None:
        """Remove an index with all its documents."""
        with _typed_errors():
            await self._database.execute(QUERIES.drop_index, name)

    async def write(self, writes: Sequence[Write], *, timeout_s: float) -> list[Outcome]:
        """Put documents into their indices; one outcome for each, in the same order."""
        outcomes = [_STORED] * len(writes)
        rounds: list[tuple[bool, dict[tuple[str, str], int]]] = []
        rows: dict[int, tuple[Any, ...]] = {}
        for number, write in enumerate(writes):
            if why := why_refused(write.document) or _why_no_row(write):
                outcomes[number] = Outcome(Verdict.REFUSED, why)
                continue
            rows[number] = _columns(write)
            _place(rounds, write, number)
        if len(writes) > 1 and sum(len(row[-1]) for row in rows.values()) > BODY_BYTES_MAX:
            raise TooMuchAtOnce
        for again, orders in rounds:
            numbers = list(orders.values())
            found = await self._put([rows[number] for number in numbers], again, timeout_s)
            for number, outcome in zip(numbers, found, strict=True):
                outcomes[number] = outcome
        return outcomes

    async def _put(self, rows: Sequence[tuple[Any, ...]], again: bool, timeout_s: float) -> list[Outcome]:
        """Put rows of different orders; a row that spoils the statement is found and refused alone."""
        try:
            with _typed_errors():
                kept = await self._database.fetch(
                    QUERIES.put_documents, again, *zip(*rows, strict=True), timeout_s=timeout_s
                )
        except InternalError as refused:
            if len(rows) == 1:
                state = refused.facts.get("sqlstate", "")
                return [_MISSING if state == _NO_PARTITION_STATE else Outcome(Verdict.REFUSED, state)]
            half = len(rows) // 2
            return [
                *await self._put(rows[:half], again, timeout_s),
                *await self._put(rows[half:], again, timeout_s),
            ]
        outcomes = [_STORED] * len(rows)
        for row in kept:
            outcomes[row["number"] - 1] = _MISSING if row["is_missing"] else _STALE
        return outcomes

    async def refresh(self, names: Sequence[str]) -> None:
        """Make everything that was stored in some indices searchable, which it is."""
        await self._check(names)

    async def search(
        self,
        places: Sequence[Place],
        window: Window,
        *,
        routing: Sequence[str],
        limit: int,
        timeout_s: float,
    ) -> list[Row]:
        """The newest orders of a window, newest first, at most `limit`; complete down to the last one."""
        shown = window.filter
        narrowed = [place for place in places if place.stream_partitions is not None]
        kept = [
            (place.index.name, partition) for place in narrowed for partition in place.stream_partitions or ()
        ]
        with _typed_errors():
            rows = await self._database.fetch(
                QUERIES.search_documents,
                *([place.index[field] for place in places] for field in range(3)),
                window.user_id,
                to_us(window.not_before),
                to_us(window.before.created_at),
                window.before.order_id,
                shown.status,
                shown.kind,
                shown.currency_code,
                shown.amount_min,
                shown.amount_max,
                list(shown.asked),
                limit,
                [place.index.name for place in narrowed] or None,
                [name for name, _ in kept],
                [partition for _, partition in kept],
                timeout_s=timeout_s,
            )
        if rows[0]["strange"]:
            raise IndexNotOurs(strange=rows[0]["strange"])
        return [_row(row) for row in rows if row["order_id"] is not None]

    async def sums(self, name: str, partitions: Sequence[int]) -> list[DaySum]:
        """An index summed up by stream partition and day of creation (UTC), for some partitions."""
        await self._check([name])
        with _typed_errors():
            rows = await self._database.fetch(
                QUERIES.add_up_days, name, list(partitions), timeout_s=CARE_TIMEOUT_S
            )
        return [
            DaySum(
                row["stream_partition"],
                (from_us(0) + row["day"] * DAY).date(),
                row["orders"],
                row["versions"],
                row["hashes"],
            )
            for row in rows
        ]

    async def entries(self, name: str, partition: int, day: date, *, after: str, limit: int) -> list[Entry]:
        """The documents of one day and stream partition, by order id, after one of them."""
        await self._check([name])
        start = datetime(day.year, day.month, day.day, tzinfo=UTC)
        with _typed_errors():
            rows = await self._database.fetch(
                QUERIES.read_entries,
                name,
                partition,
                to_us(start),
                to_us(start + DAY),
                UUID(after) if after else None,
                limit,
                timeout_s=CARE_TIMEOUT_S,
            )
        return [Entry(row["order_id"], row["version"]) for row in rows]

    async def ping(self) -> None:
        """Ask whether it is there, within a second."""
        with _typed_errors():
            await self._database.ping()

    async def _check(self, names: Sequence[str]) -> None:
        with _typed_errors():
            missing = await self._database.fetchval(QUERIES.count_missing, list(names))
        if missing:
            raise ReadModelUnavailable(missing=missing)


def _place(rounds: list[tuple[bool, dict[tuple[str, str], int]]], write: Write, number: int) -> None:
    """Put a write into the first round that may have it: one statement writes an order once, and repeats of
    an order come one after the other.
    """
    key = (write.index, write.document["order_id"])
    last = max((place for place, (_, orders) in enumerate(rounds) if key in orders), default=-1)
    for again, orders in rounds[last + 1 :]:
        if again is write.again:
            orders[key] = number
            return
    rounds.append((write.again, {key: number}))


def _why_no_row(write: Write) -> str:
    try:
        UUID(write.document["order_id"])
    except ValueError:
        return "order_id is no order id"
    return ""


def _columns(write: Write) -> tuple[Any, ...]:
    document = write.document
    shown = {name: value for name, value in document.items() if name not in NOT_SHOWN}
    return (
        write.index,
        document["order_id"],
        document["user_id"],
        document["version"],
        document["created_us"],
        document["status"],
        document["kind"],
        document["currency_code"],
        document["amount_minor"],
        " ".join(document["terms"]),
        document["stream_partition"],
        document["h32"],
        document["deleted"],
        orjson.dumps(shown).decode(),
    )


def _row(row: Any) -> Row:
    return Row(
        Key(from_us(row["created_us"]), row["order_id"]), row["version"], columns(orjson.loads(row["shown"]))
    )


@contextmanager
def _typed_errors() -> Iterator[None]:
    try:
        yield
    except (Contended, DeadlineExceeded, Overloaded, ShardUnavailable) as away:
        raise ReadModelUnavailable(because=away.reason) from away
