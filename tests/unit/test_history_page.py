"""The page as a pure function: whatever is on how many shards, a walk shows each order once, newest first."""

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st

from chassis.errors import PageTokenInvalid
from history_svc.page import (
    NEWEST,
    Key,
    Row,
    Source,
    effective_page_size,
    merge,
    pack,
    source_of,
    unpack,
)

START = datetime(2026, 1, 1, tzinfo=UTC)


def key(minute: int, number: int = 0) -> Key:
    return Key(START + timedelta(minutes=minute), UUID(int=number))


@dataclass(frozen=True)
class Shard:
    """Rows on one shard, asked as the SQL asks: below a key, newest first, at most so many."""

    rows: tuple[Row, ...]

    def read(self, before: Key, limit: int) -> Source:
        below = sorted((row for row in self.rows if row.key < before), key=lambda row: row.key, reverse=True)
        return source_of(below[:limit], limit)


orders = st.builds(
    lambda minute, number, version: Row(key(minute, number), version, None),
    st.integers(0, 6),
    st.integers(0, 5),
    st.integers(1, 3),
)
shards = st.lists(
    st.lists(orders, max_size=12, unique_by=lambda row: row.key).map(lambda rows: Shard(tuple(rows))),
    min_size=1,
    max_size=4,
)


def walk(stores: list[Shard], size: int) -> list[Row]:
    seen: list[Row] = []
    before: Key | None = NEWEST
    pages = 0
    while before is not None:
        page = merge([store.read(before, size + 1) for store in stores], size)
        assert len(page.rows) == size or page.next_after is None, "only the last page is short"
        seen += page.rows
        before = page.next_after
        pages += 1
        assert pages < 100, "the walk does not end"
    return seen


@given(shards, st.integers(1, 7))
def test_a_walk_shows_every_order_once_newest_first_in_its_greatest_version(stores, size):
    newest: dict[Key, int] = {}
    for store in stores:
        for row in store.rows:
            newest[row.key] = max(row.version, newest.get(row.key, 0))
    wanted = sorted(newest.items(), reverse=True)
    assert [(row.key, row.version) for row in walk(stores, size)] == wanted


@given(shards, st.integers(1, 7), st.integers(0, 6), st.integers(0, 5))
def test_an_order_that_appears_in_mid_walk_moves_no_other(stores, size, minute, number):
    first = merge([store.read(NEWEST, size + 1) for store in stores], size)
    if first.next_after is None:
        return
    added = Row(key(100 + minute, number), 1, None)
    grown = [*stores, Shard((added,))]
    before = merge([store.read(first.next_after, size + 1) for store in stores], size)
    after = merge([store.read(first.next_after, size + 1) for store in grown], size)
    assert after == before


def test_nothing_is_shown_below_the_point_where_all_sources_are_complete():
    full = Source([Row(key(9), 1, None), Row(key(5), 1, None)], horizon=key(5))
    ended = Source([Row(key(7), 1, None), Row(key(3), 1, None)], horizon=None)
    page = merge([full, ended], 10)
    assert [row.key for row in page.rows] == [key(9), key(7), key(5)]
    assert page.next_after == key(5)


def test_sources_that_all_ended_end_the_list():
    page = merge([Source([Row(key(1), 1, None)], None), Source([], None)], 10)
    assert (len(page.rows), page.next_after) == (1, None)


def test_a_full_page_with_nothing_behind_it_has_no_next():
    store = Shard((Row(key(1), 1, None), Row(key(2), 1, None)))
    assert merge([store.read(NEWEST, 3)], 2).next_after is None
    assert merge([store.read(NEWEST, 2)], 1).next_after == key(2)


@given(st.integers(-1_767_225_600_000_000, 251_000_000_000_000_000), st.uuids())
def test_a_position_survives_its_token(since_start_us, order_id):
    at = Key(START + timedelta(microseconds=since_start_us), order_id)
    assert unpack(pack(at)) == at


@pytest.mark.parametrize("position", [b"", b"x" * 23, b"x" * 25, b"\xff" * 24, b"\x7f" + b"\xff" * 23])
def test_bytes_that_are_no_position_are_refused(position):
    with pytest.raises(PageTokenInvalid):
        unpack(position)


def test_a_page_has_a_default_and_a_greatest_size():
    assert [effective_page_size(asked) for asked in (0, 1, 100, 101, 2**31 - 1)] == [20, 1, 100, 100, 100]
