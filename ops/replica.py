"""A streaming replica of one of our Postgres servers: a real one, made by pg_basebackup, to read from.

Owns its data directory and log as any PostgresServer does; the password is the primary's. It follows the
primary without a slot, so a replica that is away never fills the primary's disk; one that was away for longer
than the primary keeps its log, or whose data is damaged, is made anew by start(). While the primary is away a
replica starts and serves what it has. Fails with PostgresError.

    replica = PostgresReplica(data_directory(state_dir, "s1.replica"), port=5434, primary=server)
    await replica.start()
    replica.dsn("s1")
"""

import asyncio
import os
import shutil
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Final

import asyncpg

from ops import places
from ops.errors import PortBusy
from ops.files import write_private
from ops.postgres import HOST, USER, PostgresError, PostgresServer

PRIMARY_SETTINGS: Final[Mapping[str, str]] = {
    "wal_keep_size": "256MB",  # What a replica may miss before it is made anew.
    "max_wal_senders": "6",
}
STREAMS_WITHIN_S: Final = 10.0
_POLL_S: Final = 0.05
_REPLICA_SETTINGS: Final[Mapping[str, str]] = {
    "hot_standby": "on",
    "hot_standby_feedback": "on",  # Reads are not cancelled because the primary cleaned up.
    "wal_retrieve_retry_interval": "500ms",  # A primary that was started again is followed at once.
}
_STREAMS: Final = "SELECT EXISTS (SELECT FROM pg_stat_wal_receiver WHERE status = 'streaming')"


class PostgresReplica(PostgresServer):
    """A hot standby of `primary`, which must run when the replica is first made."""

    def __init__(
        self,
        data_dir: Path,
        port: int,
        *,
        primary: PostgresServer,
        durable: bool = True,
        settings: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(data_dir, port, durable=durable, settings={**_REPLICA_SETTINGS, **(settings or {})})
        self._primary = primary

    async def start(self, *, timeout_s: float = 60.0) -> None:
        """Follow the primary until stop(). It serves reads, and streams, when this returns.

        A replica that cannot follow a primary that is there is thrown away and made anew, once.
        """
        try:
            await super().start(timeout_s=timeout_s)
            if await self._streams():
                return
        except PortBusy:
            raise
        except PostgresError:
            if self._primary.pid is None:
                raise
        await self.stop()
        shutil.rmtree(self.data_dir, ignore_errors=True)
        await super().start(timeout_s=timeout_s)
        if not await self._streams():
            raise PostgresError(
                f"The replica in {self.data_dir} does not follow its primary; see {self.log_path}."
            )

    async def _initialise(self) -> None:
        """Copy the primary beside the data directory and move it into place; name the primary anew."""
        if not (self.data_dir / "PG_VERSION").exists():
            shutil.rmtree(
                self.data_dir, ignore_errors=True
            )  # Of a start that was cut off, or a failed primary.
            partial = self._make_partial()
            await asyncio.to_thread(self._copy_primary, partial)
            partial.rename(self.data_dir)
        # Its port may have changed, and no process list may show the password.
        source = (
            f"host={HOST} port={self._primary.port} user={USER} password={self._password()} "
            f"application_name={self.data_dir.name}"
        )
        for name, text in (
            ("postgresql.auto.conf", f"primary_conninfo = '{source}'\n"),
            ("standby.signal", ""),
        ):
            path = self.data_dir / name
            write_private(path, text)
            os.chown(path, places.server_uid(), -1)

    def _copy_primary(self, partial: Path) -> None:
        self._run(
            [
                places.postgres_bin() / "pg_basebackup",
                *("--pgdata", partial, "--checkpoint", "fast", "--wal-method", "stream"),
                *([] if self._durable else ["--no-sync"]),
            ],
            environment=self._primary.environment(),
        )

    def _password(self) -> str:
        return self._primary._password()  # noqa: SLF001 - a replica has its primary's roles

    async def _streams(self) -> bool:
        """Whether it receives from its primary before long; true when there is no primary to receive from."""
        end = time.monotonic() + STREAMS_WITHIN_S
        try:
            connection = await asyncpg.connect(self.dsn(), timeout=5, command_timeout=5)
        except (OSError, asyncpg.PostgresError, asyncpg.InterfaceError) as failed:
            raise PostgresError(f"The replica in {self.data_dir} does not answer: {failed}.") from failed
        try:
            while not await connection.fetchval(_STREAMS):
                if self._primary.pid is None:
                    return True
                if time.monotonic() > end:
                    return False
                await asyncio.sleep(_POLL_S)
        except (OSError, asyncpg.PostgresError, asyncpg.InterfaceError) as failed:
            raise PostgresError(f"The replica in {self.data_dir} ended: {failed}.") from failed
        finally:
            await connection.close(timeout=5)
        return True
