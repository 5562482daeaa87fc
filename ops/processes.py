"""Processes of the servers on this machine: how to spawn one, find what a killed parent left, wait in bounds.

A server is found by its working directory or by an argument that names its data: a pid in a file may be
another process's by now. Where there is no /proc, the pid alone decides.
"""

import asyncio
import ctypes
import os
import signal
import sys
import time
from collections.abc import Callable, Collection, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, Final

from ops import places
from ops.errors import PortBusy

_POLL_S: Final = 0.02
_PR_SET_PDEATHSIG: Final = 1
_LISTENS: Final = "0A"
_LOOPBACK: Final = ("0100007F", "00000000", "0" * 16 + "FFFF00000100007F", "0" * 32)
"""127.0.0.1 and any address, in IPv4 and IPv6, as the tables of a machine of Intel's or ARM's write them."""
_WORDS_CHARS_MAX: Final = 100


def as_server() -> dict[str, Any]:
    """Return how to spawn a server's program: as the server's user, with nothing of our environment."""
    options: dict[str, Any] = {"cwd": "/", "env": {"PATH": "/usr/bin:/bin", "LC_ALL": "C", "TZ": "UTC"}}
    if os.geteuid() == 0:
        options.update(user=places.SERVER_UID, group=places.SERVER_UID, extra_groups=[], umask=0o077)
    return options


def die_with_parent() -> None:
    """In a child, between fork and exec: have the kernel kill it when the thread that made it is gone."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


def runs_in(pid: int, directory: Path) -> bool:
    """Tell whether a live process has this working directory; without /proc, whether the pid lives."""
    try:
        return Path(f"/proc/{pid}/cwd").readlink() == directory.resolve()
    except PermissionError:
        return False  # Another user's process: not a server of ours.
    except FileNotFoundError:
        pass  # Ended, or a zombie, or a system without /proc.
    return not _has_proc() and _is_alive(pid)


def has_argument(pid: int, argument: str) -> bool:
    """Tell whether a live process was started with this argument; without /proc, whether the pid lives."""
    try:
        return argument.encode() in Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
    except (FileNotFoundError, ProcessLookupError):
        return not _has_proc() and _is_alive(pid)


def processes_in(directory: Path) -> list[int]:
    """Return the pids of the processes with this working directory, as every process of Postgres has."""
    return [pid for pid in _pids() if runs_in(pid, directory)]


def with_argument(argument: str) -> list[int]:
    """Return the pids of the processes that were started with this argument."""
    return [pid for pid in _pids() if has_argument(pid, argument)]


def listens(ours: Collection[int], port: int, what: str) -> bool:
    """Tell whether one of these processes listens on a port of 127.0.0.1; without /proc, whether one lives.

    The kernel's word: whoever answers there may be another's process, of another stack for instance. Where we
    may not look into ours, as root of a container may not look into another user's, its user decides.
    what: who should listen, for people. Raises: PortBusy, which names the one who listens instead.
    """
    if not _has_proc():
        return any(_is_alive(pid) for pid in ours)
    sockets = _listening(port)
    if not sockets:
        return False
    if any(_serves(pid, sockets) for pid in ours):
        return True
    stranger = _first_with(sockets)
    who = "another process" if stranger is None else f"another process ({_word(stranger)})"
    raise PortBusy(f"Port {port} ({what}) is answered by {who}, not by the one that was started; stop it.")


def _listening(port: int) -> dict[str, int]:
    """The sockets that take connections to this port of 127.0.0.1, as /proc calls them, and their users."""
    found = {}
    for table in ("tcp", "tcp6"):
        with suppress(FileNotFoundError):  # A system without IPv6.
            for line in Path(f"/proc/net/{table}").read_text(encoding="ascii").splitlines()[1:]:
                fields = line.split()
                address, _, number = fields[1].partition(":")
                if fields[3] == _LISTENS and int(number, 16) == port and address in _LOOPBACK:
                    found[f"socket:[{fields[9]}]"] = int(fields[7])
    return found


def _serves(pid: int, sockets: Mapping[str, int]) -> bool:
    """Tell whether a process has one of these open, by its user where we may not look; no when it ended."""
    try:
        return _has_open(pid, sockets)
    except PermissionError:
        with suppress(FileNotFoundError):
            return Path(f"/proc/{pid}").stat().st_uid in sockets.values()
    return False


def _first_with(sockets: Mapping[str, int]) -> int | None:
    """The first process with one of these open, of those into which we may look."""
    for pid in _pids():
        with suppress(PermissionError):
            if _has_open(pid, sockets):
                return pid
    return None


def _has_open(pid: int, sockets: Mapping[str, int]) -> bool:
    with suppress(FileNotFoundError, ProcessLookupError):
        for entry in Path(f"/proc/{pid}/fd").iterdir():
            with suppress(FileNotFoundError):  # Closed meanwhile.
                if str(entry.readlink()) in sockets:
                    return True
    return False


def _word(pid: int) -> str:
    """A process for people."""
    try:
        words = Path(f"/proc/{pid}/cmdline").read_bytes().decode(errors="replace").split("\0")
    except OSError:
        words = []
    return f"pid {pid}: {' '.join(words).strip()[:_WORDS_CHARS_MAX]}"


def _pids() -> list[int]:
    """Every process of this machine; none where there is no /proc."""
    return (
        [int(entry.name) for entry in Path("/proc").iterdir() if entry.name.isdigit()] if _has_proc() else []
    )


def _has_proc() -> bool:
    return Path("/proc/self/cwd").exists()


def _is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def send(pid: int, number: signal.Signals) -> None:
    """Send a signal to a process that may have ended by itself, which is what is wanted."""
    try:
        os.kill(pid, number)
    except ProcessLookupError:
        return


async def within(seconds: float, holds: Callable[[], bool]) -> bool:
    """Wait until something holds; return whether it did in time."""
    deadline = time.monotonic() + seconds
    while not holds():
        if time.monotonic() >= deadline:
            return False
        await asyncio.sleep(_POLL_S)
    return True
