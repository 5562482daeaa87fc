"""The shipper as a process before a real Elasticsearch: nothing is lost or twice, whoever is killed."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
from collections import Counter
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from uuid import uuid4

import httpx
import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.trace.v1.trace_pb2 import ResourceSpans, ScopeSpans, Span

from chassis.testing import eventually
from ops import ports
from ops.elasticsearch import ElasticsearchServer
from ops.shipper.streams import LOGS, TRACES
from ops.story.kept import Kept

WITHIN_S = 120.0
AT = "2026-09-01T12:30:15.123456Z"
SPANS_EACH = 20
pytestmark = pytest.mark.timeout(400)


@dataclass
class Shipper:
    """A process that runs, is killed, and runs again."""

    root: Path
    elasticsearch: str
    listen: str = field(default_factory=lambda: f"127.0.0.1:{ports.free_port()}")
    admin: str = field(default_factory=lambda: f"127.0.0.1:{ports.free_port()}")
    carries_lines: bool = True
    child: asyncio.subprocess.Process | None = None

    @property
    def logs(self) -> Path:
        return self.root / "logs"

    async def start(self) -> None:
        self.logs.mkdir(exist_ok=True)
        settings = {
            "LISTEN": self.listen,
            "ADMIN_LISTEN": self.admin,
            "ELASTICSEARCH": self.elasticsearch,
            "SHIPPER_DIR": str(self.root / "shipper"),
        }
        if self.carries_lines:
            settings["LOGS_DIR"] = str(self.logs)
        with (self.root / "out").open("ab") as out:
            self.child = await asyncio.create_subprocess_exec(
                *(sys.executable, "-m", "ops.shipper"),
                env={**os.environ, **{f"ORDERMESH_{name}": value for name, value in settings.items()}},
                stdout=out,
                stderr=out,
            )

    async def end(self, number: signal.Signals) -> int:
        assert self.child is not None
        self.child.send_signal(number)
        return await self.child.wait()

    async def kill_and_start(self) -> None:
        assert await self.end(signal.SIGKILL) == -signal.SIGKILL
        await self.start()

    def say(self, name: str, *lines: str) -> None:
        with (self.logs / f"{name}.log").open("a") as file:
            file.writelines(f"{line}\n" for line in lines)

    def move_aside(self, name: str) -> None:
        (self.logs / f"{name}.log").rename(self.logs / f"{name}.log.1")

    async def give(self, export: ExportTraceServiceRequest) -> None:
        """Send spans as an exporter does: until they are taken."""

        async def taken() -> bool:
            headers = {"content-type": "application/x-protobuf"}
            url = f"http://{self.listen}/v1/traces"
            try:
                async with httpx.AsyncClient(timeout=10.0) as http:
                    answer = await http.post(url, content=export.SerializeToString(), headers=headers)
            except httpx.TransportError:
                return False
            assert answer.status_code in (200, 503), answer.text
            return answer.status_code == 200

        await eventually(taken, within_s=WITHIN_S)

    def refused(self) -> list[dict[str, Any]]:
        path = self.root / "shipper" / "dead.ndjson"
        return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


@pytest.fixture
async def own(server_dir: Path) -> AsyncIterator[ElasticsearchServer]:
    """A node of the test's own, which may be killed."""
    directory = server_dir / f"elasticsearch-{uuid4().hex}" / "node"
    server = ElasticsearchServer(directory, ports.free_port(), ports.free_port(), quick=True)
    yield server
    await server.stop()


@pytest.fixture
async def shipper(own: ElasticsearchServer, tmp_path: Path) -> AsyncIterator[Shipper]:
    shipper = Shipper(tmp_path, own.url)
    yield shipper
    if shipper.child is not None and shipper.child.returncode is None:
        shipper.child.kill()
        await shipper.child.wait()


async def found(url: str, stream: str, name: str) -> Counter[str]:
    """How often each value of a field is in a stream."""
    counts: Counter[str] = Counter()
    after: list[object] | None = None
    async with httpx.AsyncClient(base_url=url, timeout=30.0) as http:
        if (await http.post(f"/{stream}/_refresh")).status_code == 404:
            return counts
        while True:
            ask = {
                "size": 1000,
                "sort": [{"order_id": "asc"}, {"_doc": "asc"}],
                "query": {"exists": {"field": "order_id"}},
            }
            more = {} if after is None else {"search_after": after}
            hits = (await http.post(f"/{stream}/_search", json={**ask, **more})).json()["hits"]["hits"]
            counts.update(hit["_source"][name] for hit in hits)
            if len(hits) < 1000:
                return counts
            after = hits[-1]["sort"]


def line(number: int) -> str:
    said = {"@timestamp": AT, "log.level": "info", "message": "numbered", "order_id": f"n{number:06d}"}
    return json.dumps(said)


def spans(first: int) -> ExportTraceServiceRequest:
    made = [
        Span(
            trace_id=number.to_bytes(16, "big"),
            span_id=number.to_bytes(8, "big"),
            name="a.B/C",
            start_time_unix_nano=1_788_265_815_000_000_000,
            end_time_unix_nano=1_788_265_815_000_001_000,
        )
        for number in range(first, first + SPANS_EACH)
    ]
    return ExportTraceServiceRequest(resource_spans=[ResourceSpans(scope_spans=[ScopeSpans(spans=made)])])


async def count(url: str, stream: str) -> int:
    async with httpx.AsyncClient(base_url=url, timeout=30.0) as http:
        if (await http.post(f"/{stream}/_refresh")).status_code == 404:
            return 0
        return int((await http.get(f"/{stream}/_count")).json()["count"])


async def test_nothing_is_lost_or_twice_over_kills_of_the_shipper_and_of_elasticsearch(
    own: ElasticsearchServer, shipper: Shipper
) -> None:
    await shipper.start()  # Before there is anywhere to ship to.
    shipper.say("a", *(line(number) for number in range(1000)))
    await shipper.give(spans(1))
    await own.start()
    await eventually(lambda: at_least(own.url, 500), within_s=WITHIN_S)
    await shipper.kill_and_start()
    shipper.say("a", *(line(number) for number in range(1000, 6000)))
    shipper.move_aside("a")
    shipper.say("a", *(line(number) for number in range(6000, 8000)))
    shipper.say("b", *(line(number) for number in range(8000, 9000)))
    await shipper.give(spans(1 + SPANS_EACH))
    await shipper.kill_and_start()
    await own.stop()
    shipper.say("b", *(line(number) for number in range(9000, 12_000)))
    await shipper.give(spans(1 + 2 * SPANS_EACH))
    await shipper.kill_and_start()
    await own.start()
    await shipper.give(spans(1 + 2 * SPANS_EACH))  # Its answer was lost, and so it comes again.
    await eventually(lambda: at_least(own.url, 12_000), within_s=WITHIN_S)
    await eventually(lambda: are_there(own.url, 3 * SPANS_EACH), within_s=WITHIN_S)
    there = await found(own.url, LOGS, "order_id")
    assert set(there) == {f"n{number:06d}" for number in range(12_000)}
    assert max(there.values()) == 1
    assert await count(own.url, TRACES) == 3 * SPANS_EACH


async def at_least(url: str, wanted: int) -> bool:
    return await count(url, LOGS) >= wanted


async def are_there(url: str, wanted: int) -> bool:
    return await count(url, TRACES) == wanted


async def test_a_line_that_cannot_be_kept_is_set_aside_and_those_after_it_come_through(
    own: ElasticsearchServer, shipper: Shipper
) -> None:
    await own.start()
    await shipper.start()
    shipper.say(
        "a",
        line(1),
        f'{{"@timestamp":"{AT}","order_id":{{"an":"object"}}}}',
        '{"@timestamp":"2026-13-45T00:00:00Z","order_id":"n"}',
        "Traceback (most recent call last):",
        f'{{"@timestamp":"{AT}","anything":{{"deep":[{{"er":1}}]}},"order_id":"n000002","error.type":"E"}}',
        line(3),
    )

    async def are_through() -> bool:
        return set(await found(own.url, LOGS, "order_id")) == {"n000001", "n000002", "n000003"}

    await eventually(are_through, within_s=WITHIN_S)
    refused = shipper.refused()
    assert [(each["status"], each["stream"]) for each in refused] == [(400, LOGS)]
    assert "object" in refused[0]["line"]
    async with httpx.AsyncClient(timeout=10.0) as http:
        metrics = (await http.get(f"http://{shipper.admin}/metrics")).text
    assert 'ordermesh_shipper_documents_total{outcome="refused",stream="logs"} 1.0' in metrics


async def test_at_stop_the_last_lines_are_shipped(own: ElasticsearchServer, shipper: Shipper) -> None:
    await own.start()
    await shipper.start()
    shipper.say("a", line(1))
    await eventually(lambda: at_least(own.url, 1), within_s=WITHIN_S)
    shipper.say("a", *(line(number) for number in range(2, 500)))
    assert await shipper.end(signal.SIGTERM) == 0
    assert len(await found(own.url, LOGS, "order_id")) == 499


async def test_behind_a_collector_it_ships_spans_alone_which_are_found_by_their_traces(
    own: ElasticsearchServer, shipper: Shipper
) -> None:
    """As in production, where others carry the lines."""
    await own.start()
    shipper.carries_lines = False
    await shipper.start()
    shipper.say("a", line(1))
    await shipper.give(spans(1))
    wanted = [f"{number:032x}" for number in range(1, SPANS_EACH + 1)]

    async def are_found() -> bool:
        seen = await asyncio.to_thread(Kept(own.url).spans, traces=wanted)
        return sorted(span["trace.id"] for span in seen) == wanted

    await eventually(are_found, within_s=WITHIN_S)
    assert await shipper.end(signal.SIGTERM) == 0
    assert await count(own.url, LOGS) == 0
