"""A user's rows are read out of the footer and his row groups, and of not one byte more."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from archive_svc.codec.reading import SparseFile, ranges_of, read_groups
from archive_svc.columns import JOURNAL, ORDERS
from archive_svc.segment import Group, Range, ReadOutsidePlan, Segment, SegmentDamaged, Step, groups_of
from tests.archives import BEGINS, csv, entry, order, written

USERS = {f"user-{n:02}": 1 + n * n for n in range(20)}
SEGMENT = written(
    ORDERS,
    [csv(*(order(n, user_id=user_id) for n in range(count))) for user_id, count in USERS.items()],
    group_bytes=12_000,
)
FACTS = SEGMENT.facts


def fetched(segment: Segment, ranges: list[Range]) -> dict[int, bytes]:
    """What ranged requests bring of an object."""
    return {offset: segment.body[offset : offset + size] for offset, size in ranges}


def read(user_id: str | None, groups: Any, segment: Segment = SEGMENT) -> tuple[Any, int]:
    """The rows of a user, and how many bytes Parquet read for them."""
    facts = segment.facts
    file = SparseFile(facts.size_bytes, fetched(segment, ranges_of(facts, groups)))
    return read_groups(ORDERS, facts, file, groups, user_id=user_id), file.read_bytes


@pytest.mark.parametrize("user_id", USERS)
def test_every_row_of_a_user_is_in_his_groups(user_id: str) -> None:
    groups = FACTS.groups_of(user_id)
    table, read_bytes = read(user_id, groups)
    assert table.column("order_id").to_pylist() == [str(order(n)["order_id"]) for n in range(USERS[user_id])]
    assert table.column("created_at")[0].as_py() == BEGINS
    assert set(table.column("user_id").to_pylist()) == {user_id}
    assert read_bytes == sum(FACTS.groups[n].size_bytes for n in groups)
    assert len(groups) < len(FACTS.groups)


@pytest.mark.parametrize("user_id", ["", "user", "user-03x", "zoe"])
def test_who_has_no_rows_costs_one_group_at_most(user_id: str) -> None:
    groups = FACTS.groups_of(user_id)
    assert len(groups) <= 1
    table, _ = read(user_id, groups)
    assert table.num_rows == 0
    assert table.schema == read(None, range(1))[0].schema


def test_all_rows_of_some_groups_can_be_read() -> None:
    table, read_bytes = read(None, range(len(FACTS.groups)))
    assert table.num_rows == FACTS.rows
    assert read_bytes == sum(group.size_bytes for group in FACTS.groups)
    wanted = [2, 0]
    assert read(None, wanted)[0].num_rows == FACTS.groups[2].rows + FACTS.groups[0].rows


def test_a_group_that_was_not_fetched_is_not_read() -> None:
    file = SparseFile(FACTS.size_bytes, fetched(SEGMENT, ranges_of(FACTS, [0])))
    with pytest.raises(ReadOutsidePlan) as outside:
        read_groups(ORDERS, FACTS, file, [0, 1])
    assert outside.value.offset == FACTS.groups[1].offset
    with pytest.raises(ReadOutsidePlan):
        read_groups(ORDERS, FACTS, SparseFile(FACTS.size_bytes, {}), [0])


def test_nothing_but_the_plan_can_be_read() -> None:
    file = SparseFile(100, {10: b"0123456789", 50: b"abc"})
    file.seek(12)
    assert (file.read(3), file.tell(), file.read_bytes) == (b"234", 15, 3)
    assert file.range(50, 3) == b"abc"
    for offset, size in ((9, 1), (19, 2), (0, 100), (49, 2), (52, 2), (99, 1)):
        file.seek(offset)
        with pytest.raises(ReadOutsidePlan):
            file.read(size)
    assert file.seek(-50, 2) == 50
    assert file.seek(1, 1) == 51
    with pytest.raises(ReadOutsidePlan):
        file.read()


@pytest.mark.parametrize("share", [0.0, 0.1, 0.5, 0.999])
def test_what_was_fetched_and_is_not_what_was_written_is_refused(share: float) -> None:
    def damaged(place: Range) -> Step:
        parts = fetched(SEGMENT, ranges_of(FACTS, [1]))
        part = bytearray(parts[place.offset])
        part[int(share * len(part))] ^= 1
        parts[place.offset] = bytes(part)
        with pytest.raises(SegmentDamaged) as refused:
            read_groups(ORDERS, FACTS, SparseFile(FACTS.size_bytes, parts), [1])
        return refused.value.step

    assert damaged(FACTS.footer) is Step.FOOTER
    assert damaged(Range(FACTS.groups[1].offset, FACTS.groups[1].size_bytes)) is Step.BYTES


def test_a_segment_of_another_shape_is_refused() -> None:
    journal = written(JOURNAL, [csv(entry(1, 1))])
    file = SparseFile(journal.facts.size_bytes, fetched(journal, ranges_of(journal.facts, [0])))
    with pytest.raises(SegmentDamaged) as refused:
        read_groups(ORDERS, journal.facts, file, [0])
    assert refused.value.step is Step.SCHEMA


@settings(deadline=None)
@given(
    users=st.lists(st.text(st.characters(codec="utf-8"), max_size=3), min_size=1, max_size=30),
    edges=st.sets(st.integers(1, 29)),
    asked=st.text(st.characters(codec="utf-8"), max_size=3),
)
def test_no_group_with_a_row_of_a_user_is_left_out(users: list[str], edges: set[int], asked: str) -> None:
    users.sort(key=str.encode)
    starts = [0, *sorted(edge for edge in edges if edge < len(users))]
    pieces = [users[first:last] for first, last in zip(starts, [*starts[1:], len(users)], strict=True)]
    groups = [Group(piece[0], piece[-1], 0, 0, len(piece), "") for piece in pieces]
    for user in {*users, asked}:
        found = groups_of(user, groups)
        holding = [n for n, piece in enumerate(pieces) if piece[0] <= user <= piece[-1]]
        assert list(found) == holding
        assert all(n in found for n, piece in enumerate(pieces) if user in piece)
    assert not groups_of(asked, [])
