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
