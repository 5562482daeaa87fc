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
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

from ops import places

_POLL_S: Final = 0.02
_PR_SET_PDEATHSIG: Final = 1


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
