"""Prometheus and promtool: taken from the PATH, or built once per user from the pinned Go module.

Owns <user root>/artifacts/prometheus-<digest>: the two programs, named by what they were built from, so that
a changed pin gives others. The sources are those of ops/go/go.sum, which names the hash of every module; the
compiler is the wheel of ops/go/toolchain.txt, checked in the same way and thrown away afterwards. Takes five
minutes on two cores and needs the network, the first time only. Blocking: call it in a thread, and set `stop`
when nobody waits for it any more. Fails with BuildError, whose message is one sentence.

    program = gobuild.programs() / "prometheus"
"""

import hashlib
import os
import re
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from importlib import resources
from pathlib import Path
from typing import Final

from ops import places, processes
from ops.artifacts import tell
from ops.errors import OpsError
from ops.locks import only_one

PROGRAMS: Final = ("prometheus", "promtool")
MODULE: Final = "github.com/prometheus/prometheus/cmd"
MAJOR_MIN: Final = 3
"""An older Prometheus on the PATH is passed by: rules and flags are those of 3."""
BUILD_TIMEOUT_S: Final = 1800.0
ANSWER_TIMEOUT_S: Final = 20.0

_TAGS: Final = "remove_all_sd,netgo"
"""Without the discovery of a dozen clouds, which is most of the code; files and fixed targets stay."""
_SAY_EVERY_S: Final = 10.0
_POLL_S: Final = 0.2
_WORDS_CHARS_MAX: Final = 300


class BuildError(OpsError):
    """A program could not be built here."""


def programs(*, stop: threading.Event | None = None, say: Callable[[str], None] = tell) -> Path:
    """Return a directory that holds PROGRAMS, ready to run by every user; build them when they are missing.

    Raises: BuildError when the network, the disk or the compiler refuses, or `stop` was set.
    """
    return on_path() or built(places.user_root() / "artifacts", stop=stop, say=say)


def on_path() -> Path | None:
    """Return the directory of the machine's own programs, when they are there and young enough."""
    found = [shutil.which(name) for name in PROGRAMS]
    homes = {Path(path).parent for path in found if path is not None}
    if None in found or len(homes) != 1:
        return None
    home = homes.pop()
    suits = places.can_enter(home, places.server_uid()) and _major(home / PROGRAMS[0]) >= MAJOR_MIN
    return home if suits else None


def _major(program: Path) -> int:
    """The first number of a program's version; 0 when it does not tell."""
    try:
        said = subprocess.run(
            [program, "--version"], capture_output=True, text=True, timeout=ANSWER_TIMEOUT_S, check=False
        )
    except (OSError, subprocess.SubprocessError):
        return 0
    version = re.search(r"version (\d+)\.", said.stdout + said.stderr)
    return int(version[1]) if version else 0


def built(
    root: Path,
    *,
    stop: threading.Event | None = None,
    timeout_s: float = BUILD_TIMEOUT_S,
    say: Callable[[str], None] = tell,
) -> Path:
    """Return the directory of the programs built below root; build what is missing, one process at a time.

    Raises: BuildError.
    """
    target = root / f"prometheus-{_digest()}"
    if _is_complete(target):
        return target
    build = _Build(time.monotonic() + timeout_s, stop or threading.Event(), say)
    try:
        root.mkdir(mode=0o755, parents=True, exist_ok=True)
        with only_one(root / "prometheus.lock", build.check):
            if not _is_complete(target):
                with tempfile.TemporaryDirectory(prefix="prometheus.", dir=root) as place:
                    build.into(target, Path(place))
    except OSError as error:
        raise BuildError(f"Cannot build Prometheus in {root}: {error.strerror or error}.") from error
    return target


class _Build:
    """One build in a directory of its own, with the compiler and the sources in it."""

    def __init__(self, deadline: float, stop: threading.Event, say: Callable[[str], None]) -> None:
        self._deadline = deadline
        self._stop = stop
        self._say = say

    def check(self) -> None:
        """Raise when nobody waits any more, or the time is up."""
        if self._stop.is_set():
            raise BuildError("Building Prometheus was stopped.")
        if time.monotonic() > self._deadline:
            raise BuildError("Building Prometheus took too long.")

    def into(self, target: Path, place: Path) -> None:
        """Build beside the target, and move into place."""
        self._say("building Prometheus (once; about five minutes on two cores) ...")
        toolchain, module, made = place / "toolchain", place / "module", place / "made"
        module.mkdir()
        for name in ("go.mod", "go.sum"):
            (module / name).write_text(_text(name), encoding="utf-8")
        (place / "toolchain.txt").write_text(_text("toolchain.txt"), encoding="utf-8")
        made.mkdir(mode=0o755)
        self._run(
            [
                *(sys.executable, "-m", "uv", "pip", "install", "--quiet", "--require-hashes"),
                *("--target", toolchain, "--requirement", place / "toolchain.txt"),
            ],
            place,
            dict(os.environ),
        )
        # The file modes of the module cache forbid its removal.
        environment = {
            **{
                name: value
                for name, value in os.environ.items()
                if name not in ("GOROOT", "GOFLAGS", "GOENV")
            },
            "GOBIN": str(made),
            "GOCACHE": str(place / "cache"),
            "GOFLAGS": "-mod=readonly -modcacherw -buildvcs=false",
            "GOMODCACHE": str(place / "modules"),
            "GOTOOLCHAIN": "local",
            "GOWORK": "off",
            "CGO_ENABLED": "0",
        }
        go = toolchain / "go" / "bin" / "go"
        wanted = [f"{MODULE}/{name}" for name in PROGRAMS]
        self._run(
            [go, "install", "-v", "-trimpath", "-tags", _TAGS, "-ldflags", "-s -w", *wanted],
            module,
            environment,
        )
        for name in PROGRAMS:
            (made / name).chmod(0o755)
        shutil.rmtree(target, ignore_errors=True)  # One that lost files.
        made.rename(target)

    def _run(self, command: list[str | Path], place: Path, environment: dict[str, str]) -> None:
        """Run a tool to its end; it dies with us, and by `stop`."""
        with tempfile.TemporaryFile(dir=place) as output:
            tool = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                cwd=place,
                env=environment,
                start_new_session=True,
                preexec_fn=processes.die_with_parent,
            )
            try:
                self._wait(tool, output.fileno())
            finally:
                with suppress(ProcessLookupError):
                    os.killpg(tool.pid, 9)
                tool.wait()
            if tool.returncode:
                output.seek(0)
                raise BuildError(_reason(output.read().decode(errors="replace")))

    def _wait(self, tool: subprocess.Popen[bytes], output: int) -> None:
        said_at = time.monotonic()
        while tool.poll() is None:
            self.check()
            if time.monotonic() - said_at > _SAY_EVERY_S:
                said_at = time.monotonic()
                packages = os.pread(output, os.fstat(output).st_size, 0).count(b"\n")
                self._say(f"building Prometheus: {packages} packages so far")
            time.sleep(_POLL_S)


def _reason(output: str) -> str:
    """The sentence that helps, from what a tool wrote before it gave up."""
    lines = [line.strip() for line in output.splitlines() if line.strip()]
    refused = [line for line in lines if re.search(r"error|cannot|no such host|dial|403|404|mismatch", line)]
    words = (refused or lines[-1:] or ["it said nothing"])[0][:_WORDS_CHARS_MAX]
    return f"Cannot build Prometheus, which needs the network the first time: {words}"


def _text(name: str) -> str:
    return resources.files("ops").joinpath("go", name).read_text(encoding="utf-8")


def _digest() -> str:
    """Changes with the compiler, with any module and with how they are built."""
    pins = "\n".join([*map(_text, ("go.mod", "go.sum", "toolchain.txt")), _TAGS, *PROGRAMS])
    return hashlib.sha256(pins.encode()).hexdigest()[:12]


def _is_complete(target: Path) -> bool:
    return all((target / name).is_file() for name in PROGRAMS)
