"""Settings: read once, frozen, and wrong ones named all at once."""

from __future__ import annotations

from pathlib import Path

import pydantic
import pytest
from pydantic import BaseModel, Field

from chassis.settings import (
    EXIT_BAD_SETTINGS,
    ProcessSettings,
    Settings,
    is_loopback,
    load,
    split_address,
)


class Inner(BaseModel):
    dsn: str
    pool_size: int = Field(8, ge=1, le=64)


class Example(Settings):
    listen_s: float = Field(gt=0)
    database: Inner
    secret: str = "none"


@pytest.fixture(autouse=True)
def no_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("ORDERMESH_LISTEN_S", "ORDERMESH_DATABASE", "ORDERMESH_SECRET"):
        monkeypatch.delenv(name, raising=False)


def test_settings_come_from_the_environment_nested_by_name_or_as_json(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("ORDERMESH_LISTEN_S", "2.5")
    monkeypatch.setenv("ORDERMESH_DATABASE", '{"dsn": "postgresql://x", "pool_size": 3}')
    monkeypatch.setenv("ORDERMESH_DATABASE__POOL_SIZE", "4")
    read = load(Example)
    assert (read.listen_s, read.database.dsn, read.database.pool_size) == (2.5, "postgresql://x", 4)


def test_all_wrong_settings_are_named_at_once_without_their_values(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("ORDERMESH_LISTEN_S", "-7123")
    monkeypatch.setenv("ORDERMESH_DATABASE__POOL_SIZE", "hunter2")
    with pytest.raises(SystemExit) as ended:
        load(Example)
    err = capsys.readouterr().err
    assert ended.value.code == EXIT_BAD_SETTINGS == 78
    names = [line.partition(":")[0] for line in err.splitlines()]
    assert names == ["ORDERMESH_LISTEN_S", "ORDERMESH_DATABASE__DSN", "ORDERMESH_DATABASE__POOL_SIZE"]
    assert "hunter2" not in err
    assert "Traceback" not in err


def test_what_others_read_does_not_disturb(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ORDERMESH_SOMETHING_ELSE", "1")
    monkeypatch.setenv("ORDERMESH_LISTEN_S", "1")
    monkeypatch.setenv("ORDERMESH_DATABASE__DSN", "postgresql://x")
    assert load(Example).listen_s == 1


def test_settings_do_not_change_while_the_process_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ORDERMESH_TLS_DIR", "/tls")
    monkeypatch.setenv("ORDERMESH_SUBJECT_DIR", "/subject")
    read = load(ProcessSettings)
    assert read.tls_dir == Path("/tls")
    with pytest.raises(pydantic.ValidationError, match="frozen"):
        setattr(read, "drain_s", 99)  # noqa: B010 - mypy knows it is read-only


@pytest.mark.parametrize("address", ["127.0.0.1:0", "[::1]:443", "order-svc.mesh:7443"])
def test_an_address_is_a_host_and_a_port(address: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ORDERMESH_LISTEN", address)
    assert ProcessSettings(tls_dir=Path(), subject_dir=Path()).listen == address


@pytest.mark.parametrize(
    "address", ["7443", "localhost", ":1", "a b:1", "host:port", "host:123456", "::1:80"]
)
def test_anything_else_is_no_address(address: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ORDERMESH_LISTEN", address)
    with pytest.raises(pydantic.ValidationError):
        ProcessSettings(tls_dir=Path(), subject_dir=Path())


def test_loopback_is_this_machine_only() -> None:
    assert all(map(is_loopback, ["127.0.0.1:1", "127.9.9.9:1", "localhost:1", "[::1]:1"]))
    assert not any(map(is_loopback, ["0.0.0.0:1", "[::]:1", "10.0.0.1:1", "localhost.evil:1"]))
    assert split_address("[::1]:7443") == ("::1", 7443)
