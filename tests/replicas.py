"""A shard's database on a primary of its own, with a streaming replica."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from uuid import uuid4

import asyncpg

from chassis.testing import eventually
from ops import ports
from ops.postgres import PostgresServer
from ops.replica import PRIMARY_SETTINGS, PostgresReplica
from tests.databases import Database, Databases
from tests.shards import Shard, opened


@dataclass
class Replicated:
    """A shard and its replica. session: one of the replica's, to pause it."""

    shard: Shard
    standby: PostgresReplica
    database: Database
    session: Any

    @property
    def replica_dsn(self) -> str:
        """Where the replica is."""
        return self.standby.dsn(self.database.name)

    async def caught_up(self) -> None:
        """Wait until the replica has all of the primary."""
        at = await self.shard.value("SELECT pg_current_wal_lsn()::text")

        async def ask() -> bool:
            return bool(
                await self.session.fetchval("SELECT pg_last_wal_replay_lsn() >= $1::text::pg_lsn", at)
            )

        await eventually(ask, within_s=20)


@asynccontextmanager
async def replicated(server_dir: Path) -> AsyncIterator[Replicated]:
    """Start both servers for as long as the context lives."""
    home = server_dir / f"pair-{uuid4().hex}"
    primary = PostgresServer(home / "s1", ports.free_port(), durable=False, settings=PRIMARY_SETTINGS)
    await primary.start()
    created = await Databases(primary).create("shard")
    database = Database(created.name, created.dsn)
    standby = PostgresReplica(home / "s1.replica", ports.free_port(), primary=primary, durable=False)
    await standby.start()
    session = await asyncpg.connect(standby.dsn(database.name))
    try:
        async with opened(database) as shard:
            yield Replicated(shard, standby, database, session)
    finally:
        await session.close(timeout=5)
        await standby.stop()
        await primary.stop()
