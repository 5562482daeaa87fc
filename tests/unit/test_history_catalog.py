"""Where a page is searched for, as its shards' catalogs say it."""

from __future__ import annotations

from datetime import UTC, date, datetime

import pytest

from history_svc.catalog import ShardCatalog, months_in, shard_catalog_of
from history_svc.page import NEWEST, Window
from history_svc.reader import EVER
from history_svc.readmodel.port import IndexIdentity, Place

SEPTEMBER, AUGUST, JULY = date(2026, 9, 1), date(2026, 8, 1), date(2026, 7, 1)
EVERYTHING = Window(None, NEWEST, datetime(2026, 8, 15, tzinfo=UTC))
FIRST, SECOND = tuple(range(8)), tuple(range(8, 16))


def index(month: date, generation: int, uuid: str = "u") -> IndexIdentity:
    return IndexIdentity(f"v{generation}-{month:%m}", "c", uuid)


def catalog(base: int, *rows: tuple[date, int, str], uuid: str = "u") -> ShardCatalog:
    plain = [
        (month.isoformat(), generation, *index(month, generation, uuid), state)
        for month, generation, state in rows
    ]
    return shard_catalog_of(1, plain, range(base, base + 8))


def all_of(generation: int) -> tuple[Place, ...]:
    return (Place(index(SEPTEMBER, generation)),)


def only(generation: int, partitions: tuple[int, ...], uuid: str = "u") -> Place:
    return Place(index(SEPTEMBER, generation, uuid), partitions)


@pytest.mark.parametrize(
    ("first", "second", "places"),
    [
        ([(1, "SERVING")], [], all_of(1)),
        ([(1, "SERVING")], [(1, "SERVING")], all_of(1)),
        ([(1, "SERVING"), (2, "SERVING")], [(2, "SERVING")], all_of(2)),
        ([(1, "SERVING"), (2, "BUILDING")], [(1, "SERVING")], all_of(1)),
        ([(1, "RETIRED"), (2, "SERVING")], [(1, "SERVING")], (only(2, FIRST), only(1, SECOND))),
        ([(1, "SERVING"), (2, "SERVING")], [(1, "SERVING")], (only(2, FIRST), only(1, SECOND))),
        ([(1, "BUILDING")], [(1, "SERVING")], (only(1, SECOND),)),
        ([(1, "RETIRED")], [(1, "SERVING")], (only(1, SECOND),)),
        ([(1, "BUILDING")], [], None),
    ],
)
def test_all_in_an_index_counts_unless_a_shard_that_knows_the_month_reads_it_elsewhere(
    first: list[tuple[int, str]], second: list[tuple[int, str]], places: tuple[Place, ...] | None
) -> None:
    catalogs = [
        catalog(base, *((SEPTEMBER, generation, state) for generation, state in rows))
        for base, rows in ((0, first), (8, second))
    ]
    assert months_in(catalogs, EVERYTHING, EVER).get(SEPTEMBER) == places


def test_two_shards_may_not_mean_the_same_index_by_one_name() -> None:
    catalogs = [
        catalog(base, (SEPTEMBER, 1, "SERVING"), uuid=uuid) for base, uuid in ((0, "old"), (8, "new"))
    ]
    assert months_in(catalogs, EVERYTHING, EVER) == {
        SEPTEMBER: (only(1, FIRST, "old"), only(1, SECOND, "new"))
    }


def test_the_months_of_the_window_are_searched_newest_first() -> None:
    months = [(month, 1, "SERVING") for month in (JULY, AUGUST, SEPTEMBER)]
    assert list(months_in([catalog(0, *months)], EVERYTHING, EVER)) == [SEPTEMBER, AUGUST]
    until = datetime(2026, 8, 31, 23, tzinfo=UTC)
    assert list(months_in([catalog(0, *months)], EVERYTHING, until)) == [AUGUST]
