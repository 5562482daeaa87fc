"""From where to where is a user moved, and who may not be?"""

from __future__ import annotations

from dataclasses import replace
from uuid import uuid4

import pytest

from chassis.errors import InvalidField, OrdermeshError
from chassis.ids import user_bucket
from shard_proxy.errors import AlreadyVip, MoveInProgress, NotAVip, UnknownShard
from shard_proxy.moves import Kind, Phase, Route, Situation, Wish, plan

HASHED = user_bucket("alice")
NOBODY = Situation(
    map_version=7,
    vip_buckets=(),
    dedicated=(),
    shards={"s1": False, "v1": True, "v2": True},
    owners={},
    busy_buckets=frozenset(),
    busy_users=frozenset(),
)
VIP = replace(NOBODY, vip_buckets=(4096,), dedicated=(4096,), owners={4096: "v1", 4097: "v1", 4099: "v2"})


def wish(kind: Kind = Kind.PROMOTE, **fields: str) -> Wish:
    known = {"move_id": uuid4(), "user_id": "alice", "kind": kind, "reason": "-", "actor": "mira"}
    return Wish(**{**known, **fields})  # type: ignore[arg-type]


def test_a_new_vip_gets_the_next_free_number_on_the_emptiest_shard_of_vips() -> None:
    assert plan(NOBODY, wish(), "s1") == Route(HASHED, 4096, "v1")
    others = replace(VIP, vip_buckets=(), dedicated=())
    assert plan(others, wish(), "s1") == Route(HASHED, 4100, "v2")
    assert plan(others, wish(shard="s1"), "s1") == Route(HASHED, 4100, "s1")


def test_whoever_was_a_vip_before_gets_the_same_bucket_again_if_it_is_on_the_shard() -> None:
    former = replace(VIP, vip_buckets=(), dedicated=(4099, 4096))
    assert plan(former, wish(shard="v1"), "s1").new_bucket == 4096
    assert plan(former, wish(), "s1") == Route(HASHED, 4099, "v2")
    assert plan(former, wish(shard="s1"), "s1").new_bucket == 4100


def test_a_demotion_is_the_mirror() -> None:
    assert plan(VIP, wish(Kind.DEMOTE), "s1") == Route(4096, HASHED, "s1")


@pytest.mark.parametrize(
    ("situation", "asked", "refusal"),
    [
        (VIP, wish(), AlreadyVip),
        (NOBODY, wish(Kind.DEMOTE), NotAVip),
        (replace(VIP, vip_buckets=(4096, 4097)), wish(Kind.DEMOTE), NotAVip),
        (NOBODY, wish(shard="s9"), UnknownShard),
        (replace(NOBODY, shards={"s1": False}), wish(), UnknownShard),
        (replace(NOBODY, busy_users=frozenset({"alice"})), wish(), MoveInProgress),
        (replace(NOBODY, busy_buckets=frozenset({HASHED})), wish(), MoveInProgress),
        (replace(VIP, busy_buckets=frozenset({HASHED})), wish(Kind.DEMOTE), MoveInProgress),
    ],
)
def test_who_cannot_be_moved_is_told_why(
    situation: Situation, asked: Wish, refusal: type[OrdermeshError]
) -> None:
    with pytest.raises(refusal):
        plan(situation, asked, "s1")


@pytest.mark.parametrize(
    "fields", [{"reason": " "}, {"reason": "x" * 513}, {"reason": "\0"}, {"user_id": "a b"}]
)
def test_a_wish_names_a_user_and_a_reason(fields: dict[str, str]) -> None:
    with pytest.raises(InvalidField):
        wish(Kind.PROMOTE, **fields).checked()


def test_a_move_is_over_when_nobody_has_to_do_anything() -> None:
    assert [phase for phase in Phase if phase.is_over] == [Phase.DONE, Phase.ABORTED]
