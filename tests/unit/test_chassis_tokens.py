"""Page tokens: a position comes back as it was sealed, for its own query only."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from chassis.errors import PageTokenInvalid
from chassis.tokens import TOKEN_CHARS_MAX, PageTokens

NEW, OLD = b"n" * 32, b"o" * 32


@given(position=st.binary(max_size=200), query=st.text(max_size=50))
def test_a_token_opens_to_what_was_sealed_and_fits_in_a_url(position: bytes, query: str) -> None:
    tokens = PageTokens(NEW)
    token = tokens.seal(position, query)
    assert tokens.open(token, query) == position
    assert token.replace("-", "").replace("_", "").isalnum()


@given(position=st.binary(max_size=50), at=st.integers(0, 1000), flip=st.integers(1, 255))
def test_a_changed_token_is_refused(position: bytes, at: int, flip: int) -> None:
    tokens = PageTokens(NEW)
    token = tokens.seal(position, "q")
    spot = at % len(token)
    changed = token[:spot] + chr((ord(token[spot]) ^ flip) & 0x7F) + token[spot + 1 :]
    try:
        opened = tokens.open(changed, "q")
    except PageTokenInvalid:
        return
    assert opened == position, "only the unused bits of the last character may differ"


def test_a_token_of_another_query_is_refused() -> None:
    tokens = PageTokens(NEW)
    with pytest.raises(PageTokenInvalid):
        tokens.open(tokens.seal(b"position", "alice"), "bob")
    with pytest.raises(PageTokenInvalid):
        tokens.open(tokens.seal(b"b\0position", "a"), "a\0b")


def test_keys_are_changed_without_breaking_pages_that_are_being_read() -> None:
    before, during, after = PageTokens(OLD), PageTokens(NEW, OLD), PageTokens(NEW)
    token = before.seal(b"position", "q")
    assert during.open(token, "q") == b"position"
    assert after.open(during.seal(b"position", "q"), "q") == b"position"
    with pytest.raises(PageTokenInvalid):
        after.open(token, "q")


@pytest.mark.parametrize("token", ["", "=", "AAAA", "ä", "a b", "a\n", "A" * (TOKEN_CHARS_MAX + 1), "\x00"])
def test_nonsense_is_refused(token: str) -> None:
    with pytest.raises(PageTokenInvalid):
        PageTokens(NEW).open(token, "q")


@pytest.mark.parametrize("keys", [(), (b"short",), (NEW, b"short")])
def test_weak_or_missing_keys_are_refused(keys: tuple[bytes, ...]) -> None:
    with pytest.raises(ValueError, match="16 bytes"):
        PageTokens(*keys)
