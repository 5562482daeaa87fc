"""The doctor's words: what is well, what will not last, what does not work; each but the first with a fix."""

import asyncio
import os
import socket
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path

from ops import ca, ports
from ops.doctor import machine, stack
from ops.doctor.findings import Finding, Word
from ops.stack.endpoints import Service
from ops.stack.layout import Places

NOW = datetime(2026, 11, 23, 12, tzinfo=UTC)


def words(*found: Finding) -> list[str]:
    assert all(bool(each.fix) == (each.word is not Word.OK) for each in found)
    return [each.word.value for each in found]


def test_an_old_python_is_refused() -> None:
    assert words(machine.python((3, 10, 4)), machine.python((3, 11, 0)), machine.python((3, 14, 0))) == [
        "bad",
        "ok",
        "ok",
    ]


def test_the_packaged_postgres_runs_as_the_server_user() -> None:
    found = machine.postgres()
    assert words(found) == ["ok"]
    assert "PostgreSQL" in found.detail


def test_a_state_directory_that_others_may_write_to_is_bad(tmp_path: Path) -> None:
    tmp_path.chmod(0o755)
    assert words(machine.directory(tmp_path), machine.directory(tmp_path / "new" / "one")) == ["ok", "ok"]
    tmp_path.chmod(0o777)
    found = machine.directory(tmp_path)
    assert words(found) == ["bad"]
    assert found.fix == f"chmod go-w {tmp_path}"
    file = tmp_path / "file"
    file.touch()
    assert words(machine.directory(file)) == ["bad"]


def test_little_space_is_a_warning_and_none_is_bad(tmp_path: Path) -> None:
    sizes = (10 * 1024**3, 1024**3, 100 * 1024**2)
    assert words(*(machine.space(tmp_path, size) for size in sizes)) == ["ok", "warn", "bad"]


def test_few_open_files_are_a_warning() -> None:
    assert words(*(machine.open_files(limit) for limit in (65_536, -1, 256))) == ["ok", "ok", "warn"]


def test_a_busy_port_is_named_with_the_flag_that_helps() -> None:
    base = ports.free_port()
    with socket.create_server((ports.HOST, base)):
        found = machine.free_ports(base)
    assert words(found) == ["bad"]
    assert str(base) in found.detail
    assert "--port-base 0" in found.fix


def test_certificates_near_their_end_are_a_warning_and_ended_ones_are_bad(tmp_path: Path) -> None:
    tls = tmp_path / "tls"
    assert words(stack.certificates(tls)) == ["bad"]
    ca.renew_due(tls, at=NOW)
    instants = (NOW, NOW + timedelta(hours=20), NOW + timedelta(hours=25))
    assert words(*(stack.certificates(tls, at=at) for at in instants)) == ["ok", "warn", "bad"]
    (tls / "gateway" / "cert.pem").write_text("nonsense")
    assert words(stack.certificates(tls, at=NOW)) == ["bad"]


def test_a_clock_that_differs_is_a_warning_until_creates_are_refused() -> None:
    skews = (0.2, -2.0, 6.0)
    assert words(*(stack.clock("s1", timedelta(seconds=s)) for s in skews)) == ["ok", "warn", "bad"]


def test_partitions_must_reach_far_enough_ahead() -> None:
    far = {"orders": NOW + timedelta(days=95), "outbox": NOW + timedelta(days=7)}
    assert words(stack.partitions("s1", far, NOW)) == ["ok"]
    assert stack.partitions("s1", far, NOW).detail.endswith("for 95 days ahead, of the outbox for 7")
    assert words(stack.partitions("s1", far | {"orders": NOW + timedelta(days=58)}, NOW)) == ["warn"]
    assert words(stack.partitions("s1", far | {"outbox": NOW + timedelta(days=1)}, NOW)) == ["warn"]
    for ends in (far | {"orders": NOW}, far | {"orders": None}, {}):
        assert words(stack.partitions("s1", ends, NOW)) == ["bad"]


async def test_a_process_that_is_gone_is_told_apart_from_one_that_is_silent_or_kept_down(
    tmp_path: Path,
) -> None:
    gone = await asyncio.create_subprocess_exec(sys.executable, "-c", "")
    await gone.wait()
    silent = f"http://127.0.0.1:{ports.free_port()}/metrics"
    services = (
        Service(name="issuer", target="x:1", pid=os.getpid()),
        Service(name="order_svc", shard="s1", target="x:1", pid=gone.pid),
        Service(name="gateway", target="x:1", metrics_url=silent, pid=os.getpid()),
    )
    where = Places(tmp_path)
    found = await stack.processes(services, where)
    assert [each.check for each in found] == ["order_svc.s1", "gateway"]
    assert words(*found) == ["bad", "bad"]
    assert "does not run" in found[0].detail
    assert "does not answer" in found[1].detail
    assert words(*await stack.processes(services[:1], where)) == ["ok"]
    where.hold.mkdir()
    (where.hold / "issuer").touch()
    [held] = await stack.processes(services[:1], where)
    assert (held.word, held.fix) == (Word.BAD, "ordermesh start issuer")
