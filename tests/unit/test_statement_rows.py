"""The rows of a statement without a database: which months are read where, one stream of several, and CSV."""

from __future__ import annotations

import asyncio
import csv
import io
import random
from collections.abc import AsyncGenerator, Sequence
from datetime import UTC, date, datetime, timedelta
from itertools import pairwise
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given
from hypothesis import strategies as st

from archive_svc.errors import StatementIncomplete
from archive_svc.statement.csv_file import HEADER, header, lines, local_time, major
from archive_svc.statement.merge import Tally, merged
from archive_svc.statement.plan import microseconds, pieces
from archive_svc.statement.rows import Row
from archive_svc.statement.wish import Total

BEGINS = datetime(2023, 8, 1, tzinfo=UTC)
INSTANTS = st.integers(0, 7 * 366 * 86_400).map(
    lambda seconds: datetime(2020, 1, 1, tzinfo=UTC) + timedelta(seconds=seconds)
)
MONTHS = st.builds(lambda year, month: date(year, month, 1), st.integers(2020, 2026), st.integers(1, 12))


def row(number: int, **fields: object) -> Row:
    """An order; a higher number is later."""
    known = {
        "created_us": microseconds(BEGINS) + number * 1000,
        "order_id": f"018a-{number:08}",
        "version": 2,
        "status": "SUCCESS",
        "kind": "payment",
        "amount_minor": 1250,
        "currency_code": "EUR",
        "currency_exp": 2,
        "description": "",
        "upstream_ref": "ref",
        "failure_reason": "",
        "settled_us": microseconds(BEGINS) + number * 1000 + 1,
    }
    return Row(**(known | fields))  # type: ignore[arg-type]


@given(INSTANTS, INSTANTS, st.frozensets(MONTHS, max_size=20))
def test_the_pieces_of_a_period_tile_it_month_by_month(
    one: datetime, other: datetime, archived: frozenset[date]
) -> None:
    since, until = sorted((one, other))
    found = pieces(since, until, archived)
    if since == until:
        assert found == []
        return
    assert (found[0].since, found[-1].until) == (since, until)
    assert all(before.until == after.since for before, after in pairwise(found))
    for piece in found:
        last = piece.until - timedelta(microseconds=1)
        assert {(at.year, at.month) for at in (piece.since, last)} == {(piece.month.year, piece.month.month)}
        assert piece.since < piece.until
        assert piece.is_archived == (piece.month in archived)


async def stream(batches: Sequence[list[Row]]) -> AsyncGenerator[list[Row], None]:
    for batch in batches:
        await asyncio.sleep(0)
        yield batch


async def all_of(*streams: Sequence[list[Row]]) -> list[Row]:
    found = [part async for part in merged([stream(batches) for batches in streams])]
    assert all(found), "no batch is empty"
    return [each for part in found for each in part]


@given(st.integers(0, 2**32), st.integers(1, 4), st.integers(0, 60))
def test_several_streams_become_one_with_each_order_once(seed: int, count: int, orders: int) -> None:
    dice = random.Random(seed)
    streams: list[list[list[Row]]] = [[] for _ in range(count)]
    expected: list[Row] = []
    for number in range(orders):
        # Some orders of one instant, some in two shards, there with a lower version.
        order = row(number // 2, order_id=f"{number // 2:08}-{number:08}", version=dice.randint(2, 4))
        expected.append(order)
        homes = dice.sample(range(count), min(count, dice.choice((1, 1, 1, 2))))
        for place, home in enumerate(homes):
            told = order if place == 0 else order._replace(version=1, status="PENDING", settled_us=None)
            if not streams[home] or dice.random() < 0.3:
                streams[home].append([])
            streams[home][-1].append(told)
    assert asyncio.run(all_of(*streams)) == expected


async def test_streams_that_do_not_add_up_are_refused() -> None:
    for streams in (
        [[[row(1), row(1)]]],
        [[[row(2)], [row(1)]]],
        [[[row(1)]], [[row(1, amount_minor=1251)]]],
    ):
        with pytest.raises(StatementIncomplete):
            await all_of(*streams)
    assert await all_of([[row(1)]], [[row(1)]]) == [row(1)]
    corrected = row(1, status="FAILED", note="it failed")
    assert await all_of([[corrected]], [[corrected]]) == [corrected]


async def test_who_stops_early_closes_every_stream() -> None:
    closed: list[int] = []

    async def counted(number: int) -> AsyncGenerator[list[Row], None]:
        try:
            for place in range(100):
                yield [row(place * 10 + number)]
        finally:
            closed.append(number)

    both = merged([counted(1), counted(2)])
    assert await anext(both) == [row(1)]
    await both.aclose()
    assert sorted(closed) == [1, 2]


async def test_one_that_fails_while_others_are_at_work_ends_them_and_is_told() -> None:
    closed: list[str] = []
    begun = asyncio.Event()

    async def slow() -> AsyncGenerator[list[Row], None]:
        try:
            begun.set()
            await asyncio.Event().wait()
            yield []
        finally:
            closed.append("slow")

    async def broken(what: str = "a segment") -> AsyncGenerator[list[Row], None]:
        await begun.wait()
        if what:
            raise StatementIncomplete(what=what)
        yield []

    for streams in ([slow(), broken()], [broken(), slow()]):
        begun.clear()
        with pytest.raises(StatementIncomplete, match="does not add up"):
            await anext(merged(streams))
    assert closed == ["slow", "slow"]


def test_totals_are_exact_and_a_currency_has_one_smallest_unit() -> None:
    tally = Tally()
    tally.add(row(n, amount_minor=2**62) for n in range(8))
    tally.add([row(9, currency_code="JPY", currency_exp=0, status="FAILED")])
    assert tally.totals() == (Total("EUR", "SUCCESS", 8, 2**65), Total("JPY", "FAILED", 1, 1250))
    assert (tally.orders, tally.exponent("JPY")) == (9, 0)
    with pytest.raises(StatementIncomplete):
        tally.add([row(10, currency_code="JPY", currency_exp=2)])


@pytest.mark.parametrize(
    ("minor", "exponent", "said"),
    [
        (1250, 2, "12.50"),
        (1250, 0, "1250"),
        (1250, 3, "1.250"),
        (1, 4, "0.0001"),
        (7, 2, "0.07"),
        (2**63 - 1, 2, "92233720368547758.07"),
        (-5, 2, "-0.05"),
    ],
)
def test_amounts_have_the_digits_of_their_currency(minor: int, exponent: int, said: str) -> None:
    assert major(minor, exponent) == said


def test_times_have_the_offset_that_was_there_then() -> None:
    new_york = ZoneInfo("America/New_York")
    assert local_time(microseconds(datetime(2024, 3, 10, 6, 59, tzinfo=UTC)), new_york) == (
        "2024-03-10T01:59:00.000000-05:00"
    )
    assert local_time(microseconds(datetime(2024, 3, 10, 7, 0, 0, 1, tzinfo=UTC)), new_york) == (
        "2024-03-10T03:00:00.000001-04:00"
    )
    assert local_time(-1, ZoneInfo("Asia/Kolkata")) == "1970-01-01T05:29:59.999999+05:30"
    assert local_time(None, new_york) == ""


TEXTS = st.text(st.characters(codec="utf-8"), max_size=40) | st.sampled_from(
    ("=1+1", "+1", "-1", "@SUM(A1)", "\t=1", "\r=1", "\n=1", "\0=1", "＝1", "", '"', "a,b", "₹ पुस्तक", "كتاب")
)


@given(TEXTS, TEXTS)
def test_every_text_comes_back_and_none_is_computed(description: str, reference: str) -> None:
    told = row(1, description=description, upstream_ref=reference)
    text = (header() + lines([told, told], ZoneInfo("Asia/Kolkata"))).decode()
    assert text.endswith("\r\n")
    head, *found = csv.reader(io.StringIO(text, newline=""))
    assert tuple(head) == HEADER
    assert len(found) == 2
    cells = dict(zip(head, found[0], strict=True))
    for name, value in (("description", description), ("reference", reference)):
        assert cells[name] in (value, "'" + value)
        assert not cells[name].startswith(tuple("=+-@\t\r\n\0＝＋－＠"))
        assert (cells[name] == value) != (value.startswith(tuple("=+-@\t\r\n\0＝＋－＠")))
    assert cells["amount"] == "12.50"
    assert cells["created_at"] == "2023-08-01T05:30:00.001000+05:30"


def test_numbers_are_never_guarded() -> None:
    (found,) = csv.reader(io.StringIO(lines([row(1, amount_minor=-5)], ZoneInfo("UTC")).decode(), newline=""))
    assert found[5:7] == ["-0.05", "-5"]
