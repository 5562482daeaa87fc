"""Consistency tokens: what a caller has seen, as (log_epoch, xid) by shard.

Every mutating call returns one, and a list that is given one is not older. To callers a token is opaque; it
carries no authority, since all it can do is to make a read fresher. Pure.
"""

from __future__ import annotations

import base64
import re
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping

TOKEN_CHARS_MAX = 1024
SHARDS_MAX = 16
"""A salted VIP has orders on so many buckets at most, and the shards that own them are fewer."""
Seen = dict[str, tuple[int, int]]
"""(log_epoch, xid) by shard, the shard that was written last first."""
_ENTRY = re.compile(r"([a-z][a-z0-9_-]{0,31}):(\d{1,19}):(\d{1,20})", re.ASCII)


def sealed(seen: Mapping[str, tuple[int, int]]) -> str:
    """The token of what was seen; never longer than `TOKEN_CHARS_MAX`, as the shards written first are left
    out where there are too many.
    """
    entries = [f"{shard}:{log_epoch}:{xid}" for shard, (log_epoch, xid) in seen.items()][:SHARDS_MAX]
    while len(token := _encoded(",".join(entries))) > TOKEN_CHARS_MAX:
        entries.pop()
    return token


def opened(token: str) -> Seen | None:
    """What a token says; None when it is none of ours. Of one shard the newest position counts."""
    if not token:
        return {}
    if len(token) > TOKEN_CHARS_MAX:
        return None
    try:
        plain = base64.b64decode(token + "=" * (-len(token) % 4), altchars=b"-_", validate=True)
        entries = [_ENTRY.fullmatch(entry) for entry in plain.decode("ascii").split(",")]
    except ValueError:
        return None
    seen: Seen = {}
    for entry in entries:
        if entry is None:
            return None
        seen = merged(seen, {entry[1]: (int(entry[2]), int(entry[3]))})
    return seen


def merged(*all_seen: Mapping[str, tuple[int, int]]) -> Seen:
    """Everything that was seen, the newest of each shard; shards in the order in which they come."""
    together: Seen = {}
    for seen in all_seen:
        for shard, position in seen.items():
            together[shard] = max(together.get(shard, position), position)
    return together


def _encoded(text: str) -> str:
    return base64.urlsafe_b64encode(text.encode()).rstrip(b"=").decode()
