"""What `ordermesh archive plan` estimates of a month."""

from __future__ import annotations

import pytest

from ops import archive
from ordermesh.archive.v1 import archive_service_pb2 as pb


@pytest.mark.parametrize(
    ("row_bytes", "part_bytes", "parts"),
    [(0, 100, 1), (1, 100, 1), (100, 100, 1), (101, 100, 2), (1000, 100, 10), (7, 0, 7)],
)
def test_a_month_is_cut_into_as_many_parts_as_its_rows_fill(row_bytes: int, part_bytes: int, parts: int):
    assert archive.parts_estimate(pb.Month(row_bytes=row_bytes), part_bytes) == parts


def test_months_that_went_further_are_not_asked_to_go_less_far():
    assert set(archive.BEYOND[pb.Month.COMMITTED]) == {pb.Month.DETACHING, pb.Month.GRACE, pb.Month.DROPPED}
    assert archive.BEYOND[pb.Month.DROPPED] == ()


@pytest.mark.parametrize(
    ("month", "told"),
    [
        (pb.Month(order_count=1234, part_count=2, row_bytes=9), "1,234"),
        (pb.Month(order_count=1234, row_bytes=9), "~1,234"),
        (pb.Month(row_bytes=9), "?"),
        (pb.Month(), "~0"),
    ],
)
def test_how_many_orders_a_month_has_is_told_as_well_as_it_is_known(month: pb.Month, told: str):
    assert archive.orders_told(month) == told


def month_of(name: str, state: pb.Month.State.ValueType, *blockers: str) -> pb.Month:
    return pb.Month(shard="s1", month=name, state=state, blockers=blockers)


@pytest.mark.parametrize(
    ("chosen", "kept"),
    [
        (["2023-08"], {"2023-08": []}),
        (["2023-08", "2023-09"], {"2023-08": [], "2023-09": []}),
        (["2023-09"], {"2023-09": ["OLDER_MONTH_FIRST"]}),
        (["2023-08", "2023-10"], {"2023-08": [], "2023-10": ["TOO_YOUNG", "OLDER_MONTH_FIRST"]}),
    ],
)
def test_a_month_is_kept_by_what_the_other_chosen_ones_do_not_take_away(
    chosen: list[str], kept: dict[str, list[str]]
):
    shard = pb.ListMonthsResponse.Shard(
        shard="s1",
        months=[
            month_of("2023-07", pb.Month.DROPPED),
            month_of("2023-08", pb.Month.HOT),
            month_of("2023-09", pb.Month.HOT, "OLDER_MONTH_FIRST"),
            month_of("2023-10", pb.Month.THAWED, "TOO_YOUNG", "OLDER_MONTH_FIRST"),
        ],
    )
    of = {each.month: each for each in shard.months}
    assert {name: archive.kept_by(shard, of[name], chosen) for name in chosen} == kept


def test_months_that_no_shard_has_are_named():
    answer = pb.ListMonthsResponse(
        shards=[
            pb.ListMonthsResponse.Shard(months=[pb.Month(month="2023-08")]),
            pb.ListMonthsResponse.Shard(),
        ]
    )
    assert archive.not_there(answer, ["2023-08", "1999-01"]) == ["1999-01"]


def test_what_is_saved_is_the_disk_without_what_s3_costs():
    month = pb.Month(table_bytes=4 * 1024**3)
    assert archive.stored_usd(month) == pytest.approx(0.0245)
    assert archive.saved_usd(month) == pytest.approx(4 * 0.115 * 3 - 0.0245)
