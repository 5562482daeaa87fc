"""One real Postgres server of the local stack, the tests and the benchmarks.

Owns a data directory, its password file and its log. The server runs as a child of this process in a session
of its own, so that Ctrl-C reaches it only through us. When the parent is killed the server lives on: the next
start() finds it by its pid file, stops it and starts afresh, so a server always is our child and always has
our settings. As root it runs as places.SERVER_UID. Fails with PostgresError, whose message is one sentence
about this machine.

    server = PostgresServer(data_directory(state_dir, "shards"), port=5433)
    await server.start()
    await server.create_database("s1")
    server.dsn("s1")      # postgresql://ordermesh:...@127.0.0.1:5433/s1
    await server.stop()
"""

import asyncio
import os
import re
import secrets
import shutil
import signal
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final, Self

import asyncpg

from ops import places, processes
from ops.errors import OpsError, PortBusy
from ops.files import write_private

USER: Final = "ordermesh"
HOST: Final = "127.0.0.1"

DEFAULT_SETTINGS: Final[Mapping[str, str]] = {
    "max_connections": "120",
    "shared_buffers": "128MB",
    "max_locks_per_transaction": "256",  # A statement over 27 monthly partitions holds about 107 locks.
    "max_wal_size": "1GB",
    "timezone": "UTC",
    "log_timezone": "UTC",
    "log_line_prefix": "%m [%p] %q%a %d ",
    "log_min_error_statement": "panic",  # Refused statements are answers to callers, not news of the server.
    "jit": "off",
}
# For tests: the data survives the death of any process, but not of the machine.
UNSAFE_SETTINGS: Final[Mapping[str, str]] = {"fsync": "off", "full_page_writes": "off", "max_wal_size": "4GB"}

_SOCKET_PATH_BYTES: Final = 100  # sun_path holds 104 bytes on macOS and 108 on Linux.
_LOG_BYTES_KEPT: Final = 16 * 1024 * 1024
_DATABASE_NAME: Final = re.compile(r"[a-z_][a-z0-9_]{0,62}")


class PostgresError(OpsError):
    """A Postgres server could not do what was asked."""


class NoSpace(PostgresError):
    """The disk is full."""


class WrongPermissions(PostgresError):
    """The server's user may not use its directory, or we may not become that user."""


class PostgresServer:
    """A Postgres server with its own data directory, on a fixed port of 127.0.0.1 and on a unix socket.

    data_dir: made by start() when missing; its parent also gets `<name>.log` and `<name>.password`.
    port:     chosen by the caller (see ops.ports), kept over restarts.
    durable:  False switches fsync off; for tests.
    settings: further server settings; they win over the defaults.
    """

    def __init__(
        self,
        data_dir: Path,
        port: int,
        *,
        durable: bool = True,
        settings: Mapping[str, str] | None = None,
    ) -> None:
        self.data_dir = data_dir.absolute()
        self.port = port
        self._settings = {**DEFAULT_SETTINGS, **({} if durable else UNSAFE_SETTINGS), **(settings or {})}
        self._durable = durable
        self._process: subprocess.Popen[bytes] | None = None

    @classmethod
    async def started(cls, data_dir: Path, port: int, **options: Any) -> Self:
        """Make a server and start it."""
        server = cls(data_dir, port, **options)
        await server.start()
        return server

    @property
    def log_path(self) -> Path:
        """The server's log; one earlier log of at most 16 MiB is kept beside it."""
        return self.data_dir.parent / f"{self.data_dir.name}.log"

    @property
    def psql(self) -> Path:
        """The `psql` of this server's version."""
        return places.postgres_bin() / "psql"

    @property
    def pgbench(self) -> Path:
        """The `pgbench` of this server's version."""
        return places.postgres_bin() / "pgbench"

    @property
    def socket_dir(self) -> Path | None:
        """The directory of the unix socket: the data directory, or None when that path is too long."""
        fits = len(os.fsencode(self.data_dir / f".s.PGSQL.{self.port}")) <= _SOCKET_PATH_BYTES
        return self.data_dir if fits else None

    @property
    def pid(self) -> int | None:
        """The postmaster's pid, whoever started it; None when no server runs in this data directory."""
        if self._process is not None and self._process.poll() is None:
            return self._process.pid
        pid = self._pid_in_file()
        return pid if pid is not None and processes.runs_in(pid, self.data_dir) else None

    def dsn(self, database: str = "postgres") -> str:
        """Return a URL with the password in it: keep it out of logs and in files of mode 0600."""
        return f"postgresql://{USER}:{self._password()}@{HOST}:{self.port}/{database}"

    def environment(self, database: str = "postgres") -> dict[str, str]:
        """Return what psql and pgbench need to reach a database; no password shows in a process list."""
        return {
            "PGHOST": HOST,
            "PGPORT": str(self.port),
            "PGUSER": USER,
            "PGPASSWORD": self._password(),
            "PGDATABASE": database,
        }

    async def start(self, *, timeout_s: float = 60.0) -> None:
        """Initialise a new data directory, and run the server until stop(). It is ready when this returns.

        A server that an earlier, killed parent left behind is stopped first. Raises a PostgresError that says
        why.
        """
        await self._initialise()
        if self.pid is not None:
            await self.stop()
        await self._vacate(timeout_s=10.0)
        self._rotate_log()
        self._process = self._spawn()
        await self._until_ready(self._process, timeout_s)

    async def stop(self, *, fast_s: float = 3.0) -> None:
        """Stop the server, whoever started it: fast (connections are cut, nothing is lost), then harder.

        After fast_s without success the server is stopped as in a crash, and recovers at its next start.
        Idempotent.
        """
        for number, patience_s in ((signal.SIGINT, fast_s), (signal.SIGQUIT, 1.5), (signal.SIGKILL, 5.0)):
            pid = self.pid
            if pid is None:
                return
            processes.send(pid, number)
            if await processes.within(patience_s, lambda: self.pid is None):
                return
        raise PostgresError(
            f"Postgres (pid {self.pid}) in {self.data_dir} does not end, not even by SIGKILL."
        )

    async def died(self) -> int:
        """Wait until the server that start() ran has ended; return its exit code (negative: a signal)."""
        process = self._process
        if process is None:
            raise PostgresError(f"Postgres in {self.data_dir} was not started here.")
        while not await processes.within(1.0, lambda: process.poll() is not None):
            continue
        return process.wait()

    async def create_database(
        self, name: str, *, template: str = "template0", search_path: str = "ordermesh, public"
    ) -> bool:
        """Create a database unless it exists, with its search path; return whether it was created here."""
        database, source = _named(name), _named(template)
        connection = await asyncpg.connect(self.dsn(), timeout=10, command_timeout=60)
        try:
            await connection.execute(f"CREATE DATABASE {database} TEMPLATE {source}")
        except asyncpg.DuplicateDatabaseError:
            return False
        else:
            # Kept with the database in the catalog of the server, so a template does not bring it along.
            await connection.execute(f"ALTER DATABASE {database} SET search_path = {search_path}")
            return True
        finally:
            await connection.close(timeout=5)

    async def drop_database(self, name: str) -> None:
        """Drop a database with everything in it, cutting its connections. Idempotent."""
        database = _named(name)
        connection = await asyncpg.connect(self.dsn(), timeout=10, command_timeout=60)
        try:
            await connection.execute(f"DROP DATABASE IF EXISTS {database} WITH (FORCE)")
        finally:
            await connection.close(timeout=5)

    async def run_sql(self, database: str, sql: str) -> None:
        """Run a script of plain SQL in one database; it is one transaction unless it says otherwise."""
        connection = await asyncpg.connect(self.dsn(database), timeout=10, command_timeout=120)
        try:
            await connection.execute(sql)
        finally:
            await connection.close(timeout=5)

    async def _initialise(self) -> None:
        """Run initdb beside the data directory and move it into place: a half-made one is never used."""
        if (self.data_dir / "PG_VERSION").exists():
            return
        partial = self._make_partial()
        await asyncio.to_thread(self._initdb, partial)
        partial.rename(self.data_dir)

    def _make_partial(self) -> Path:
        """Make an empty directory of the server's beside the data directory."""
        parent = self.data_dir.parent
        try:
            parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise _explained(error, f"Cannot make {parent}") from error
        if not places.can_enter(parent, places.server_uid()):
            raise WrongPermissions(
                f"Postgres runs as uid {places.server_uid()} and cannot enter {parent}; "
                "choose another place with --state-dir, or chmod o+x the directories above it."
            )
        partial = parent / f"{self.data_dir.name}.partial"
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(mode=0o700)
        os.chown(partial, places.server_uid(), -1)
        return partial

    def _initdb(self, partial: Path) -> None:
        password_file = self._password_path()
        if not password_file.exists():
            write_private(password_file, secrets.token_urlsafe(24))
        # A copy, because the original is ours and not the server's.
        readable = partial.with_name(f"{self.data_dir.name}.initdb-password")
        write_private(readable, self._password())
        os.chown(readable, places.server_uid(), -1)
        command: list[str | Path] = [
            places.postgres_bin() / "initdb",
            *("--pgdata", partial, "--username", USER, "--pwfile", readable, "--auth", "scram-sha-256"),
            *("--encoding", "UTF8", "--locale", "C"),
            *([] if self._durable else ["--no-sync"]),
        ]
        try:
            self._run(command)
        finally:
            readable.unlink()

    def _run(self, command: list[str | Path], *, environment: Mapping[str, str] | None = None) -> None:
        """Run one of Postgres's programs as the server's user."""
        options = processes.as_server()
        options["env"] = {**options["env"], **(environment or {})}
        try:
            result = subprocess.run(
                command, capture_output=True, text=True, timeout=120, check=False, **options
            )
        except (OSError, subprocess.SubprocessError) as error:
            raise _explained(error, f"Cannot run {command[0]}") from error
        if result.returncode:
            raise _diagnosed(result.stderr, self)

    def _spawn(self) -> subprocess.Popen[bytes]:
        settings = {
            "listen_addresses": HOST,
            "unix_socket_directories": str(self.socket_dir or ""),
            "unix_socket_permissions": "0777",  # Root's server has another uid; the password is the guard.
            **self._settings,
        }
        options = [f"--{name.replace('_', '-')}={value}" for name, value in settings.items()]
        binary = places.postgres_bin() / "postgres"
        command: list[str | Path] = [binary, "-D", self.data_dir, "-p", str(self.port), *options]
        try:
            with self.log_path.open("ab") as log:
                return subprocess.Popen(
                    command,
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=log,
                    start_new_session=True,
                    **processes.as_server(),
                )
        except (OSError, subprocess.SubprocessError) as error:
            raise _explained(error, "Cannot run Postgres") from error

    async def _until_ready(self, process: subprocess.Popen[bytes], timeout_s: float) -> None:
        """Wait for the server's own word in its pid file; explain from its log when it ends before that."""
        try:
            await processes.within(
                timeout_s, lambda: process.poll() is not None or self._says_ready(process.pid)
            )
        except asyncio.CancelledError:
            process.send_signal(signal.SIGINT)
            raise
        if process.poll() is not None:
            raise _diagnosed(self._log_tail(), self)
        if not self._says_ready(process.pid):
            await self.stop()
            raise PostgresError(
                f"Postgres in {self.data_dir} was not ready in {timeout_s:g} s; see {self.log_path}."
            )

    def _says_ready(self, pid: int) -> bool:
        lines = self._pid_file_lines()
        return len(lines) >= 8 and lines[0].strip() == str(pid) and lines[7].strip() == "ready"

    async def _vacate(self, timeout_s: float) -> None:
        """Wait for the backends of a killed postmaster to leave, then drop a pid file that is void.

        Postgres refuses to start while they live, and also when the pid in its file was given to another
        process, which happens after a reboot. Where there is no /proc, Postgres decides alone.
        """
        if not Path("/proc/self/cwd").exists():
            return
        if not await processes.within(timeout_s, lambda: not processes.processes_in(self.data_dir)):
            pids = ", ".join(map(str, processes.processes_in(self.data_dir)))
            raise PostgresError(f"Processes {pids} still work in {self.data_dir}; end them first.")
        (self.data_dir / "postmaster.pid").unlink(missing_ok=True)

    def _pid_in_file(self) -> int | None:
        lines = self._pid_file_lines()
        return int(lines[0]) if lines and lines[0].strip().isdigit() else None

    def _pid_file_lines(self) -> list[str]:
        try:
            return (self.data_dir / "postmaster.pid").read_text(encoding="utf-8").splitlines()
        except FileNotFoundError:
            return []
        except PermissionError as error:
            raise WrongPermissions(
                f"{self.data_dir} belongs to another user; start the stack as that user."
            ) from error

    def _password_path(self) -> Path:
        return self.data_dir.parent / f"{self.data_dir.name}.password"

    def _password(self) -> str:
        try:
            return self._password_path().read_text(encoding="utf-8").strip()
        except OSError as error:
            raise _explained(error, f"Cannot read {self._password_path()}") from error

    def _rotate_log(self) -> None:
        if self.log_path.exists() and self.log_path.stat().st_size > _LOG_BYTES_KEPT:
            self.log_path.replace(self.log_path.with_suffix(".log.1"))

    def _log_tail(self) -> str:
        with self.log_path.open("rb") as log:
            log.seek(max(0, self.log_path.stat().st_size - 4096))
            return log.read().decode(errors="replace")


def _diagnosed(output: str, server: PostgresServer) -> OpsError:
    """Turn what Postgres wrote before it gave up into the error whose sentence helps."""
    if "Address already in use" in output or "could not create any TCP/IP sockets" in output:
        return PortBusy(f"Port {server.port} is busy; stop what listens there, or use --port-base 0.")
    if "No space left on device" in output:
        return NoSpace(f"No space left on the disk of {server.data_dir}; Postgres needs about 100 MB.")
    if re.search(r"[Pp]ermission denied|wrong ownership|invalid permissions", output):
        owner = places.server_uid()
        return WrongPermissions(
            f"Postgres (uid {owner}) may not use {server.data_dir}; see its owner and mode."
        )
    if "could not look up effective user ID" in output:
        return PostgresError(f"uid {places.server_uid()} has no name on this machine; Postgres asks for one.")
    fatal = [line for line in output.splitlines() if re.search(r"FATAL|PANIC|error:", line)]
    last = (fatal or output.strip().splitlines() or ["it said nothing"])[-1].strip()
    return PostgresError(f"Postgres in {server.data_dir} did not start: {last} (log: {server.log_path})")


def _explained(error: Exception, what: str) -> PostgresError:
    """Turn an error of the operating system into a typed one."""
    if isinstance(error, OSError):
        if error.errno == 28:  # ENOSPC
            return NoSpace(f"{what}: no space left on the disk.")
        if isinstance(error, PermissionError):
            return WrongPermissions(f"{what}: permission denied.")
        return PostgresError(f"{what}: {error.strerror or error}.")
    return PostgresError(f"{what}: {error}")


def _named(database: str) -> str:
    """Quote the name of a database; refuses what would need thought."""
    if not _DATABASE_NAME.fullmatch(database):
        raise PostgresError(f"{database!r} is no name for a database: use a-z, 0-9 and _, at most 63.")
    return f'"{database}"'
