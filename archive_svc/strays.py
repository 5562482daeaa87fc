"""Which objects of a shard's bucket are strays: nothing needs them, whatever of the catalog was lost. Pure.

A segment that no row names may be all there is of its month when the catalog was lost, or came back older
than it was. So a manifest speaks for what it names until a newer one that the catalog knows has taken its
place, and a manifest that the catalog should know and does not stops the whole walk.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING
from uuid import UUID

from archive_svc.lifecycle import edition_of, manifest_prefix
from archive_svc.statement.files import statements_prefix

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from chassis.s3 import Found

_MONTH_OF = {
    "SEGMENT": re.compile(r"/month=(\d{4}-\d{2})/part-\d{5}-[0-9a-f]{32}\.parquet"),
    "MANIFEST": re.compile(r"/(\d{4}-\d{2})/[0-9a-f-]{36}-[0-9a-f]{16}(?:-\d{10})?\.json"),
}
_STATEMENT = re.compile(r"/([0-9a-f-]{36})/\d+\.zip")


class Kind(StrEnum):
    """What an object is."""

    SEGMENT = "SEGMENT"
    MANIFEST = "MANIFEST"
    STATEMENT = "STATEMENT"


class Standing(StrEnum):
    """What a manifest is to the catalog."""

    CURRENT = "CURRENT"
    """The catalog names it."""
    KEPT = "KEPT"
    """The catalog does not name it, and may: a try is under way, or the month's tables are here."""
    SUPERSEDED = "SUPERSEDED"
    """The catalog names a newer one of its month; nobody makes a catalog of this one any more."""
    AHEAD = "AHEAD"
    """It says more than the catalog does: this was lost, or is older than S3."""


@dataclass(frozen=True, slots=True)
class Place:
    """A prefix of a shard, and what is there."""

    kind: Kind
    prefix: str


@dataclass(frozen=True, slots=True)
class Known:
    """What the shard knows of a month.

    edition:  of what it knows; it numbers its manifests, and knows of every one up to this.
    is_asked: whether the catalog has a row of it. is_here: whether its tables hang on their parents.
    is_held:  whether a legal hold keeps all of it.
    """

    month: str
    manifest_key: str
    is_asked: bool
    is_here: bool
    is_held: bool
    edition: int = 0


@dataclass(frozen=True, slots=True)
class Named:
    """An object whose key is one of ours. month: of a segment or manifest. statement_id: of a file."""

    found: Found
    kind: Kind
    month: str = ""
    statement_id: UUID | None = None


def places_of(shard: str) -> tuple[Place, ...]:
    """Where a shard's objects are, in the order in which they are walked over."""
    return (
        Place(Kind.SEGMENT, f"orders/v1/shard={shard}/"),
        Place(Kind.SEGMENT, f"order_journal/v1/shard={shard}/"),
        # After the segments: what a superseded manifest named may go before it, never the other way round.
        Place(Kind.MANIFEST, manifest_prefix(shard)),
        Place(Kind.STATEMENT, statements_prefix(shard)),
    )


def named(place: Place, found: Found) -> Named | None:
    """What a key says; None when it is none of ours, which nobody touches."""
    rest = found.key.removeprefix(place.prefix.removesuffix("/"))
    if place.kind is Kind.STATEMENT:
        match = _STATEMENT.fullmatch(rest)
        return Named(found, place.kind, statement_id=UUID(match[1])) if match else None
    match = _MONTH_OF[place.kind].fullmatch(rest)
    return Named(found, place.kind, month=match[1]) if match else None


def standings(manifests: Iterable[Named], months: Mapping[str, Known]) -> dict[str, Standing]:
    """What each manifest of a shard is to its catalog, by key."""
    listed = {each.found.key: each for each in manifests}
    return {key: _standing(each, months.get(each.month), listed) for key, each in listed.items()}


def _standing(manifest: Named, known: Known | None, listed: Mapping[str, Named]) -> Standing:
    """What a manifest is to its month."""
    if known is None:
        return Standing.AHEAD
    if manifest.found.key == known.manifest_key:
        return Standing.CURRENT
    current, edition = listed.get(known.manifest_key), edition_of(manifest.found.key)
    if edition or known.edition:
        # One that was replaced may store his manifest at any time, but not number it anew. The month's tables
        # alone are its last edition when no copy counts any more.
        is_spoken_for = current is not None or (known.is_here and not known.manifest_key)
        is_older = is_spoken_for and edition < known.edition
    else:
        # In the same second nobody can say which is the newer one.
        is_older = current is not None and manifest.found.stored_at < current.found.stored_at
    if is_older:
        return Standing.SUPERSEDED
    if known.is_here or (known.manifest_key and current is None) or 0 < edition <= known.edition:
        return Standing.KEPT
    return Standing.AHEAD


def refusal(standing: Mapping[str, Standing], months: Mapping[str, Known], *, has_copies: bool) -> str:
    """Why nothing may be called a stray; empty when nothing speaks against it.

    months:     all that the shard knows.
    has_copies: whether there are segments or manifests in S3.
    """
    ahead = sorted(key for key, each in standing.items() if each is Standing.AHEAD)
    if ahead:
        return f"CATALOG_BEHIND: it does not know {ahead[0]} and {len(ahead) - 1} other manifests"
    if has_copies and not any(known.is_asked for known in months.values()):
        return "CATALOG_EMPTY: it knows no month, and S3 has copies"
    return ""
