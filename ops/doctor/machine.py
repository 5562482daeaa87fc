"""Checks of the machine, which need no stack: Python, Postgres, the state directory, space, files, ports."""

from __future__ import annotations

import os
import platform
import resource
import shutil
import stat
import subprocess
import sys
from typing import TYPE_CHECKING

from ops import places, ports
from ops.doctor.findings import Finding, bad, ok, warn
from ops.errors import OpsError

if TYPE_CHECKING:
    from pathlib import Path

PYTHON_MIN = (3, 11)
FREE_BYTES_MIN = 512 * 1024**2
"""Two Postgres servers with their write-ahead logs take about 300 MB before the first order."""
FREE_BYTES_COMFORT = 2 * 1024**3
OPEN_FILES_MIN = 1024
_POSTGRES_TIMEOUT_S = 10


def check(state_dir: Path) -> list[Finding]:
    """Everything that can be said without a stack."""
    return [python(), postgres(), directory(state_dir), space(state_dir), open_files()]


def python(version: tuple[int, ...] = sys.version_info[:3]) -> Finding:
    """Whether this Python is new enough."""
    text = ".".join(map(str, version))
    if version < PYTHON_MIN:
        return bad("python", text, "install Python 3.11 or newer, then: make clean setup PYTHON=python3.11")
    return ok("python", f"{platform.python_implementation()} {text}")


def postgres() -> Finding:
    """Whether the user that Postgres runs as can run the packaged binaries."""
    uid = places.server_uid()
    try:
        binary = places.postgres_bin() / "postgres"
        run_as = {"user": uid, "group": uid, "extra_groups": []} if os.geteuid() == 0 else {}
        result = subprocess.run(  # type: ignore[call-overload]  # how to become another user is data
            [binary, "--version"],
            capture_output=True,
            text=True,
            timeout=_POSTGRES_TIMEOUT_S,
            check=True,
            cwd="/",
            **run_as,
        )
    except OpsError as missing:
        return bad("postgres", str(missing), "make setup")
    except (OSError, subprocess.SubprocessError) as failed:
        return bad("postgres", f"uid {uid} cannot run it: {failed}", "make clean setup")
    return ok("postgres", f"{result.stdout.strip()}, runs as uid {uid}")


def directory(state_dir: Path) -> Finding:
    """Whether the state directory is ours alone to write, or can be made."""
    name = "state directory"
    if not state_dir.exists():
        parent = next(each for each in state_dir.absolute().parents if each.exists())
        if not os.access(parent, os.W_OK | os.X_OK):
            return bad(name, f"{state_dir} cannot be made in {parent}", "choose another with --state-dir DIR")
        return ok(name, f"{state_dir} (not there yet)")
    status = state_dir.stat()
    if not stat.S_ISDIR(status.st_mode):
        return bad(name, f"{state_dir} is no directory", "choose another with --state-dir DIR")
    if status.st_uid != os.geteuid():
        return bad(name, f"{state_dir} belongs to uid {status.st_uid}", "choose another with --state-dir DIR")
    if not os.access(state_dir, os.R_OK | os.W_OK | os.X_OK):
        return bad(name, f"{state_dir} cannot be written", f"chmod u+rwx {state_dir}")
    if status.st_mode & 0o022:
        return bad(name, f"others may write to {state_dir}", f"chmod go-w {state_dir}")
    return ok(name, str(state_dir))


def space(state_dir: Path, free_bytes: int | None = None) -> Finding:
    """Whether the disk of the stack's data has room."""
    data = places.data_directory(state_dir, "shards")
    existing = next(each for each in (data, *data.absolute().parents) if each.exists())
    free = shutil.disk_usage(existing).free if free_bytes is None else free_bytes
    detail = f"{free / 1024**3:.1f} GiB free at {existing}"
    if free < FREE_BYTES_MIN:
        return bad("space", detail, "free 512 MiB, or choose a larger disk with --state-dir DIR")
    if free < FREE_BYTES_COMFORT:
        return warn("space", detail, "enough to try it, not for a load test; 2 GiB are comfortable")
    return ok("space", detail)


def open_files(limit: int | None = None) -> Finding:
    """Whether processes may open enough files and sockets."""
    allowed = resource.getrlimit(resource.RLIMIT_NOFILE)[0] if limit is None else limit
    if 0 <= allowed < OPEN_FILES_MIN:
        return warn("open files", f"{allowed} per process", f"ulimit -n {OPEN_FILES_MIN}")
    return ok("open files", f"{allowed} per process" if allowed >= 0 else "no limit")


def free_ports(port_base: int = ports.DEFAULT_PORT_BASE) -> Finding:
    """Whether a stack could take the fixed ports; only asked while none runs."""
    try:
        edge = ports.PortBook.open(places.user_root()).edge(port_base)
    except OpsError as busy:
        return bad("ports", str(busy), "stop what listens there, or: ordermesh dev --port-base 0")
    return ok("ports", f"{edge.plain} gRPC, {edge.mtls} gRPC with mTLS and {edge.rest} REST are free")
