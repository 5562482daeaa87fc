"""ops.prometheus, for real: it scrapes what it is told to, follows rules, and keeps what it saw."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from chassis import admin
from chassis.testing import eventually
from ops import gobuild, places
from ops.owned import ServerError
from ops.ports import free_port
from ops.prometheus import PrometheusServer, Target

RULES = {
    "groups": [
        {
            "name": "test",
            "rules": [
                {"alert": "NobodyAnswers", "expr": "up == 0", "labels": {"severity": "page"}},
                {"alert": "NeverFires", "expr": "vector(0) > 1"},
            ],
        }
    ]
}


@pytest.fixture
async def answering() -> AsyncIterator[int]:
    """The port of a process that serves metrics."""
    async with admin.serve("127.0.0.1:0", admin.Readiness()) as port:
        yield port


@pytest.fixture
async def server(server_dir: Path, tmp_path: Path, answering: int) -> AsyncIterator[PrometheusServer]:
    rules = tmp_path / "rules.json"
    rules.write_text(json.dumps(RULES))
    data_dir = places.data_directory(server_dir, tmp_path.name, kind="prometheus")
    prometheus = PrometheusServer(data_dir, free_port(), rules=[rules], scrape_s=0.2)
    prometheus.watch([Target("order_svc", "order_svc.s1", f"127.0.0.1:{answering}", shard="s1")])
    await prometheus.start()
    yield prometheus
    await prometheus.stop()
    assert prometheus.pid is None


async def ups(prometheus: PrometheusServer) -> dict[str, str]:
    return {each["metric"]["instance"]: each["value"][1] for each in await prometheus.query("up")}


async def test_it_scrapes_its_targets_and_says_who_they_are(server: PrometheusServer) -> None:
    async def seen() -> bool:
        return await ups(server) == {"order_svc.s1": "1"}

    await eventually(seen)
    (up,) = await server.query("up")
    assert up["metric"] | {"__name__": "up"} == {
        "__name__": "up",
        "job": "order_svc",
        "instance": "order_svc.s1",
        "shard": "s1",
    }
    assert await server.query("process_resident_memory_bytes")


async def test_targets_may_change_while_it_runs_and_an_alert_fires_for_one_that_is_gone(
    server: PrometheusServer, answering: int
) -> None:
    server.watch(
        [
            Target("order_svc", "order_svc.s1", f"127.0.0.1:{answering}", shard="s1"),
            Target("gateway", "gateway", f"127.0.0.1:{free_port()}"),
        ]
    )

    async def both() -> bool:
        return await ups(server) == {"order_svc.s1": "1", "gateway": "0"}

    assert await eventually(both, within_s=30)

    async def of_the_gateway_alone() -> bool:
        """On a busy machine it may fire for the other one too, until that answered in time."""
        labels = [each["labels"] for each in await server.alerts() if each["state"] == "firing"]
        return [(each["alertname"], each["instance"]) for each in labels] == [("NobodyAnswers", "gateway")]

    assert await eventually(of_the_gateway_alone, within_s=30)


async def test_what_production_does_not_have_is_scraped_under_its_own_name(
    server: PrometheusServer, answering: int
) -> None:
    server.watch([Target("upstream", "upstream.payments", f"127.0.0.1:{answering}")])

    async def jobs() -> bool:
        return [each["metric"]["job"] for each in await server.query("up")] == ["upstream"]

    assert await eventually(jobs, within_s=30)


async def test_what_it_saw_survives_a_restart(server: PrometheusServer) -> None:
    async def seen() -> bool:
        return bool(await ups(server))

    await eventually(seen)
    (before,) = await server.query("count_over_time(up[1h])")
    await server.stop()
    await server.start()
    (after,) = await server.query("count_over_time(up[1h])")
    assert int(after["value"][1]) >= int(before["value"][1])


async def test_a_question_that_it_refuses_is_an_error_with_its_words(server: PrometheusServer) -> None:
    with pytest.raises(ServerError, match="parse error"):
        await server.query("up{")


async def test_nobody_there_is_an_error_too(tmp_path: Path) -> None:
    with pytest.raises(ServerError, match="does not answer"):
        await PrometheusServer(tmp_path, free_port()).query("up")


def test_promtool_is_there_as_well() -> None:
    home = gobuild.programs()
    assert all((home / name).is_file() for name in gobuild.PROGRAMS)
