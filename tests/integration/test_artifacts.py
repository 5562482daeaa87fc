"""ops.artifacts against a Maven repository of the test's own: what is not the listed file is never run."""

import fcntl
import hashlib
import threading
import zipfile
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from ops import artifacts
from ops.artifacts import Artifact, ArtifactError, Bundle, ChecksumMismatch, Unreachable


class Quiet(SimpleHTTPRequestHandler):
    def log_message(self, *args: object) -> None:
        """Tests print nothing."""


@pytest.fixture
def repository(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A directory that is served as the only Maven repository."""
    directory = tmp_path / "repository"
    directory.mkdir()
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(directory)))
    threading.Thread(target=server.serve_forever, name="repository", daemon=True).start()
    settings = tmp_path / "jgo.conf"
    settings.write_text(f"[repositories]\ncentral = http://127.0.0.1:{server.server_port}\n")
    monkeypatch.setenv("JGO_CONFIG_FILE", str(settings))
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    yield directory
    server.shutdown()
    server.server_close()


def publish(repository: Path, name: str, content: bytes, packaging: str = "jar") -> Artifact:
    """Offer a file; return it as a list would name it."""
    file = repository / "org" / "example" / name / "1.0" / f"{name}-1.0.{packaging}"
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(content)
    coordinates = f"org.example:{name}:1.0" + (f":{packaging}" if packaging != "jar" else "")
    return Artifact(coordinates, hashlib.sha256(content).hexdigest(), len(content))


def zipped(path: Path, **files: str) -> bytes:
    with zipfile.ZipFile(path, "w") as archive:
        for name, text in files.items():
            archive.writestr(f"top/{name}", text)
    return path.read_bytes()


def installed(bundle: Bundle, root: Path, said: list[str] | None = None) -> Path:
    return artifacts.installed(bundle, root, timeout_s=20, say=(said or []).append)


def test_a_bundle_is_fetched_once_and_made_again_when_it_lost_a_file(
    repository: Path, tmp_path: Path
) -> None:
    jar = publish(repository, "engine", b"a jar")
    archive = publish(repository, "node", zipped(tmp_path / "node.zip", settings="quiet"), "zip")
    bundle = Bundle("server", (jar, archive))
    tree = installed(bundle, tmp_path / "root")
    assert (tree / "engine-1.0.jar").read_bytes() == b"a jar"
    assert (tree / "top" / "settings").read_text() == "quiet"
    assert tree.stat().st_mode & 0o055 == 0o055

    (repository / "org/example/node/1.0/node-1.0.zip").unlink()
    assert installed(bundle, tmp_path / "root") == tree
    (tree / "top" / "settings").unlink()
    with pytest.raises(Unreachable, match=r"org\.example:node:1\.0:zip"):
        installed(bundle, tmp_path / "root")
    publish(repository, "node", (tmp_path / "node.zip").read_bytes(), "zip")
    assert (installed(bundle, tmp_path / "root") / "top" / "settings").read_text() == "quiet"
    assert {path.name for path in (tmp_path / "root").iterdir()} == {"server.lock", tree.name}


def test_a_file_with_another_checksum_is_refused_and_not_kept(repository: Path, tmp_path: Path) -> None:
    wanted = publish(repository, "engine", b"what was reviewed")
    bundle = Bundle("server", (wanted,))
    publish(repository, "engine", b"what somebody put there")
    with pytest.raises(ChecksumMismatch, match=f"not {wanted.sha256}: refused"):
        installed(bundle, tmp_path / "root")
    assert list((tmp_path / "root").rglob("*.jar")) == []
    publish(repository, "engine", b"what was reviewed")
    assert (installed(bundle, tmp_path / "root") / "engine-1.0.jar").read_bytes() == b"what was reviewed"


def test_one_process_fetches_while_others_wait_with_a_bound_and_can_be_stopped(
    repository: Path, tmp_path: Path
) -> None:
    bundle = Bundle("server", (publish(repository, "engine", b"a jar"),))
    root = tmp_path / "root"
    root.mkdir()
    with (root / "server.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with pytest.raises(Unreachable, match="took too long"):
            artifacts.installed(bundle, root, timeout_s=0.2)
        stop = threading.Event()
        stop.set()
        with pytest.raises(ArtifactError, match="was stopped"):
            artifacts.installed(bundle, root, stop=stop)
    assert installed(bundle, root).name == f"server-{bundle.digest}"


def test_offline_is_one_clear_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = tmp_path / "jgo.conf"
    settings.write_text("[repositories]\ncentral = http://127.0.0.1:9\n")
    monkeypatch.setenv("JGO_CONFIG_FILE", str(settings))
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    bundle = Bundle("server", (Artifact("org.example:engine:1.0", "0" * 64, 5),))
    with pytest.raises(Unreachable, match=r"Is this machine online\?") as refused:
        installed(bundle, tmp_path / "root")
    assert "\n" not in str(refused.value)


def test_progress_is_said_and_an_impossible_place_is_named(repository: Path, tmp_path: Path) -> None:
    said: list[str] = []
    bundle = Bundle("server", (publish(repository, "engine", b"a jar"),))
    artifacts.installed(bundle, tmp_path / "root", say=said.append)
    assert [line.split(":")[0] for line in said] == ["fetching server"]
    (tmp_path / "file").touch()
    with pytest.raises(ArtifactError, match="Cannot keep server"):
        installed(bundle, tmp_path / "file")


def test_the_list_names_kafka_and_its_own_client_and_one_node() -> None:
    kafka = {each.coordinates for each in Bundle.listed("kafka").artifacts}
    assert {"org.apache.kafka:kafka_2.13:4.1.0", "org.apache.kafka:kafka-clients:4.1.0"} <= kafka
    assert [each.filename for each in Bundle.listed("elasticsearch").artifacts] == [
        "elasticsearch-8.19.3.zip"
    ]
    for bundle in ("kafka", "elasticsearch"):
        assert all(len(each.sha256) == 64 and each.size_bytes for each in Bundle.listed(bundle).artifacts)
