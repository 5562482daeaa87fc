"""Words of a description, for search. Pure, and the only place that decides them: a document gets its words
when it is written, a row that is shown in its stead gets them when it is read, so that both sides agree.
"""

from __future__ import annotations

import re
import unicodedata

WORD_CHARS_MAX = 24
"""A word is cut here, in documents and in questions alike."""
WORDS_MAX = 96
"""Words of one description that can be found: 512 characters hold no more than that in practice."""
ASKED_WORDS_MAX = 8
PREFIX_CHARS_MIN = 3
"""Shorter beginnings of words find nothing but whole words."""
_WORD = re.compile(r"\w+")


def words(text: str) -> tuple[str, ...]:
    """The distinct words of a text in their order: lower case, without accents, cut to their length."""
    plain = text.casefold()
    if not plain.isascii():
        plain = unicodedata.normalize("NFKD", plain)
        plain = "".join(char for char in plain if not unicodedata.combining(char))
    return tuple(dict.fromkeys(word[:WORD_CHARS_MAX] for word in _WORD.findall(plain)))


def terms(text: str) -> list[str]:
    """What a description is found by: each word, and its beginnings of three and more characters."""
    found: dict[str, None] = {}
    for word in words(text)[:WORDS_MAX]:
        found[word] = None
        for length in range(PREFIX_CHARS_MIN, len(word)):
            found[word[:length]] = None
    return list(found)
