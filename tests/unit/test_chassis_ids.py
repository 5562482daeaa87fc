"""Order ids: valid UUIDv7, growing, and telling bucket and time for ever."""

from __future__ import annotations

from datetime import UTC, datetime
from uuid import RFC_4122, UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st

from chassis.errors import InvalidField, OrderIdInvalid
from chassis.ids import (
    BUCKETS,
    HASHED_BUCKETS,
    OrderIds,
    id_bucket,
    id_time,
    parse_order_id,
    parse_user_id,
    parse_uuid,
    user_bucket,
)

VECTORS = {"alice": 701, "42": 1844, "vip.1": 4088}


def test_the_published_vectors_of_the_hash_hold() -> None:
    assert {user: user_bucket(user) for user in VECTORS} == VECTORS


def test_users_spread_evenly_over_the_hashed_buckets() -> None:
    counts = [0] * HASHED_BUCKETS
    for number in range(HASHED_BUCKETS * 20):
        counts[user_bucket(f"user-{number}")] += 1
    assert min(counts) > 0
    assert max(counts) < 60


@given(bucket=st.integers(0, BUCKETS - 1), ms=st.integers(1, 2**47))
def test_an_id_is_a_uuid_v7_and_tells_its_bucket_and_its_time(bucket: int, ms: int) -> None:
    made = OrderIds(lambda: ms).new(bucket)
    assert (made.version, made.variant) == (7, RFC_4122)
    assert id_bucket(made) == bucket
    assert made.int >> 80 == ms
    assert parse_order_id(str(made)) == made


def test_the_time_of_an_id_is_exact_to_the_millisecond() -> None:
    made = OrderIds(lambda: 1_767_225_600_123).new(701)
    assert id_time(made) == datetime(2026, 1, 1, 0, 0, 0, 123_000, tzinfo=UTC)


@given(clock=st.lists(st.integers(1_000_000, 1_000_010), min_size=2, max_size=200))
def test_ids_of_one_process_never_go_back_whatever_the_clock_does(clock: list[int]) -> None:
    ticks = iter(clock)
    ids = OrderIds(lambda: next(ticks))
    made = [ids.new(bucket=5) for _ in clock]
    assert made == sorted(made)
    assert len(set(made)) == len(made)


def test_more_ids_than_a_millisecond_holds_borrow_from_the_next() -> None:
    ids = OrderIds(lambda: 1_767_225_600_000)
    made = [ids.new(bucket=9) for _ in range(20_000)]
    assert made == sorted(set(made))
    assert made[-1].int >> 80 > 1_767_225_600_000


def test_a_bucket_outside_the_map_is_refused() -> None:
    for bucket in (-1, BUCKETS):
        with pytest.raises(ValueError, match="bucket"):
            OrderIds(lambda: 1).new(bucket)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "x",
        "01890a5d-ac96-774b-bcce",
        "01890a5dac96774bbcceb302099a8057",
        "{01890a5d-ac96-774b-bcce-b302099a8057}",
        "urn:uuid:01890a5d-ac96-774b-bcce-b302099a8057",
        "01890a5d-ac96-474b-bcce-b302099a8057",
        "01890a5d-ac96-774b-bcce-b302099a8057 ",
        "ffffffff-ffff-7fff-bfff-ffffffffffff",
    ],
)
def test_what_is_not_an_order_id_is_refused(text: str) -> None:
    with pytest.raises(OrderIdInvalid):
        parse_order_id(text)


def test_an_order_id_reads_in_either_case() -> None:
    text = "01890a5d-ac96-774b-bcce-b302099a8057"
    assert parse_order_id(text.upper()) == UUID(text)


@given(st.text(alphabet="abcXYZ059_.:-", min_size=1, max_size=64))
def test_a_user_id_is_1_to_64_of_the_allowed_characters(text: str) -> None:
    assert parse_user_id(text) == text


@pytest.mark.parametrize("text", ["", "a" * 65, "a b", "ä", "a\n", "a/b", "\u0661", "a\x00"])
def test_any_other_user_id_is_refused_with_the_name_of_its_field(text: str) -> None:
    with pytest.raises(InvalidField) as refused:
        parse_user_id(text, field_name="owner")
    assert [violation.field for violation in refused.value.violations] == ["owner"]


def test_a_request_id_is_a_uuid_with_hyphens() -> None:
    text = "9b2f1b1e-1111-4222-8333-444455556666"
    assert parse_uuid(text, field_name="request_id") == UUID(text)
    for wrong in ("", text.replace("-", ""), text + "0", "no"):
        with pytest.raises(InvalidField):
            parse_uuid(wrong, field_name="request_id")
