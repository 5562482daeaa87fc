"""Files of the real Kafka and Elasticsearch: fetched once per user, checked, and laid out to be run.

Owns <user root>/artifacts: one tree per bundle of ops/artifacts.toml, named by what the list says, so that a
changed list gives another tree. A file gets into a tree only after its SHA-256 was compared, and a tree
appears whole or not at all. One process at a time fetches; others wait for it. Needs the network the first
time only. Blocking: call it in a thread, and set `stop` when nobody waits for it any more. Fails with
ArtifactError, whose message is one sentence.

    libraries = artifacts.tree("kafka")      # <user root>/artifacts/kafka-3f2a.../*.jar
"""

import hashlib
import logging
import shutil
import sys
import tempfile
import threading
import time
import tomllib
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Final, Self

from ops import places
from ops.errors import OpsError
from ops.locks import only_one

FETCH_TIMEOUT_S: Final = 900.0
"""How long one bundle may take; 100 MB at 1 Mbit/s."""
ANSWER_TIMEOUT_S: Final = 20
"""How long a repository may be silent."""
_SAY_EVERY_S: Final = 2.0
_CHUNK_BYTES: Final = 1024 * 1024
_MANIFEST: Final = "MANIFEST"


class ArtifactError(OpsError):
    """The files of a server could not be had."""


class Unreachable(ArtifactError):
    """No repository answered, or not in time."""


class ChecksumMismatch(ArtifactError):
    """A file is not the one that the list names."""


@dataclass(frozen=True, slots=True)
class Artifact:
    """One file. coordinates: `group:artifact:version`, with `:packaging` where it is not a jar."""

    coordinates: str
    sha256: str
    size_bytes: int

    @property
    def packaging(self) -> str:
        """`jar` or `zip`."""
        parts = self.coordinates.split(":")
        return parts[3] if len(parts) > 3 else "jar"

    @property
    def filename(self) -> str:
        """As the repository calls it."""
        return f"{self.coordinates.split(':')[1]}-{self.coordinates.split(':')[2]}.{self.packaging}"


@dataclass(frozen=True, slots=True)
class Bundle:
    """The files of one server."""

    name: str
    artifacts: tuple[Artifact, ...]

    @classmethod
    def listed(cls, name: str) -> Self:
        """The bundle as ops/artifacts.toml lists it."""
        text = resources.files("ops").joinpath("artifacts.toml").read_text(encoding="utf-8")
        files = tomllib.loads(text)[name]
        return cls(name, tuple(Artifact(key, each["sha256"], each["bytes"]) for key, each in files.items()))

    @property
    def size_bytes(self) -> int:
        """All files together."""
        return sum(artifact.size_bytes for artifact in self.artifacts)

    @property
    def digest(self) -> str:
        """Changes with any file."""
        text = "".join(f"{each.coordinates} {each.sha256}\n" for each in self.artifacts)
        return hashlib.sha256(text.encode()).hexdigest()[:12]


def tell(sentence: str) -> None:
    """Show progress to whoever waits at the terminal or reads the log."""
    sys.stderr.write(sentence + "\n")
    sys.stderr.flush()


def fetch_all() -> None:
    """Have the files of every server on this machine, so that no start, and no test, has to wait for them."""
    from ops import gobuild

    for name in ("kafka", "elasticsearch"):
        tree(name)
    gobuild.programs()


def tree(name: str, *, stop: threading.Event | None = None) -> Path:
    """Return the directory with a bundle's files, fetched when missing: jars side by side, zips unpacked."""
    return installed(Bundle.listed(name), places.user_root() / "artifacts", stop=stop)


def installed(
    bundle: Bundle,
    root: Path,
    *,
    stop: threading.Event | None = None,
    timeout_s: float = FETCH_TIMEOUT_S,
    say: Callable[[str], None] = tell,
) -> Path:
    """Return the tree of a bundle below root, complete, readable by every user; fetch what is missing.

    stop: when set, fetching ends with an error within a second or two of the next byte.
    A fetch that was cut off keeps the files that were checked already.
    Raises: Unreachable; ChecksumMismatch; ArtifactError when the disk refuses.
    """
    target = root / f"{bundle.name}-{bundle.digest}"
    if _is_complete(target):
        return target
    deadline = time.monotonic() + timeout_s
    try:
        root.mkdir(mode=0o755, parents=True, exist_ok=True)
        fetch = _Fetch(bundle, deadline, stop or threading.Event(), say)
        with only_one(root / f"{bundle.name}.lock", fetch.check):
            if not _is_complete(target):
                _build(bundle, target, fetch)
    except zipfile.BadZipFile as damaged:
        raise ArtifactError(f"A file of {bundle.name} is no zip file: {damaged}.") from damaged
    except OSError as error:
        raise ArtifactError(f"Cannot keep {bundle.name} in {root}: {error.strerror or error}.") from error
    return target


class _Fetch:
    """Fetches files one by one, says how far it is, and ends when it should."""

    def __init__(
        self, bundle: Bundle, deadline: float, stop: threading.Event, say: Callable[[str], None]
    ) -> None:
        self._bundle = bundle
        self._deadline = deadline
        self._stop = stop
        self._say = say
        self._fetched_bytes = 0
        self._said_at = 0.0

    def check(self) -> None:
        """Raise when nobody waits any more, or the time is up."""
        if self._stop.is_set():
            raise ArtifactError(
                f"Fetching {self._bundle.name} was stopped; the next start goes on from here."
            )
        if time.monotonic() > self._deadline:
            raise Unreachable(f"Fetching {self._bundle.name} took too long; try again, it goes on from here.")

    def __call__(self, artifact: Artifact, directory: Path) -> Path:
        """Return a file that is the listed one, in a directory of files checked before."""
        kept = directory / artifact.filename
        if not kept.exists():
            with tempfile.TemporaryDirectory(dir=directory) as partial:
                fetched = self._download(artifact, Path(partial))
                if (found := _sha256(fetched)) != artifact.sha256:
                    raise ChecksumMismatch(
                        f"{artifact.coordinates} came with SHA-256 {found}, not {artifact.sha256}: refused."
                    )
                fetched.rename(kept)
        return kept

    def _download(self, artifact: Artifact, directory: Path) -> Path:
        # Imported here and below: jgo takes 0.2 s, which no other command should wait for.
        from jgo.maven import MavenContext, PythonResolver

        context = MavenContext(
            resolver=PythonResolver(progress_callback=self._progress),
            repo_cache=directory,
            remote_repos=_repositories(),
            timeout=ANSWER_TIMEOUT_S,
        )
        group, name, version = artifact.coordinates.split(":")[:3]
        try:
            component = context.project(group, name).at_version(version)
            return component.artifact(packaging=artifact.packaging).resolve()
        except (OSError, RuntimeError) as failed:  # Of requests, and of jgo when no repository has it.
            raise Unreachable(
                f"Cannot fetch {artifact.coordinates}: no Maven repository gave it. "
                f"Is this machine online? The first start with Kafka and Elasticsearch needs about 140 MB."
            ) from failed

    @contextmanager
    def _progress(self, filename: str, size_bytes: int) -> Iterator[Callable[[int], None]]:
        def count(more_bytes: int) -> None:
            self.check()
            self._fetched_bytes += more_bytes
            if time.monotonic() - self._said_at > _SAY_EVERY_S:
                self._said_at = time.monotonic()
                self._say(f"fetching {self._bundle.name}: {_mb(self._fetched_bytes)} of {self._whole()}")

        yield count

    def _whole(self) -> str:
        return f"{_mb(self._bundle.size_bytes)} MB (once; kept for all later starts)"


def _build(bundle: Bundle, target: Path, fetch: _Fetch) -> None:
    """Fetch, lay out beside the target, and move into place."""
    checked = target.with_name(f"{target.name}.files")
    checked.mkdir(exist_ok=True)
    partial = target.with_name(f"{target.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(mode=0o755)
    for artifact in bundle.artifacts:
        fetch.check()
        file = fetch(artifact, checked)
        if artifact.packaging == "zip":
            with zipfile.ZipFile(file) as archive:
                archive.extractall(partial)
        else:
            (partial / artifact.filename).hardlink_to(file)
    places.let_others_in(partial)
    sizes = sorted(
        f"{path.stat().st_size} {path.relative_to(partial)}" for path in partial.rglob("*") if path.is_file()
    )
    (partial / _MANIFEST).write_text("\n".join(sizes) + "\n", encoding="utf-8")
    shutil.rmtree(target, ignore_errors=True)  # One that lost files, say to a cleaner of temporary places.
    partial.rename(target)
    shutil.rmtree(checked)


def _is_complete(target: Path) -> bool:
    """Whether every file is there with its size; the checksums were compared when the tree was made."""
    try:
        lines = (target / _MANIFEST).read_text(encoding="utf-8").splitlines()
        return all(
            (target / path).stat().st_size == int(size)
            for size, path in (line.split(" ", 1) for line in lines)
        )
    except (FileNotFoundError, NotADirectoryError):
        return False


def _repositories() -> dict[str, str]:
    """The public one and those of the user's jgo settings, where a mirror is one named `central`."""
    from jgo.config import GlobalSettings
    from jgo.constants import MAVEN_CENTRAL_URL

    logging.getLogger("jgo").setLevel(logging.ERROR)
    return {"central": MAVEN_CENTRAL_URL} | GlobalSettings.load().repositories


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK_BYTES):
            digest.update(chunk)
    return digest.hexdigest()


def _mb(size_bytes: int) -> int:
    return round(size_bytes / 1e6)


if __name__ == "__main__":
    try:
        fetch_all()
    except OpsError as failed:  # Of the files, or of Prometheus, which is built.
        sys.exit(f"error: {failed}")
