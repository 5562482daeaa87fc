"""The fields of a document, once for every read model: what may be in them, and what is searched. Pure.

A document with another field, or with something else in a field, is refused; what is refused by one read
model is refused by all.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping

LONG_MIN, LONG_MAX = -(1 << 63), (1 << 63) - 1
KEYWORD_BYTES_MAX = 32_766
"""A longer word cannot be indexed."""


class Holds(Enum):
    """What a field holds."""

    WORD = "a string"
    WORDS = "a list of strings"
    NUMBER = "an integer of 64 bits"
    FLAG = "true or false"
    OBJECT = "an object"


@dataclass(frozen=True, slots=True)
class Field:
    """One field.

    is_searched: searches look for its value. is_sorted: they sort by it, add it up or count by it.
    """

    holds: Holds
    is_searched: bool = False
    is_sorted: bool = False
    may_be_null: bool = False


FIELDS: Mapping[str, Field] = {
    "order_id": Field(Holds.WORD, is_searched=True, is_sorted=True),
    "user_id": Field(Holds.WORD, is_searched=True),
    "bucket": Field(Holds.NUMBER),
    "read_routing": Field(Holds.WORD),
    "version": Field(Holds.NUMBER, is_sorted=True),
    "status": Field(Holds.WORD, is_searched=True, is_sorted=True),
    "stage": Field(Holds.WORD, is_sorted=True),
    "kind": Field(Holds.WORD, is_searched=True, is_sorted=True),
    "legs": Field(Holds.WORDS),
    "leg": Field(Holds.NUMBER),
    "attempt": Field(Holds.NUMBER),
    "amount_minor": Field(Holds.NUMBER, is_searched=True),
    "currency_code": Field(Holds.WORD, is_searched=True),
    "currency_exp": Field(Holds.NUMBER),
    "upstream_ref": Field(Holds.WORD),
    "failure_reason": Field(Holds.WORD, is_sorted=True),
    "basis": Field(Holds.WORD, may_be_null=True),
    "traceparent": Field(Holds.WORD),
    "labels": Field(Holds.OBJECT),
    "description": Field(Holds.WORD),
    "request_id": Field(Holds.WORD),
    "created_us": Field(Holds.NUMBER, is_searched=True, is_sorted=True),
    "updated_us": Field(Holds.NUMBER),
    "settled_us": Field(Holds.NUMBER, may_be_null=True),
    "terms": Field(Holds.WORDS, is_searched=True),
    "stream_partition": Field(Holds.NUMBER, is_searched=True, is_sorted=True),
    "h32": Field(Holds.NUMBER, is_sorted=True),
    "deleted": Field(Holds.FLAG, is_searched=True),
}
NOT_SHOWN = ("terms", "h32", "stream_partition", "deleted")
"""What a search does not bring back."""


def why_refused(document: Mapping[str, Any]) -> str:
    """What is wrong with a document; empty when nothing is."""
    if document.keys() != FIELDS.keys():
        odd = sorted(document.keys() ^ FIELDS.keys())
        return f"fields that are missing or not known: {', '.join(odd)[:200]}"
    for name, field in FIELDS.items():
        if not _fits(document[name], field):
            return f"{name} does not hold {field.holds.value}"
    return ""


def _fits(value: Any, field: Field) -> bool:
    if value is None:
        return field.may_be_null
    match field.holds:
        case Holds.WORD:
            return _is_word(value, field)
        case Holds.WORDS:
            return isinstance(value, list) and all(_is_word(each, field) for each in value)
        case Holds.NUMBER:
            return isinstance(value, int) and not isinstance(value, bool) and LONG_MIN <= value <= LONG_MAX
        case Holds.FLAG:
            return isinstance(value, bool)
        case Holds.OBJECT:
            return isinstance(value, dict)


def _is_word(value: Any, field: Field) -> bool:
    if not isinstance(value, str) or "\0" in value:
        return False
    return not (field.is_searched and 4 * len(value) > KEYWORD_BYTES_MAX) or (
        len(value.encode()) <= KEYWORD_BYTES_MAX
    )
