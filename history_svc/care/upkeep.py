"""Takes old generations away once every shard serves a newer one, and archived months once every shard has
archived them. The only part that looks at all shards.

An index holds the documents of many shards. While one shard still reads an old generation, all of them go on
writing it; a page searches each shard's documents in the generation that this shard serves.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING
from uuid import uuid4

import structlog

from chassis.errors import OrdermeshError
from history_svc.care.operation import ACTOR, Kind
from history_svc.catalog import State

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from datetime import date

    from history_svc.care.parts import Parts
    from history_svc.catalog import Catalog

log = structlog.get_logger("upkeep")


def served_by_all(catalogs: Sequence[Catalog], month: date) -> int | None:
    """The newest generation below which no shard reads a month; None when a shard that has the month serves
    none. One that has left all of the month's indices, since it is archived there, waits for none.
    """
    serving = []
    for catalog in catalogs:
        if any(index.month == month and index.state is not State.RETIRED for index in catalog.indices):
            index = catalog.serving().get(month)
            if index is None:
                return None
            serving.append(index.generation)
    return min(serving, default=None)


class Upkeep:
    """A loop over all shards; several processes may run one, as each step is idempotent."""

    name = "upkeep"

    def __init__(self, shards: Mapping[str, Parts]) -> None:
        self._shards = shards

    async def run(self) -> None:
        """Look now and then until cancelled; while any shard is away, nothing is taken from anybody."""
        parts = next(iter(self._shards.values()))
        while True:
            try:
                await self.step()
            except OrdermeshError as failed:
                log.info("upkeep_waits", reason=failed.reason)
            await parts.clock.sleep(parts.pacing.every_s * (0.75 + 0.5 * parts.jitter()))

    async def step(self) -> None:
        """Retire what nobody reads, and drop what has been retired for the time of grace.

        Raises: ReadModelUnavailable, and what the stores raise.
        """
        stores = list(self._shards.values())
        catalogs = list(await asyncio.gather(*(parts.projection.catalog() for parts in stores)))
        if await self._leave_archived(catalogs):
            catalogs = list(await asyncio.gather(*(parts.projection.catalog() for parts in stores)))
        months = {index.month for catalog in catalogs for index in catalog.indices}
        for month in sorted(months):
            generation = served_by_all(catalogs, month)
            if generation is None:
                continue
            if _is_below(catalogs, month, generation):
                await self._retire(month, generation, catalogs)
            await self._catch_up(month, dict(zip(self._shards, catalogs, strict=True)))
        for parts in stores:
            await self._give_up(parts)
        await self._drop()
        for parts in stores:
            await parts.care.forget_operations()

    async def _leave_archived(self, catalogs: Sequence[Catalog]) -> bool:
        """Have no shard read or write a month any more that every shard has archived, or never had; whether
        there was one. Its indices are retired then, and dropped like others.
        """
        kept = {
            index.month
            for catalog in catalogs
            for index in catalog.indices
            if index.state is not State.RETIRED
        }
        if not kept:
            return False
        stores = list(self._shards.values())
        said = await asyncio.gather(*(parts.care.left(sorted(kept)) for parts in stores))
        gone = [
            month
            for month in sorted(kept)
            if all(month in left for left in said) and any(left[month] for left in said)
        ]
        for month in gone:
            for parts in stores:
                await parts.care.leave(month)
            log.info("archived_month_left", month=month.isoformat())
        return bool(gone)

    async def _retire(self, month: date, generation: int, catalogs: Sequence[Catalog]) -> None:
        """First every shard knows the month, so that none can begin it with a generation that is retired."""
        identity = next(
            index.identity
            for catalog in catalogs
            for index in catalog.indices
            if index.month == month and index.generation == generation and index.state is State.SERVING
        )
        for parts in self._shards.values():
            await parts.care.plant(month, generation, identity)
        for parts in self._shards.values():
            await parts.care.retire(month, generation)
        log.info("generations_retired", month=month.isoformat(), below=generation)

    async def _catch_up(self, month: date, catalogs: Mapping[str, Catalog]) -> None:
        """Have shards build a month whose generation is older than another's; what all would write until then
        is written twice.
        """
        serving = {name: catalog.serving().get(month) for name, catalog in catalogs.items()}
        newest = max((index.generation for index in serving.values() if index is not None), default=0)
        for name, index in serving.items():
            if index is None or index.generation == newest:
                continue
            parts = self._shards[name]
            if await parts.care.may_rebuild(month, again_after=parts.pacing.again_after):
                await parts.care.open(
                    uuid4(),
                    Kind.REBUILD,
                    month,
                    repairs=False,
                    actor=ACTOR,
                    reason="others serve a newer one",
                )

    async def _give_up(self, parts: Parts) -> None:
        """Have nobody write a generation any more whose operation is over and that does not serve."""
        for month in await parts.care.given_up():
            await parts.care.give_up(month)
            log.info("rebuild_given_up", shard=parts.care.shard, month=month.isoformat())

    async def _drop(self) -> None:
        """Drop what every shard that knows it has retired for long enough."""
        stores = list(self._shards.values())
        due = await asyncio.gather(*(parts.care.retired(parts.pacing.grace) for parts in stores))
        if not any(due):
            return
        catalogs = await asyncio.gather(*(parts.projection.catalog() for parts in stores))
        for name in sorted(set().union(*due)):
            knowing = [
                (parts, name in retired)
                for parts, retired, catalog in zip(stores, due, catalogs, strict=True)
                if any(index.identity.name == name for index in catalog.indices)
            ]
            if not all(is_due for _, is_due in knowing):
                continue
            await stores[0].read_model.drop(name)
            for parts, _ in knowing:
                await parts.care.forget(name)
            log.info("index_dropped", index=name)


def _is_below(catalogs: Sequence[Catalog], month: date, generation: int) -> bool:
    """Whether any shard still writes an older generation of a month."""
    return any(
        index.month == month and index.generation < generation and index.state is not State.RETIRED
        for catalog in catalogs
        for index in catalog.indices
    )
