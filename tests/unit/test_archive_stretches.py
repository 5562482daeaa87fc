"""Parts are copied many at once, each exactly once, and cut where they end; what is left over is ended."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from datetime import datetime, timedelta
from itertools import chain, pairwise
from typing import Any
from uuid import UUID

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from archive_svc import stretch
from archive_svc.ahead import Ahead, in_thread
from archive_svc.codec.writer import SegmentWriter
from archive_svc.columns import JOURNAL, ORDERS
from archive_svc.entries import Part
from archive_svc.segment import Key, RowsRefused, Segment
from archive_svc.stretch import PARTS_MAX, SCANS_MAX, Rows, Stretch, is_scan, stretches
from archive_svc.throttle import Throttle
from chassis.clock import SYSTEM_CLOCK
from tests.archives import ABOUT, BEGINS, Row, csv, entry, order

NOBODY = UUID(int=0)
ANYTHING = st.sets(st.tuples(st.integers(0, 30), st.sampled_from(["orders", "order_journal"])))


def key_of(number: int) -> Key:
    """Of the order of that number."""
    return Key("alice", BEGINS + timedelta(seconds=number), order(number)["order_id"])


def part(number: int, until: int = 0, rows: int = 10) -> Part:
    """One that ends with the order of that number."""
    return Part(number, Key("", BEGINS, NOBODY), key_of(until), rows, 2 * rows, "orders_x", "journal_x")


def rows_of(lives: Sequence[Sequence[Row]]) -> bytes:
    return csv(*chain.from_iterable(lives))


@settings(deadline=None)
@given(rows=st.lists(st.integers(0, 50), max_size=30), there=ANYTHING, rows_max=st.integers(1, 400))
def test_whatever_is_lacking_is_in_one_stretch_and_needed_in_their_order(
    rows: list[int], there: set[tuple[int, str]], rows_max: int
) -> None:
    parts = [part(number, rows=count) for number, count in enumerate(rows)]
    found = stretches(parts, there, rows_max=rows_max)
    wanted = [(each.number, shape.table) for each in parts for shape in (ORDERS, JOURNAL)]
    lacking = [each for each in wanted if each not in there]
    copied = [(each.number, shape.table) for shape, those in found for each in those]
    assert sorted(copied) == sorted(lacking)
    first_needed = [lacking.index((each.parts[0].number, each.shape.table)) for each in found]
    assert first_needed == sorted(first_needed)
    for shape, those in found:
        assert [each.number for each in those] == list(range(those[0].number, those[-1].number + 1))
        assert 1 <= len(those) <= PARTS_MAX
        assert len(those) == 1 or sum(each.order_count + each.journal_count for each in those) <= rows_max
        assert shape in (ORDERS, JOURNAL)


def test_a_journal_is_read_whole_only_for_a_good_share_of_it() -> None:
    many = [part(number) for number in range(SCANS_MAX * PARTS_MAX)]
    assert is_scan(stretches(many, set(), rows_max=1e9), len(many))
    more = [*many, part(len(many))]
    assert not is_scan(stretches(more, set(), rows_max=1e9), len(more))
    one = {(each.number, "order_journal") for each in many[1:]}
    assert not is_scan(stretches(many, one, rows_max=1e9), len(many))
    assert is_scan(stretches(many[:SCANS_MAX], one - {(1, "order_journal")}, rows_max=1e9), SCANS_MAX)


@settings(deadline=None, max_examples=60)
@given(
    users=st.lists(st.sampled_from(["a", "b", "ß", "ஃ"]), min_size=1, max_size=12).map(sorted),
    blocks=st.sets(st.integers(1, 11)),
    ends=st.sets(st.integers(0, 11)),
    versions=st.integers(1, 3),
)
def test_a_part_ends_with_the_rows_of_its_last_order(
    users: list[str], blocks: set[int], ends: set[int], versions: int
) -> None:
    lives = [
        [entry(number, version, user_id=user, evidence='a "b"\n,ü') for version in range(1, versions + 1)]
        for number, user in enumerate(users)
    ]
    edges = [0, *sorted(cut for cut in blocks if cut < len(lives)), len(lives)]
    stream = [rows_of(lives[begin:end]) for begin, end in pairwise(edges)]
    lasts = sorted({*(end for end in ends if end < len(lives)), len(lives) - 1})
    begin = 0
    for last in lasts:
        row = lives[last][0]
        until = Key(row["user_id"], BEGINS + timedelta(seconds=last), row["order_id"])
        writer = SegmentWriter(JOURNAL, ABOUT)
        while stream and not (rest := writer.add(stream[0], until)):
            stream.pop(0)
        if stream:
            stream[0] = rest
        facts = writer.close().facts
        written = rows_of(lives[begin : last + 1])
        assert (facts.rows, facts.stream_bytes) == ((last + 1 - begin) * versions, len(written))
        begin = last + 1
    assert not stream


class Copies:
    """Sessions whose COPY gives rows of these orders, a few in a chunk; then fails, when it is to.

    until: what it takes for the end of every stretch.
    """

    def __init__(
        self, numbers: Sequence[int], *, fails: Exception | None = None, until: datetime | None = None
    ) -> None:
        self._numbers = numbers
        self._fails = fails
        self._until = until
        self.begun: list[str] = []
        self.running = 0

    @asynccontextmanager
    async def __call__(self) -> AsyncIterator[Copies]:
        self.running += 1
        try:
            yield self
        finally:
            self.running -= 1

    async def copy_out(
        self,
        query: str,
        _user: str,
        after: datetime,
        _order: UUID,
        _until_user: str,
        until: datetime,
        _until_order: UUID,
        *,
        sink: Callable[[bytes], Awaitable[None]],
        options: Mapping[str, Any],
        timeout_s: float,
    ) -> int:
        self.begun.append(query)
        rows = [csv(order(number)) for number in self._numbers]
        if "journal_x" in query:
            rows = [csv(entry(number, 1), entry(number, 2)) for number in self._numbers]
        within = [
            row
            for number, row in zip(self._numbers, rows, strict=True)
            if after < BEGINS + timedelta(seconds=number) <= (self._until or until)
        ]
        for first in range(0, len(within), 3):
            await sink(b"".join(within[first : first + 3]))
        if self._fails is not None:
            raise self._fails
        return len(within)


def rows_from(copies: Copies, wanted: Sequence[Stretch]) -> Rows:
    sessions: Any = copies
    return Rows(sessions, Throttle(1e12, SYSTEM_CLOCK), wanted, scan=True)


def parts_until(*lasts: int) -> list[Part]:
    """Parts that end with these orders, one after the other."""
    first = Key("", BEGINS - timedelta(seconds=1), NOBODY)
    keys = [first, *map(key_of, lasts)]
    return [
        Part(number, after, until, 10, 20, "orders_x", "journal_x")
        for number, (after, until) in enumerate(pairwise(keys))
    ]


async def segment_of(rows: Rows, part: Part, table: str) -> Segment:
    shape = ORDERS if table == "orders" else JOURNAL
    writer = SegmentWriter(shape, ABOUT)
    await rows.fill(writer, part, shape)
    return writer.close()


@pytest.mark.parametrize("block_bytes", [1, 700, 10**6])
async def test_one_copy_gives_the_rows_of_many_parts(
    monkeypatch: pytest.MonkeyPatch, block_bytes: int
) -> None:
    monkeypatch.setattr(stretch, "BLOCK_BYTES", block_bytes)
    parts = parts_until(*range(3, 100, 9), 99)
    copies = Copies(range(100))
    wanted = stretches(parts, {(0, "order_journal"), (4, "orders")}, rows_max=1e9)
    seen: dict[str, list[int]] = {"orders": [], "order_journal": []}
    async with rows_from(copies, wanted) as rows:
        for each in parts:
            for table in ("orders", "order_journal"):
                if (each.number, table) in {(0, "order_journal"), (4, "orders")}:
                    continue
                facts = (await segment_of(rows, each, table)).facts
                assert facts.last is not None
                assert facts.last[:3] == each.until[:3]
                seen[table].append(facts.rows)
    assert seen == {
        "orders": [4, 9, 9, 9, 9, 9, 9, 9, 9, 9, 6],
        "order_journal": [18, 18, 18, 18, 18, 18, 18, 18, 18, 18, 12],
    }
    assert len(copies.begun) == len(wanted)
    assert copies.running == 0


async def test_a_copy_that_fails_takes_only_the_parts_with_it_that_it_did_not_give(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(stretch, "BLOCK_BYTES", 1)
    parts = parts_until(9, 19)
    copies = Copies(range(15), fails=ConnectionError("cut off"))
    async with rows_from(copies, stretches(parts, set(), rows_max=1e9)) as rows:
        assert (await segment_of(rows, parts[0], "orders")).facts.rows == 10
        assert (await segment_of(rows, parts[0], "order_journal")).facts.rows == 20
        for table in ("orders", "order_journal"):
            with pytest.raises(ConnectionError, match="cut off"):
                await segment_of(rows, parts[1], table)
    assert copies.running == 0


async def test_parts_may_have_no_rows_of_a_table() -> None:
    parts = parts_until(4, 9, 14, 19, 24)
    copies = Copies([*range(5), *range(10, 15)])
    async with rows_from(copies, stretches(parts, set(), rows_max=1e9)) as rows:
        found = [
            (await asyncio.wait_for(segment_of(rows, each, table), 10)).facts.rows
            for each in parts
            for table in ("orders", "order_journal")
        ]
    assert found == [5, 10, 0, 0, 5, 10, 0, 0, 0, 0]


async def test_rows_beyond_the_last_part_are_refused() -> None:
    (part,) = parts_until(9)
    copies = Copies(range(11), until=BEGINS + timedelta(seconds=10))
    async with rows_from(copies, [Stretch(ORDERS, (part,))]) as rows:
        with pytest.raises(RowsRefused, match="beyond"):
            await segment_of(rows, part, "orders")


async def test_copies_that_nobody_reads_any_more_are_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stretch, "BLOCK_BYTES", 1)
    parts = parts_until(*range(9, 400, 10))
    copies = Copies(range(400))
    async with rows_from(copies, stretches(parts, set(), rows_max=1e9)) as rows:
        await segment_of(rows, parts[0], "orders")
        assert copies.running > 0
    assert copies.running == 0


async def test_outcomes_come_in_order_and_not_too_many_calls_run_at_once() -> None:
    running: list[int] = []
    gates, begun = [asyncio.Event() for _ in range(4)], [asyncio.Event() for _ in range(4)]

    def call(number: int) -> Callable[[], Any]:
        async def wait() -> int:
            running.append(number)
            begun[number].set()
            await gates[number].wait()
            if number == 1:
                raise ValueError(number)
            return number

        return wait

    async with Ahead(map(call, range(4)), at_once=2) as ahead:
        gates[1].set()
        first = asyncio.create_task(ahead.next())
        await asyncio.wait_for(begun[1].wait(), 10)
        assert running == [0, 1]
        assert not first.done()
        gates[0].set()
        assert await first == 0
        with pytest.raises(ValueError, match="1"):
            await ahead.next()
        gates[2].set()
        assert await ahead.next() == 2
    assert running == [0, 1, 2, 3]


async def test_a_thread_is_waited_for_by_whoever_is_cancelled() -> None:
    begun, may_end = threading.Event(), threading.Event()
    ended = []

    def work() -> None:
        begun.set()
        may_end.wait(10)
        ended.append(True)

    working = asyncio.create_task(in_thread(work))
    assert await asyncio.to_thread(begun.wait, 10)
    working.cancel()
    may_end.set()
    with pytest.raises(asyncio.CancelledError):
        await working
    assert ended == [True]
