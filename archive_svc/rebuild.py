"""Makes a lost catalog again of the manifests in S3.

Only months that the shard knows nothing of and has no rows of: what it has is never overruled. Every object
that a manifest names is looked at first, and all of it is read back later, before a table is dropped for it.
"""

from __future__ import annotations

import asyncio
import hashlib
from dataclasses import dataclass
from typing import TYPE_CHECKING

import structlog

from archive_svc import amendment
from archive_svc.amendment import AmendmentUnreadable, amendments_prefix
from archive_svc.editions import all_below
from archive_svc.lifecycle import edition_of, manifest_prefix
from archive_svc.manifest import ManifestUnreadable, objects_of, parsed
from archive_svc.segment import SegmentDamaged
from archive_svc.verify import must_be
from chassis.s3 import S3Error

if TYPE_CHECKING:
    from datetime import datetime, timedelta

    from archive_svc.amendment import Noted
    from archive_svc.catalog import Catalog
    from chassis.s3 import Found, ObjectStore, Stored

log = structlog.get_logger("rebuild")
UNREADABLE_MAX = 100
LOOKS_MAX = 8
"""Objects that are looked at side by side."""


@dataclass(frozen=True, slots=True)
class Rebuilt:
    """What became of one month. because: why it was not made again; empty when it was."""

    month: str
    because: str = ""


@dataclass(frozen=True, slots=True)
class Amendments:
    """How many amendments were noted again, and the objects of those that could not be, the first of them."""

    noted: int
    unreadable: tuple[str, ...]


class Rebuilder:
    """Makes the catalog of one shard again. grace: how long tables stay that stand alone."""

    def __init__(self, catalog: Catalog, store: ObjectStore, grace: timedelta) -> None:
        self._catalog = catalog
        self._store = store
        self._grace = grace

    async def rebuild(self, actor: str, reason: str) -> list[Rebuilt]:
        """Make again what is missing, month by month. Idempotent.

        Raises: S3Error when the manifests cannot be listed; what chassis.pg raises.
        """
        newest = await self._newest()
        return [await self._month(month, found, actor, reason) for month, found in sorted(newest.items())]

    async def amendments(self) -> Amendments:
        """Note again what was found out about orders after they were archived. Idempotent.

        Raises: S3Error when the amendments cannot be listed; what chassis.pg raises.
        """
        made, unreadable, after = 0, [], ""
        while True:
            page = await self._store.list(amendments_prefix(self._catalog.shard), after=after)
            gate = asyncio.Semaphore(LOOKS_MAX)
            for key, noted in await asyncio.gather(*(self._noted(found.key, gate) for found in page.objects)):
                if noted is None:
                    unreadable.append(key)
                else:
                    made += await self._catalog.adopt_amendment(noted)
            if not page.more:
                return Amendments(made, tuple(unreadable[:UNREADABLE_MAX]))
            after = page.objects[-1].key

    async def _noted(self, key: str, gate: asyncio.Semaphore) -> tuple[str, Noted | None]:
        """What an amendment's object says; None when it says nothing that can be noted."""
        async with gate:
            try:
                noted = amendment.parsed(await self._store.read(await self._store.head(key)))
                if key != amendment.key_of(self._catalog.shard, noted):
                    raise AmendmentUnreadable("it stands where another one should")
            except (S3Error, AmendmentUnreadable) as wrong:
                log.error("amendment_not_noted", shard=self._catalog.shard, key=key, because=str(wrong))
                return key, None
        return key, noted

    async def _newest(self) -> dict[str, Found]:
        """The last manifest of each month, by its edition; earlier ones are of copies that were restored or
        given up, whenever they were stored.
        """
        prefix = manifest_prefix(self._catalog.shard)
        newest: dict[str, Found] = {}
        for found in await all_below(self._store, prefix):
            month = found.key.removeprefix(prefix).split("/")[0]
            if month not in newest or _age(found) >= _age(newest[month]):
                newest[month] = found
        return newest

    async def _month(self, month: str, found: Found, actor: str, reason: str) -> Rebuilt:
        try:
            where = await self._store.head(found.key)
            body = await self._store.read(where)
            manifest = parsed(body)
            await self._look(objects_of(manifest))
        except (S3Error, SegmentDamaged, ManifestUnreadable) as wrong:
            log.error("month_not_rebuilt", shard=self._catalog.shard, month=month, because=str(wrong))
            return Rebuilt(month, f"{found.key}: {wrong}")
        sha256 = hashlib.sha256(body).hexdigest()
        if not await self._catalog.adopt(manifest, where, sha256, self._grace, actor, reason):
            return Rebuilt(month, "the shard has it, or knows of it")
        log.info("month_rebuilt", shard=self._catalog.shard, month=month)
        return Rebuilt(month)

    async def _look(self, objects: list[Stored]) -> None:
        """See that every object is there as it was stored. Raises: SegmentDamaged; S3Error."""
        gate = asyncio.Semaphore(LOOKS_MAX)

        async def look(meant: Stored) -> None:
            async with gate:
                await must_be(self._store, meant)

        await asyncio.gather(*map(look, objects))


def _age(manifest: Found) -> tuple[int, datetime]:
    """What is greater is newer. When it was stored counts for those alone that have no number."""
    return edition_of(manifest.key), manifest.stored_at
