"""A shard is archived by one process at a time, who keeps it until he cannot."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import timedelta
from typing import Any

import asyncpg
import pytest

from archive_svc import app
from archive_svc.recall import Recalls
from archive_svc.settings import ArchiveSettings
from chassis.errors import Contended, OrdermeshError
from chassis.testing import eventually
from tests.archiving import Archive, opened
from tests.buckets import Place
from tests.conftest import DatabaseFactory
from tests.inprocess_s3 import InProcessS3

LEASE = timedelta(seconds=6)
"""Some times what a statement waits for a lock."""
WITHIN_S = 60.0


@pytest.fixture
async def archive(shard_database: DatabaseFactory) -> AsyncIterator[Archive]:
    database = await shard_database()
    async with InProcessS3.serving() as server, opened(database, Place.of(server), lease=LEASE) as ready:
        yield ready


class Renewals:
    """Tells how each try to renew the lease ended."""

    def __init__(self, archive: Archive) -> None:
        self.ended: list[str] = []
        self._renew = archive.catalog.renew_lease

    async def __call__(self, fence: int, lease: timedelta) -> None:
        try:
            await self._renew(fence, lease)
        except OrdermeshError as failed:
            self.ended.append(type(failed).__name__)
            raise
        self.ended.append("kept")


@asynccontextmanager
async def working(archive: Archive, monkeypatch: Any) -> AsyncIterator[tuple[asyncio.Task[None], Renewals]]:
    """An archiver at work, with its lease locked by a transaction as long as the caller wants."""
    renewals = Renewals(archive)
    monkeypatch.setattr(archive.catalog, "renew_lease", renewals)
    fence = await archive.catalog.take_lease("a test", LEASE)
    assert fence is not None
    task = asyncio.create_task(archive.archiver._while_held(fence))
    try:
        yield task, renewals
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


async def test_a_renewal_that_has_to_wait_is_tried_again_within_the_lease(
    archive: Archive, monkeypatch: pytest.MonkeyPatch
) -> None:
    locker = await asyncpg.connect(archive.database.dsn)
    try:
        async with working(archive, monkeypatch) as (task, renewals):
            # As a freeze does that waits for who writes.
            async with locker.transaction():
                await locker.execute("SELECT FROM ordermesh.archive_lease FOR SHARE")

                async def was_refused() -> bool:
                    return "Contended" in renewals.ended

                assert await eventually(was_refused, within_s=WITHIN_S)

            async def is_kept() -> bool:
                return task.done() or renewals.ended[-1:] == ["kept"]

            assert await eventually(is_kept, within_s=WITHIN_S)
            assert not task.done(), "it works on"
    finally:
        await locker.close()


async def test_a_lease_that_cannot_be_renewed_any_more_is_given_up(
    archive: Archive, monkeypatch: pytest.MonkeyPatch
) -> None:
    locker = await asyncpg.connect(archive.database.dsn)
    try:
        async with locker.transaction(), working(archive, monkeypatch) as (task, renewals):
            await locker.execute("SELECT FROM ordermesh.archive_lease FOR SHARE")
            with pytest.raises(Contended):
                await asyncio.wait_for(asyncio.shield(task), WITHIN_S)
            assert len(renewals.ended) > 1
            assert await archive.value("SELECT lease_until <= clock_timestamp() FROM ordermesh.archive_lease")
    finally:
        await locker.close()


async def test_two_archivers_of_the_same_machine_and_pid_do_not_share_a_lease(
    archive: Archive, tmp_path: Any
) -> None:
    """As in containers, where every process may have both in common; here they are in one process."""
    settings = ArchiveSettings.model_validate(
        {
            "shards": {"s1": archive.database.dsn},
            "tls_dir": str(tmp_path),
            "subject_dir": str(tmp_path),
            "profile": "local",
        }
    )
    one, other = (
        app._archiver(settings, archive.catalog, archive.sweeps, archive.store, Recalls({})) for _ in range(2)
    )
    fence = await archive.catalog.take_lease(one._holder, LEASE)
    assert fence is not None
    assert await archive.catalog.take_lease(other._holder, LEASE) is None
    assert await archive.catalog.take_lease(one._holder, LEASE) == fence, "who has it keeps it"
    await archive.catalog.give_lease_back(fence)
    assert await archive.catalog.take_lease(other._holder, LEASE) == fence + 1
