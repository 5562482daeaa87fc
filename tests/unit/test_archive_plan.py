"""What `ordermesh archive plan` estimates of a month."""

from __future__ import annotations

from typing import Any

import pytest
from typer.testing import CliRunner

from ops import archive
from ops.cli import app
from ops.cli import archive as command
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


def month_of(name: str, state: pb.Month.State.ValueType, *blockers: str, **more: Any) -> pb.Month:
    return pb.Month(shard="s1", month=name, state=state, blockers=blockers, **more)


def shard_of(*months: pb.Month, halted: bool = False) -> pb.ListMonthsResponse.Shard:
    return pb.ListMonthsResponse.Shard(shard="s1", months=months, halted=halted)


def kept(
    shard: pb.ListMonthsResponse.Shard,
    *chosen: str,
    goal: pb.Month.State.ValueType = pb.Month.DROPPED,
) -> dict[str, list[str]]:
    return archive.kept(shard, [each for each in shard.months if each.month in chosen], goal)


GONE = month_of("2023-07", pb.Month.DROPPED)
FIRST = month_of("2023-08", pb.Month.HOT)
SECOND = month_of("2023-09", pb.Month.HOT, "OLDER_MONTH_FIRST")
YOUNG = month_of("2023-10", pb.Month.THAWED, "TOO_YOUNG", "OLDER_MONTH_FIRST")


@pytest.mark.parametrize(
    ("chosen", "why"),
    [
        (["2023-08"], {}),
        (["2023-08", "2023-09"], {}),
        (["2023-09"], {"2023-09": ["OLDER_MONTH_FIRST"]}),
        (["2023-08", "2023-10"], {"2023-10": ["TOO_YOUNG", "OLDER_MONTH_FIRST"]}),
    ],
)
def test_a_month_is_kept_by_what_the_other_chosen_ones_do_not_take_away(
    chosen: list[str], why: dict[str, list[str]]
):
    assert kept(shard_of(GONE, FIRST, SECOND, YOUNG), *chosen) == why


def test_a_month_waits_for_a_chosen_one_that_waits_itself():
    open_one = month_of("2023-08", pb.Month.HOT, "UNSETTLED_ORDERS")
    found = kept(shard_of(open_one, SECOND), "2023-08", "2023-09")
    assert found == {"2023-08": ["UNSETTLED_ORDERS"], "2023-09": ["OLDER_MONTH_FIRST"]}


def test_the_kill_switch_and_a_legal_hold_keep_months():
    assert kept(shard_of(FIRST, halted=True), "2023-08") == {"2023-08": ["HALTED"]}
    held = shard_of(month_of("2023-08", pb.Month.HOT, legal_hold="case 7"))
    assert kept(held, "2023-08") == {"2023-08": ["LEGAL_HOLD"]}
    assert kept(held, "2023-08", goal=pb.Month.COMMITTED) == {}
    frozen = shard_of(month_of("2023-08", pb.Month.FROZEN), halted=True)
    assert kept(frozen, "2023-08", goal=pb.Month.COMMITTED) == {}
    assert kept(frozen, "2023-08") == {"2023-08": ["HALTED"]}


def test_months_that_come_back_hold_younger_ones_up_and_are_not_turned_round():
    coming = month_of("2023-07", pb.Month.RESTORING, reach=pb.Month.RESTORED)
    assert kept(shard_of(coming, SECOND), "2023-07", "2023-09") == {
        "2023-07": ["COMES_BACK"],
        "2023-09": ["OLDER_MONTH_FIRST"],
    }
    asked_for = month_of("2023-07", pb.Month.GRACE, reach=pb.Month.RESTORED)
    assert kept(shard_of(asked_for, SECOND), "2023-09") == {"2023-09": ["OLDER_MONTH_FIRST"]}
    assert archive.ready(shard_of(asked_for, SECOND)) == []
    assert archive.ready(shard_of(GONE, FIRST, SECOND, YOUNG)) == [FIRST, SECOND]


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


@pytest.mark.parametrize("words", [["--month", "2023-08"], ["--oldest", "1"], ["--oldest", "1", "--execute"]])
def test_nothing_is_asked_for_while_a_shard_does_not_answer(
    words: list[str], monkeypatch: pytest.MonkeyPatch
):
    asked: list[Any] = []

    def ask(*call: Any) -> pb.ListMonthsResponse:
        asked.append(call)
        return pb.ListMonthsResponse(shards=[shard_of(FIRST)], unreachable=["shards/s2"])

    monkeypatch.setattr(command, "ask", ask)
    ended = CliRunner().invoke(app, ["archive", "run", *words, "--reason", "a test"])
    assert (ended.exit_code, len(asked)) == (1, 1), ended.output
    assert "shards/s2 does not answer" in ended.output
