"""Makes a lost catalog again of the manifests in S3.

Only months that the shard knows nothing of and does not have: what it has is not overruled, but for a month
that it shows by objects which are gone, when somebody says so and a newer manifest is whole. One of which a
table hangs and the other does not was being detached, if both are frozen, and goes on from there. Every
object that a manifest names is looked at first, and all of it is read back later, before a table is dropped
for it.
"""

from __future__ import annotations

import asyncio
import hashlib
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING, Any

import structlog

from archive_svc import amendment
from archive_svc.amendment import AmendmentUnreadable, amendments_prefix
from archive_svc.editions import all_below
from archive_svc.lifecycle import State, edition_of, manifest_prefix
from archive_svc.manifest import ManifestUnreadable, objects_of, parsed
from archive_svc.segment import SegmentDamaged
from archive_svc.verify import must_be
from chassis.errors import InternalError
from chassis.s3 import S3Error

if TYPE_CHECKING:
    from collections.abc import Mapping
    from datetime import timedelta

    from archive_svc.amendment import Noted
    from archive_svc.catalog import Catalog
    from archive_svc.lifecycle import Month
    from chassis.s3 import Found, ObjectStore, Stored

log = structlog.get_logger("rebuild")
KNOWN = "the shard has it, or knows of it"
ODD = "its tables stand as no step leaves them: one is gone, or hangs alone and is not frozen"
UNREADABLE_MAX = 100
UNFIT = ("22", "23")
"""Classes of SQLSTATE that say that a row cannot be what it should: its data, or a constraint."""
LOOKS_MAX = 8
"""Objects that are looked at side by side."""


@dataclass(frozen=True, slots=True)
class Rebuilt:
    """What became of one month. because: why it was not made again; empty when it was.

    is_replaceable: the shard knows it by a manifest of which objects are gone; a newer one is whole.
    """

    month: str
    because: str = ""
    is_replaceable: bool = False


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

    async def rebuild(self, actor: str, reason: str, *, replaces: bool = False) -> list[Rebuilt]:
        """Make again what is missing, month by month. Idempotent.

        replaces: also what shows objects that are gone, when a newer manifest shows none that is; without it
                  these months are named.
        Raises: S3Error when the manifests cannot be listed; what chassis.pg raises.
        """
        newest = await self._newest()
        return [
            await self._month(month, found, actor, reason, replaces)
            for month, found in sorted(newest.items())
        ]

    async def amendments(self) -> Amendments:
        """Note again what was found out about orders after they were archived. Idempotent.

        Raises: S3Error when the amendments cannot be listed; what chassis.pg raises.
        """
        made, unreadable, after = 0, [], ""
        while True:
            page = await self._store.list(amendments_prefix(self._catalog.shard), after=after)
            gate = asyncio.Semaphore(LOOKS_MAX)
            for key, noted in await asyncio.gather(*(self._noted(found.key, gate) for found in page.objects)):
                is_new = None if noted is None else await self._adopted(key, noted)
                if is_new is None:
                    unreadable.append(key)
                else:
                    made += is_new
            if not page.more:
                return Amendments(made, tuple(unreadable[:UNREADABLE_MAX]))
            after = page.objects[-1].key

    async def _adopted(self, key: str, noted: Noted) -> bool | None:
        """Whether an amendment was noted now; None when the shard refuses what it says."""
        try:
            return await self._catalog.adopt_amendment(noted)
        except InternalError as refused:
            if refused.facts.get("sqlstate", "")[:2] not in UNFIT:
                raise
            log.error(
                "amendment_not_noted", shard=self._catalog.shard, key=key, because=refused.facts["sqlstate"]
            )
            return None

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

    async def _month(self, month: str, found: Found, actor: str, reason: str, replaces: bool) -> Rebuilt:
        try:
            where = await self._store.head(found.key)
            body = await self._store.read(where)
            manifest = parsed(body)
            await self._look(objects_of(manifest))
        except (S3Error, SegmentDamaged, ManifestUnreadable) as wrong:
            log.error("month_not_rebuilt", shard=self._catalog.shard, month=month, because=str(wrong))
            return Rebuilt(month, f"{found.key}: {wrong}")
        said = (manifest, where, hashlib.sha256(body).hexdigest(), self._grace, actor, reason)
        if await self._catalog.adopt(*said):
            log.info("month_rebuilt", shard=self._catalog.shard, month=month)
            return Rebuilt(month)
        known = next((each for each in await self._catalog.months() if each.name == month), None)
        if known is None:
            begins_at = datetime.fromisoformat(manifest["begins_at"])
            is_odd = await self._catalog.is_odd(begins_at.date(), begins_at)
            return Rebuilt(month, ODD if is_odd else KNOWN)
        if not (gone := await self._gone(known, found, manifest)):
            return Rebuilt(month, KNOWN)
        if not replaces:
            return Rebuilt(month, f"{gone} is gone, and {found.key} is whole and newer", is_replaceable=True)
        if not await self._catalog.adopt(*said, instead_of=known.manifest_key):
            return Rebuilt(month, KNOWN)
        log.warning("month_replaced", shard=self._catalog.shard, month=month, instead_of=known.manifest_key)
        return Rebuilt(month)

    async def _gone(self, known: Month, found: Found, manifest: Mapping[str, Any]) -> str:
        """An object that the catalog of a month in S3 alone shows and that is gone, when a manifest is newer.

        Such a catalog is older than S3 is: a database that came back from before an erasure.
        """
        edition = edition_of(found.key)
        is_newer = edition > known.edition or (
            not edition and not known.edition and manifest["archive_id"] == str(known.archive_id)
        )
        if known.state is not State.DROPPED or found.key == known.manifest_key or not is_newer:
            return ""
        for segment in await self._catalog.segments(known.archive_id):
            try:
                await must_be(self._store, segment.stored)
            except SegmentDamaged:
                return segment.stored.key
        return ""

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
