"""Who keeps rows from being cleaned up, as `ordermesh top` finds it: a session here, a query on a replica."""

from __future__ import annotations

from typing import TYPE_CHECKING

import asyncpg

from chassis.testing import eventually
from ops.top import waits
from tests.replicas import replicated

if TYPE_CHECKING:
    from pathlib import Path

BURN = "DO $$ BEGIN FOR n IN 1..1200 LOOP PERFORM pg_current_xact_id(); COMMIT; END LOOP; END $$"
TELL_EVERY_SECOND = "ALTER SYSTEM SET wal_receiver_status_interval = '1s'"


async def test_a_query_on_a_replica_and_a_session_here_are_found(server_dir: Path) -> None:
    async with replicated(server_dir) as pair:
        dsns = {"s1": pair.database.dsn}

        async def said(what: str) -> list[str]:
            return [wait.why for wait in await waits.of_shards(dsns) if what in wait.what]

        async def is_held() -> bool:
            return bool(await said("is cleaned up"))

        async def is_free() -> bool:
            return not await is_held()

        await pair.session.execute(TELL_EVERY_SECOND)
        await pair.session.execute("SELECT pg_reload_conf()")
        primary = await asyncpg.connect(pair.database.dsn, server_settings={"application_name": "forgotten"})
        try:
            async with pair.session.transaction(isolation="repeatable_read", readonly=True):
                await pair.session.fetchval("SELECT count(*) FROM pg_class")
                await primary.execute(BURN)
                await eventually(is_held, within_s=20)
                assert "replica" in (await said("is cleaned up"))[0]
            await eventually(is_free, within_s=20)

            async def is_old() -> bool:
                return bool(await said("a transaction is"))

            async with primary.transaction():
                await primary.fetchval("SELECT pg_current_xact_id()")
                await eventually(is_old, within_s=20)
                assert "forgotten" in (await said("a transaction is"))[0]
            assert await said("a transaction is") == []
        finally:
            await primary.close(timeout=5)
