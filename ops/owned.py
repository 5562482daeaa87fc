"""What the real servers besides Postgres have in common: how they start, die, stop and are found again.

Owns a data directory, the pid file in it and the log beside it, in the manner of ops.postgres. On Linux the
kernel kills the server with the thread that started it, so that a killed run leaves no 500 MB behind; what is
left all the same the next start() finds and stops. Every process of a server carries its data directory in an
argument of its own, the mark, because a pid in a file may be another's by now. As root it runs as
places.SERVER_UID. Fails with ServerError, whose message is one sentence about this machine.
"""

import asyncio
import os
import re
import signal
import subprocess
from abc import ABC, abstractmethod
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any, ClassVar, Final, Self

from ops import places, ports, processes
from ops.errors import OpsError, PortBusy

HOST: Final = "127.0.0.1"
START_TIMEOUT_S: Final = 300.0
"""Elasticsearch computes for 16 s until it is up. A start that is cut off begins again with nothing: on a
machine with ten times the work that it can do, 90 s were never enough, and the server never came back.
"""
PID_FILE: Final = "server.pid"

_ASK_EVERY_S: Final = 0.05
_LOG_BYTES_KEPT: Final = 16 * 1024 * 1024
_LOG_TAIL_BYTES: Final = 16 * 1024
_KILL_PATIENCE_S: Final = 5.0
_PORT_PATIENCE_S: Final = 2.0


class ServerError(OpsError):
    """A server on this machine could not do what was asked."""


class OwnedServer(ABC):
    """A server with its own data directory, on fixed ports of 127.0.0.1.

    data_dir: made by start() when missing; its parent also gets `<name>.log`.
    port:     where clients connect; chosen by the caller, kept over restarts.
    others:   the ports where the server talks to itself; as above.
    """

    title: ClassVar[str]

    def __init__(self, data_dir: Path, port: int, *others: int) -> None:
        self.data_dir = data_dir.absolute()
        self.port = port
        self._others = others
        self._process: subprocess.Popen[bytes] | None = None

    @classmethod
    async def started(cls, data_dir: Path, *port_numbers: int, **options: Any) -> Self:
        """Make a server and start it."""
        server = cls(data_dir, *port_numbers, **options)
        await server.start()
        return server

    @property
    def log_path(self) -> Path:
        """The server's log; one earlier log of at most 16 MiB is kept beside it."""
        return self.data_dir.parent / f"{self.data_dir.name}.log"

    @property
    def pid(self) -> int | None:
        """The server's pid, whoever started it; None when none runs in this data directory."""
        if self._process is not None and self._process.poll() is None:
            return self._process.pid
        pid = self._pid_in_file()
        return pid if pid is not None and processes.has_argument(pid, self.mark) else None

    @property
    @abstractmethod
    def mark(self) -> str:
        """The argument that every process of this server has, and no other; it names the data directory."""

    @property
    def config_dir(self) -> Path:
        """What start() writes for the server to read."""
        return self.data_dir / "config"

    async def start(self, *, timeout_s: float = START_TIMEOUT_S) -> None:
        """Run the server until stop(), with its files fetched when needed. It is ready when this returns.

        A server that an earlier, killed parent left behind is stopped first. If cancelled here, nothing runs.
        Raises: ServerError that says why; PortBusy; ArtifactError when the files cannot be had.
        """
        home = await self._home()
        await self.stop()
        await self._claim_ports()
        self._make_directories()
        self._configure(home)
        try:
            await self._prepare(home)
            self._rotate_log()
            self._process = self._spawn(self._command(home), self._workplace(home))
            self._pid_path.write_text(f"{self._process.pid}\n", encoding="utf-8")
            await self._until_ready(self._process, timeout_s)
        except BaseException:
            await self._kill_all()
            raise

    async def stop(self, *, fast_s: float = 3.0) -> None:
        """Stop the server, whoever started it: by its own shutdown, then as in a crash, which loses nothing.

        Idempotent.
        """
        pid = self.pid
        if pid is not None:
            processes.send(pid, signal.SIGTERM)
            await processes.within(fast_s, lambda: not self._remaining())
        await self._kill_all()

    async def died(self) -> int:
        """Wait until the server that start() ran has ended; return its exit code (negative: a signal)."""
        process = self._process
        if process is None:
            raise ServerError(f"{self.title} in {self.data_dir} was not started here.")
        while not await processes.within(1.0, lambda: process.poll() is not None):
            continue
        return process.wait()

    # What each kind of server says for itself.

    @abstractmethod
    async def _home(self) -> Path:
        """Where the program's files are; fetched or copied when needed.

        Raises: OpsError when they cannot be had.
        """

    @abstractmethod
    def _configure(self, home: Path) -> None:
        """Write the server's configuration; every start writes it anew."""

    async def _prepare(self, home: Path) -> None:  # noqa: B027 - most need nothing
        """Make new data ready to be served; called at every start."""

    @abstractmethod
    def _command(self, home: Path) -> list[str | Path]:
        """Return the program that serves."""

    def _workplace(self, home: Path) -> Path:
        """Return the directory to run in; some must run beside their files."""
        return self.data_dir

    def _environment(self) -> Mapping[str, str]:
        """Return what the program needs in its environment."""
        return {}

    @abstractmethod
    async def _answers(self) -> bool:
        """Tell whether the server can be given work; bounded, and raises nothing of a server not yet up."""

    # What they share.

    async def _claim_ports(self) -> None:
        """Look before the server does, which takes seconds; who was just killed may still hold one."""
        for port in (self.port, *self._others):
            if not await processes.within(_PORT_PATIENCE_S, partial(ports.is_free, port)):
                raise PortBusy(f"Port {port} ({self.title}) is busy; stop what listens there.")

    def _write_config(self, name: str, text: str) -> Path:
        """Write one file that the server reads and only we and it may."""
        path = self.config_dir / name
        if not path.parent.exists():
            path.parent.mkdir(mode=0o700)
            _give_to_server(path.parent)
        path.unlink(missing_ok=True)
        path.write_text(text, encoding="utf-8")
        path.chmod(0o600)
        _give_to_server(path)
        return path

    def _make_directories(self) -> None:
        parent = self.data_dir.parent
        try:
            parent.mkdir(parents=True, exist_ok=True)
            if not places.can_enter(parent, places.server_uid()):
                raise ServerError(
                    f"{self.title} runs as uid {places.server_uid()} and cannot enter {parent}; "
                    "choose another place with --state-dir, or chmod o+x the directories above it."
                )
            for name in ("", "config", "data", "logs", "tmp"):
                directory = self.data_dir / name
                if not directory.exists():
                    directory.mkdir(mode=0o700)
                    _give_to_server(directory)
        except OSError as error:
            raise ServerError(f"Cannot make {self.data_dir}: {error.strerror or error}.") from error

    def _run(self, command: list[str | Path], *, timeout_s: float) -> None:
        """Run one of the server's tools to its end, as the server's user."""
        try:
            result = subprocess.run(
                command,
                capture_output=True,
                text=True,
                timeout=timeout_s,
                check=False,
                **self._options(self.data_dir),
            )
        except (OSError, subprocess.SubprocessError) as error:
            raise ServerError(f"Cannot run {command[0]}: {error}.") from error
        if result.returncode:
            raise self._diagnosed(result.stdout + result.stderr)

    def _options(self, workplace: Path) -> dict[str, Any]:
        options = {**processes.as_server(), "cwd": workplace}
        options["env"] = {**options["env"], "HOSTNAME": "localhost", **self._environment()}
        return options

    def _spawn(self, command: list[str | Path], workplace: Path) -> subprocess.Popen[bytes]:
        try:
            with self.log_path.open("ab") as log:
                return subprocess.Popen(
                    command,
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=log,
                    start_new_session=True,
                    preexec_fn=processes.die_with_parent,
                    **self._options(workplace),
                )
        except (OSError, subprocess.SubprocessError) as error:
            raise ServerError(f"Cannot run {self.title}: {error}.") from error

    async def _until_ready(self, process: subprocess.Popen[bytes], timeout_s: float) -> None:
        try:
            async with asyncio.timeout(timeout_s):
                while process.poll() is None and not await self._is_up():  # noqa: ASYNC110 - it tells nobody
                    await asyncio.sleep(_ASK_EVERY_S)
        except TimeoutError:
            raise ServerError(
                f"{self.title} in {self.data_dir} was not ready in {timeout_s:g} s; see {self.log_path}."
            ) from None
        if process.poll() is not None:
            raise self._diagnosed(self._log_tail())

    async def _is_up(self) -> bool:
        """Whether it answers, and it is not another's server that came to its port meanwhile."""
        return await self._answers() and processes.listens(self._remaining(), self.port, self.title)

    async def _kill_all(self) -> None:
        """End what still works in the data directory; then forget its pid."""
        for pid in self._remaining():
            processes.send(pid, signal.SIGKILL)
        if not await processes.within(_KILL_PATIENCE_S, lambda: not self._remaining()):
            pids = ", ".join(map(str, self._remaining()))
            raise ServerError(
                f"{self.title} (pid {pids}) in {self.data_dir} does not end, not even by SIGKILL."
            )
        if self._process is not None:
            self._process.poll()
        self._pid_path.unlink(missing_ok=True)

    def _remaining(self) -> list[int]:
        pid = self.pid
        found = processes.with_argument(self.mark)
        return found if pid is None or pid in found else [pid, *found]

    @property
    def _pid_path(self) -> Path:
        return self.data_dir / PID_FILE

    def _pid_in_file(self) -> int | None:
        try:
            text = self._pid_path.read_text(encoding="utf-8").strip()
        except OSError:  # None yet, or a place that the start will find wrong.
            return None
        return int(text) if text.isdigit() else None

    def _rotate_log(self) -> None:
        if self.log_path.exists() and self.log_path.stat().st_size > _LOG_BYTES_KEPT:
            self.log_path.replace(self.log_path.with_suffix(".log.1"))

    def _log_tail(self) -> str:
        with self.log_path.open("rb") as log:
            log.seek(max(0, self.log_path.stat().st_size - _LOG_TAIL_BYTES))
            return log.read().decode(errors="replace")

    def _diagnosed(self, output: str) -> OpsError:
        """Turn what the server wrote before it gave up into the error whose sentence helps."""
        if re.search(r"Address already in use|BindException|Failed to bind", output):
            either = " or ".join(map(str, (self.port, *self._others)))
            return PortBusy(f"Port {either} ({self.title}) is busy; stop what listens there.")
        if "No space left on device" in output:
            return ServerError(f"No space left on the disk of {self.data_dir}.")
        if re.search(r"AccessDenied|Permission denied", output):
            owner = places.server_uid()
            return ServerError(f"{self.title} (uid {owner}) may not use {self.data_dir}; see its owner.")
        wrong = [line for line in output.splitlines() if re.search(r"ERROR|FATAL|Exception|rror:", line)]
        first = (wrong or output.strip().splitlines() or ["it said nothing"])[0].strip()[:300]
        return ServerError(f"{self.title} in {self.data_dir} did not start: {first} (log: {self.log_path})")


def _give_to_server(path: Path) -> None:
    if os.geteuid() == 0:
        os.chown(path, places.SERVER_UID, places.SERVER_UID)
