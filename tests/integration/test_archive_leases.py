"""A shard is archived by one process at a time, who keeps it until he cannot."""

from __future__ import annotations

from collections.abc import AsyncIterator
from datetime import timedelta
from typing import Any

import pytest

from archive_svc import app
from archive_svc.recall import Recalls
from archive_svc.settings import ArchiveSettings
from tests.archiving import Archive, opened
from tests.buckets import Place
from tests.conftest import DatabaseFactory
from tests.inprocess_s3 import InProcessS3

LEASE = timedelta(seconds=6)
"""Some times what a statement waits for a lock."""


@pytest.fixture
async def archive(shard_database: DatabaseFactory) -> AsyncIterator[Archive]:
    database = await shard_database()
    async with InProcessS3.serving() as server, opened(database, Place.of(server), lease=LEASE) as ready:
        yield ready


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
