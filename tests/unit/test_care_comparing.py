"""What counts as a difference between a shard and its index: what is proven, not what is only late."""

from __future__ import annotations

from datetime import date

import pytest
from hypothesis import given
from hypothesis import strategies as some

from history_svc.care.comparing import Difference, Versions, differences, differing_days, suspects
from history_svc.care.operation import Findings
from history_svc.care.upkeep import served_by_all
from history_svc.catalog import Catalog, catalog_of
from history_svc.readmodel.port import DaySum

DAY = date(2026, 9, 1)
VERSIONS = some.dictionaries(some.sampled_from("abcde"), some.integers(1, 3))


@pytest.mark.parametrize(
    ("before", "index", "after", "how"),
    [
        (2, 2, 2, None),
        (2, None, 2, Difference.MISSING),
        (2, 1, 2, Difference.STALE),
        (2, 1, 3, Difference.STALE),
        (2, 3, 2, Difference.AHEAD),
        (None, 1, None, Difference.EXTRA),
        (2, 2, None, None),
        (2, 1, None, Difference.EXTRA),
        # Made or changed while the readings were under way.
        (None, None, 1, None),
        (None, 1, 1, None),
        (None, 1, 2, None),
        (2, 3, 3, None),
        (2, 3, 4, None),
        # Gone from the shard meanwhile, and never in the index.
        (2, None, None, None),
    ],
)
def test_a_difference_is_named_by_what_it_proves(
    before: int | None, index: int | None, after: int | None, how: Difference | None
) -> None:
    def seen(version: int | None) -> dict[str, int]:
        return {} if version is None else {"a": version}

    found = differences(Versions(seen(before), seen(index), seen(after)), frozenset())
    assert found == ({} if how is None else {"a": how})
    assert differences(Versions(seen(before), seen(index), seen(after)), {"a"}) == {}


@given(VERSIONS, some.dictionaries(some.sampled_from("abcde"), some.integers(0, 2)))
def test_an_index_that_follows_the_shard_never_differs(before: dict[str, int], more: dict[str, int]) -> None:
    """The index has what the first reading saw or something newer, and the second reading has what it has."""
    index = {name: version + more.get(name, 0) for name, version in before.items()}
    after = {name: version + more.get(name, 0) for name, version in index.items()}
    assert differences(Versions(before, index, after), frozenset()) == {}


@given(VERSIONS, VERSIONS)
def test_only_what_differs_is_asked_for_once_more(before: dict[str, int], index: dict[str, int]) -> None:
    asked = suspects(before, index)
    assert asked == sorted(set(asked))
    assert all(before.get(name) != index.get(name) for name in asked)
    assert {name: before.get(name) for name in before if name not in asked} == {
        name: index.get(name) for name in before if name not in asked
    }


def test_days_differ_when_either_side_has_another_sum_or_none() -> None:
    same = DaySum(1, DAY, 2, 3, 4)
    ours = [same, DaySum(2, DAY, 1, 1, 1), DaySum(3, DAY, 1, 1, 1)]
    theirs = [same, DaySum(2, DAY, 1, 1, 2), DaySum(4, DAY, 1, 1, 1)]
    assert differing_days(ours, theirs) == [(2, DAY), (3, DAY), (4, DAY)]


def test_findings_add_up_and_say_what_only_another_index_helps() -> None:
    found = Findings(missing=1, repaired=1) + Findings(stale=2, refused=1)
    assert found == Findings(missing=1, stale=2, refused=1, repaired=1)
    assert (found.differing, found.is_foreign) == (3, False)
    assert Findings(extra=1).is_foreign
    assert Findings(ahead=1).is_foreign


def catalog(*rows: tuple[int, str]) -> Catalog:
    return catalog_of(
        1, [("2026-09-01", generation, f"v{generation}", "", "", state) for generation, state in rows]
    )


@pytest.mark.parametrize(
    ("catalogs", "generation"),
    [
        ([], None),
        ([catalog()], None),
        ([catalog((1, "SERVING")), catalog()], 1),
        ([catalog((1, "SERVING"), (2, "SERVING")), catalog((1, "SERVING"))], 1),
        ([catalog((1, "SERVING"), (2, "SERVING")), catalog((1, "SERVING"), (3, "SERVING"))], 2),
        ([catalog((1, "SERVING")), catalog((2, "BUILDING"))], None),
        ([catalog((1, "RETIRED"), (2, "SERVING"))], 2),
    ],
)
def test_a_generation_is_left_when_no_shard_reads_below_it(
    catalogs: list[Catalog], generation: int | None
) -> None:
    assert served_by_all(catalogs, DAY) == generation
