"""A month's manifest: everything that its catalog says, so that a lost catalog can be made again of it. Pure.

It says nothing of when: the same edition gives the same bytes, so that storing it twice is storing it once.
Editions are numbered by the shard, under the lease: whoever was replaced has an older one, whenever he stores
it.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from archive_svc.segment import Facts
from chassis.s3 import Stored

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from uuid import UUID

    from archive_svc.entries import CataloguedSegment, Part
    from archive_svc.lifecycle import Month
    from archive_svc.segment import Key

FORMAT = "ordermesh.archive.v1"
MANIFEST_TYPE = "application/json"


class ManifestUnreadable(Exception):
    """An object where a manifest should be is none, or says what nobody here understands."""


def manifest_of(
    shard: str, month: Month, parts: Sequence[Part], segments: Sequence[CataloguedSegment]
) -> bytes:
    """The manifest of a proven month, as UTF-8 JSON with sorted names."""
    told: dict[str, Any] = {
        "format": FORMAT,
        "shard": shard,
        "month": month.name,
        "archive_id": str(month.archive_id),
        "edition": month.edition,
        "begins_at": month.begins_at.isoformat(),
        "ends_at": month.ends_at.isoformat(),
        "orders": sum(part.order_count for part in parts),
        "journal_entries": sum(part.journal_count for part in parts),
        "orders_hash": str(month.orders_hash),
        "journal_hash": str(month.journal_hash),
        "parts": [_part(part) for part in parts],
        "segments": [
            {
                "part": each.part,
                "key": each.stored.key,
                "version_id": each.stored.version_id,
                "etag": each.stored.etag,
                "facts": each.facts.as_json(),
            }
            for each in segments
        ],
    }
    return json.dumps(told, sort_keys=True, ensure_ascii=False, indent=1).encode()


def parsed(body: bytes) -> dict[str, Any]:
    """A manifest, and every segment's facts tried. Raises: ManifestUnreadable."""
    try:
        told = json.loads(body)
        if told["format"] != FORMAT:
            raise ManifestUnreadable(f"its format is {told['format']!r}")
        for segment in told["segments"]:
            Facts.from_json(segment["facts"])
    except (ValueError, KeyError, TypeError) as wrong:
        raise ManifestUnreadable(f"{type(wrong).__name__}: {wrong}") from wrong
    return dict(told)


def objects_of(manifest: Mapping[str, Any]) -> list[Stored]:
    """The objects that a manifest names."""
    return [
        Stored(
            each["key"],
            each["facts"]["size_bytes"],
            each["etag"],
            version_id=each["version_id"],
            sha256=each["facts"]["sha256"],
        )
        for each in manifest["segments"]
    ]


def about(shard: str, archive_id: UUID, month: str, part: int) -> dict[str, str]:
    """What a segment says of itself."""
    return {"shard": shard, "archive_id": str(archive_id), "month": month, "part": str(part)}


def _part(part: Part) -> dict[str, Any]:
    return {
        "part": part.number,
        "after": _key(part.after),
        "until": _key(part.until),
        "orders": part.order_count,
        "journal_entries": part.journal_count,
    }


def _key(key: Key) -> list[str]:
    return [key.user_id, key.created_at.isoformat(), str(key.order_id)]
