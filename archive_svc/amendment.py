"""An amendment as an object in S3, so that a lost catalog gets it back: all that its row says. Pure.

It lies below its user, by a digest of the name, so that who is erased takes all of theirs along, also those
that no row names.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass
from datetime import datetime
from typing import TYPE_CHECKING
from uuid import UUID

if TYPE_CHECKING:
    from collections.abc import Mapping

FORMAT = "ordermesh.amendment.v1"
AMENDMENT_TYPE = "application/json"


class AmendmentUnreadable(Exception):
    """An object where an amendment should be is none, or says what nobody here understands."""


@dataclass(frozen=True, slots=True)
class Noted:
    """What was noted. changes: fields of the order by name. amended_at: the shard's clock then."""

    amendment_id: UUID
    order_id: UUID
    user_id: str
    note: str
    changes: Mapping[str, str]
    actor: str
    reason: str
    amended_at: datetime

    def body(self) -> bytes:
        """The object, as UTF-8 JSON with sorted names."""
        told = asdict(self) | {
            "format": FORMAT,
            "amendment_id": str(self.amendment_id),
            "order_id": str(self.order_id),
            "changes": dict(self.changes),
            "amended_at": self.amended_at.isoformat(),
        }
        return json.dumps(told, sort_keys=True, ensure_ascii=False, indent=1).encode()


def parsed(body: bytes) -> Noted:
    """What an object says. Raises: AmendmentUnreadable."""
    try:
        told = json.loads(body)
        if told.pop("format") != FORMAT:
            raise AmendmentUnreadable("its format is another one")
        noted = Noted(
            **{
                **told,
                "amendment_id": UUID(told["amendment_id"]),
                "order_id": UUID(told["order_id"]),
                "amended_at": datetime.fromisoformat(told["amended_at"]),
            }
        )
        texts = (noted.user_id, noted.note, noted.actor, noted.reason, *noted.changes.values())
        if not all(isinstance(text, str) for text in texts):
            raise AmendmentUnreadable("not all that should be is text")
        return noted
    except (ValueError, KeyError, TypeError, AttributeError) as wrong:
        raise AmendmentUnreadable(f"{type(wrong).__name__}: {wrong}") from wrong


def amendments_prefix(shard: str) -> str:
    """Where all amendments of a shard are."""
    return f"_amendment/orders/v1/shard={shard}/"


def prefix_of(shard: str, user_id: str) -> str:
    """Where all amendments of a user are."""
    return f"{amendments_prefix(shard)}{hashlib.sha256(user_id.encode()).hexdigest()[:32]}/"


def key_of(shard: str, noted: Noted) -> str:
    """Where an amendment is stored."""
    return key_below(prefix_of(shard, noted.user_id), noted.amendment_id)


def key_below(prefix: str, amendment_id: UUID) -> str:
    """Where an amendment of a user is stored. prefix: the user's."""
    return f"{prefix}{amendment_id}.json"
