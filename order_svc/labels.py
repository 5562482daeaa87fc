"""Labels of an order: what they may be, what a new set says in the journal, and by what it is known again.

Pure. Labels are the caller's own notes; they decide nothing here.
"""

from __future__ import annotations

import hashlib
import json
from typing import TYPE_CHECKING

from chassis.errors import InvalidField

if TYPE_CHECKING:
    from collections.abc import Mapping

LABELS_MAX = 256
"""As JSON each takes up to eight bytes more than it says, and the table holds 16 KiB of them."""
LABELS_BYTES_MAX = 4096
DIFFERENCE_BYTES_MAX = 3600
"""As JSON; the journal's 4 KiB hold it with the facts around it."""


def read(labels: Mapping[str, str]) -> dict[str, str]:
    """Check a caller's labels.

    Raises: InvalidField.
    """
    for key, value in labels.items():
        if not key or not _is_plain(key + value):
            raise InvalidField.of("labels", "keys must not be empty, and nothing may hold control characters")
    if len(labels) > LABELS_MAX:
        raise InvalidField.of("labels", f"must be at most {LABELS_MAX}")
    if sum(len(key.encode()) + len(value.encode()) for key, value in labels.items()) > LABELS_BYTES_MAX:
        raise InvalidField.of("labels", f"must have at most {LABELS_BYTES_MAX} bytes in all")
    return dict(labels)


def digest(labels: Mapping[str, str]) -> str:
    """The same for the same labels, in whatever order and encoding they came."""
    named = json.dumps(dict(labels), sort_keys=True, separators=(",", ":"), ensure_ascii=True)
    return hashlib.sha256(named.encode()).hexdigest()


def difference(before: Mapping[str, str], after: Mapping[str, str]) -> dict[str, object]:
    """What a new set of labels changed, as evidence: names and values while they fit, else how many."""
    put = {key: value for key, value in after.items() if before.get(key) != value}
    removed = sorted(before.keys() - after.keys())
    facts: dict[str, object] = {"put": put, "removed": removed}
    if len(json.dumps(facts, ensure_ascii=False).encode()) > DIFFERENCE_BYTES_MAX:
        facts = {"put_count": len(put), "removed_count": len(removed)}
    return {**facts, "digest": digest(after)}


def _is_plain(text: str) -> bool:
    """Whether it has no control characters: JSON makes six of each, and NUL cannot be stored."""
    return all(ord(char) >= 32 and ord(char) != 127 for char in text)
