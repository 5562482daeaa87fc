"""Stores the manifest of a month as its catalog is now, and finds those that there are."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from archive_svc import points
from archive_svc.lifecycle import edition_of, manifest_key, manifest_prefix
from archive_svc.manifest import MANIFEST_TYPE, manifest_of
from chassis import faults

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from archive_svc.catalog import Catalog
    from archive_svc.lifecycle import Month
    from archive_svc.retention import Retention
    from chassis.s3 import Found, ObjectStore, Stored


async def pages_below(store: ObjectStore, prefix: str) -> AsyncIterator[tuple[Found, ...]]:
    """Every object below a prefix, a page at a time. Raises: S3Error."""
    after = ""
    while True:
        page = await store.list(prefix, after=after)
        yield page.objects
        if not page.more:
            return
        after = page.objects[-1].key


async def all_below(store: ObjectStore, prefix: str) -> list[Found]:
    """Every manifest below a prefix; a month has one or few. Raises: S3Error."""
    return [found async for page in pages_below(store, prefix) for found in page]


async def newest_edition(store: ObjectStore, shard: str, month: Month, *, but: str = "") -> int:
    """The highest number of a month's manifests in S3, but for one; 0 without any. Raises: S3Error."""
    found = await all_below(store, f"{manifest_prefix(shard)}{month.name}/")
    return max((edition_of(each.key) for each in found if each.key != but), default=0)


async def store_manifest(
    catalog: Catalog, store: ObjectStore, retention: Retention, month: Month, fence: int
) -> Stored:
    """Store a month's manifest under a number that no other one of the month has, or exceeds. Idempotent.

    Raises: LeaseLost; S3Error; what chassis.pg raises.
    """
    parts, segments = await catalog.parts(month.archive_id), await catalog.segments(month.archive_id)
    body = manifest_of(catalog.shard, month, parts, segments)
    key = manifest_key(catalog.shard, month, body)
    newest = await newest_edition(store, catalog.shard, month, but=key)
    if newest and newest >= month.edition:
        # The shard came back older than S3 is, and numbers again.
        await catalog.raise_edition(fence, month, newest + 1)
        month = replace(month, edition=newest + 1)
        body = manifest_of(catalog.shard, month, parts, segments)
        key = manifest_key(catalog.shard, month, body)
    await faults.point(points.BEFORE_MANIFEST)
    return await store.create(key, body, content_type=MANIFEST_TYPE, retain_until=retention.until())
