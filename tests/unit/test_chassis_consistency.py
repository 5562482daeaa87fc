"""Consistency tokens: what was seen survives the way through a caller, and nonsense is told apart."""

import base64

import pytest
from hypothesis import given
from hypothesis import strategies as st

from chassis import consistency

SHARDS = st.from_regex(r"[a-z][a-z0-9_-]{0,31}", fullmatch=True)
SEEN = st.dictionaries(SHARDS, st.tuples(st.integers(0, 10**9), st.integers(0, 2**64 - 1)), max_size=8)


def token_of(text: str) -> str:
    return base64.urlsafe_b64encode(text.encode()).rstrip(b"=").decode()


@given(SEEN)
def test_a_token_says_what_was_seen(seen):
    assert consistency.opened(consistency.sealed(seen)) == seen


@given(SEEN, SEEN)
def test_of_each_shard_the_newest_counts_and_the_last_written_stands_first(written, before):
    both = consistency.merged(written, before)
    assert both == {
        shard: max(seen[shard] for seen in (written, before) if shard in seen) for shard in written | before
    }
    assert list(both)[: len(written)] == list(written)


@given(st.text(max_size=80) | st.binary(max_size=80).map(lambda raw: base64.urlsafe_b64encode(raw).decode()))
def test_any_text_is_read_or_refused(text):
    seen = consistency.opened(text)
    assert seen is None or len(consistency.sealed(seen)) <= consistency.TOKEN_CHARS_MAX


@pytest.mark.parametrize(
    "said",
    ["s1", "s1:1", "s1:1:2:3", "s1:-1:2", "s1: 1:2", "S1:1:2", "s1:1:2,", "s1:1_0:2", "s1:1:" + "9" * 21],
)
def test_what_nobody_was_answered_with_is_none_of_ours(said):
    assert consistency.opened(token_of(said)) is None


def test_a_shard_that_is_named_twice_counts_with_its_newest_position():
    assert consistency.opened(token_of("s1:1:9,s1:2:3,s1:1:4")) == {"s1": (2, 3)}


def test_a_token_stays_short_and_what_was_written_first_is_left_out():
    many = {f"shard-{number:02}-{'x' * 20}": (2**62, 2**64 - 1) for number in range(40)}
    token = consistency.sealed(many)
    assert len(token) <= consistency.TOKEN_CHARS_MAX
    kept = consistency.opened(token)
    assert kept
    assert list(kept) == list(many)[: len(kept)]
    assert len(consistency.opened(consistency.sealed({f"s{n}": (1, 1) for n in range(40)})) or ()) == 16
