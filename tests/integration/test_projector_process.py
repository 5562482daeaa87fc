"""The projector as a process: what it carries, what it survives, and how it ends."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from uuid import uuid4

import asyncpg
import httpx
import pytest

from chassis.kafka import Cluster, Consumer, open_consumer
from chassis.testing import eventually
from history_svc.channel.wire import decode
from ops import ca, ports
from ops.kafka import KafkaServer
from tests.channels import Nobody
from tests.databases import Databases
from tests.faults.points import INDEX_POINTS, RELAY_POINTS
from tests.outboxes import COUNT, Follower, Outbox

WITHIN_S = 40.0
AWAY = "postgresql://ordermesh:x@127.0.0.1:1/s2"
pytestmark = pytest.mark.timeout(180)


@dataclass
class Projector:
    """A process that runs."""

    child: asyncio.subprocess.Process
    admin: str
    log: Path
    fired: Path

    async def get(self, path: str) -> httpx.Response | None:
        try:
            async with httpx.AsyncClient(timeout=5.0) as client:
                return await client.get(f"{self.admin}{path}")
        except httpx.TransportError:
            return None

    async def until_ready(self) -> None:
        async def ask() -> bool:
            answer = await self.get("/readyz")
            return answer is not None and answer.status_code == 200

        await eventually(ask, within_s=WITHIN_S)

    async def metrics(self) -> str:
        answer = await self.get("/metrics")
        return "" if answer is None else answer.text

    async def leads(self) -> bool:
        return 'ordermesh_projector_leads{shard="s1"} 1.0' in await self.metrics()

    async def stopped(self) -> int:
        self.child.terminate()
        async with asyncio.timeout(10):
            return await self.child.wait()


@asynccontextmanager
async def projector(directory: Path, **environment: str) -> AsyncIterator[Projector]:
    directory.mkdir(exist_ok=True)
    ca.renew_due(directory)
    ca.ensure_subject_keys(directory)
    port, log, fired = ports.free_port(), directory / "projector.log", directory / "fired"
    fired.touch()
    settings = {
        "TLS_DIR": str(directory),
        "SUBJECT_DIR": str(directory),
        "ADMIN_LISTEN": f"127.0.0.1:{port}",
        "FAULTS_FIRED": str(fired),
        "READ_MODEL_DSN": AWAY,
        **environment,
    }
    with log.open("ab") as output:
        child = await asyncio.create_subprocess_exec(
            sys.executable,
            "-m",
            "history_svc.projector",
            env={**os.environ, **{f"ORDERMESH_{name}": value for name, value in settings.items()}},
            stdout=output,
            stderr=output,
        )
    try:
        yield Projector(child, f"http://127.0.0.1:{port}", log, fired)
    finally:
        if child.returncode is None:
            child.kill()
            await child.wait()


async def read_until(consumer: Consumer, follower: Follower, wanted) -> None:
    async with asyncio.timeout(WITHIN_S):
        while not follower.has(wanted):
            for partition, messages in (await consumer.take(wait_s=0.2, messages_max=500)).items():
                follower.take_in([decode(message, partition) for message in messages])


@pytest.fixture
async def outbox(shard_database) -> Outbox:
    return await Outbox(await shard_database()).prepare()


@pytest.fixture
def over_kafka(kafka: KafkaServer, outbox: Outbox) -> Mapping[str, str]:
    """Settings of a projector with a topic of its own and a second shard that is away."""
    topic = f"events-{uuid4().hex}"
    return {
        "CHANNEL": "kafka",
        "KAFKA": kafka.address,
        "TOPIC": topic,
        "GROUP": topic,
        "TOPIC_PARTITIONS": str(COUNT),
        "TOPIC_REPLICAS": "1",
        "SHARDS": json.dumps({"s1": outbox.database.dsn, "s2": AWAY}),
    }


@asynccontextmanager
async def reader(settings: Mapping[str, str]) -> AsyncIterator[Consumer]:
    async with open_consumer(
        Cluster(addresses=settings["KAFKA"]),
        settings["TOPIC"],
        group=uuid4().hex,
        instance="reader",
        rebalanced=Nobody(),
    ) as consumer:
        yield consumer


async def test_it_carries_the_changes_of_a_shard_while_another_is_away_and_stops_when_asked(
    over_kafka, outbox, tmp_path
):
    written = await outbox.write(50)
    async with projector(tmp_path, **over_kafka) as process:
        await process.until_ready()
        async with reader(over_kafka) as consumer:
            follower = Follower()
            await read_until(consumer, follower, written)
            assert follower.gaps == []
            written += await outbox.write(50)
            await read_until(consumer, follower, written)
        assert 'ordermesh_projector_leads{shard="s1"} 1.0' in await process.metrics()

        async def counted() -> bool:
            """A reader may have a change before its acknowledgement is counted."""
            published = 'ordermesh_relay_events_total{result="published",shard="s1"} 100.0'
            return published in await process.metrics()

        await eventually(counted, within_s=WITHIN_S)
        assert await process.stopped() == 0
    lines = [json.loads(line) for line in process.log.read_text().splitlines() if line.startswith("{")]
    assert {line["service.name"] for line in lines} == {"projector"}
    assert "leadership_failed" in {line["message"] for line in lines}


@pytest.mark.parametrize("point", [point for point in RELAY_POINTS if point != "relay.after_rewind"])
async def test_a_kill_at_a_point_of_the_relay_misses_no_change(over_kafka, outbox, tmp_path, point: str):
    written = await outbox.write(50)
    async with projector(tmp_path, **over_kafka, FAULTS=f"{point}=kill:1") as killed:
        async with asyncio.timeout(WITHIN_S):
            assert await killed.child.wait() == -signal.SIGKILL
        assert point in killed.fired.read_text()
    written += await outbox.write(10)
    async with projector(tmp_path, **over_kafka) as process:
        await process.until_ready()
        async with reader(over_kafka) as consumer:
            follower = Follower()
            await read_until(consumer, follower, written)
    assert follower.gaps == []


@pytest.mark.parametrize("point", INDEX_POINTS)
async def test_a_kill_at_a_point_of_the_indexer_leaves_every_change_searchable_in_the_end(
    outbox: Outbox, databases: Databases, tmp_path: Path, point: str
) -> None:
    documents = await databases.create("readmodel")
    settings = {
        "CHANNEL": "outbox",
        "SHARDS": json.dumps({"s1": outbox.database.dsn}),
        "READ_MODEL_DSN": documents.dsn,
    }
    try:
        await outbox.write(50)
        async with projector(tmp_path, **settings, FAULTS=f"{point}=kill:1") as killed:
            async with asyncio.timeout(WITHIN_S):
                assert await killed.child.wait() == -signal.SIGKILL
            assert point in killed.fired.read_text()
        await outbox.write(10)
        async with projector(tmp_path, **settings):
            await eventually(lambda: all_searchable(documents.dsn, outbox, 60), within_s=WITHIN_S)
    finally:
        await databases.drop(documents)


async def all_searchable(documents: str, outbox: Outbox, count: int) -> bool:
    """Whether so many documents are there, and the watermarks are beyond every change."""
    reading = await asyncpg.connect(documents, timeout=10)
    try:
        found = await reading.fetchval("SELECT count(*) FROM ordermesh.documents")
    finally:
        await reading.close(timeout=5)
    async with outbox.connected() as connection:
        behind = await connection.fetchval(
            "SELECT count(*) FROM ordermesh.outbox x"
            " LEFT JOIN ordermesh.watermarks w USING (stream_partition)"
            " WHERE w.xid IS NULL OR (x.xid, x.seq) > (w.xid, w.seq)"
        )
    return bool(found == count and behind == 0)


async def test_with_the_outbox_as_channel_it_needs_no_kafka_and_leads_what_it_can_reach(outbox, tmp_path):
    shards = json.dumps({"s1": outbox.database.dsn, "s2": AWAY})
    async with projector(tmp_path, CHANNEL="outbox", SHARDS=shards) as process:
        await process.until_ready()
        await eventually(process.leads, within_s=WITHIN_S)
        assert await process.stopped() == 0


async def test_a_projector_that_is_frozen_loses_its_lead_and_learns_of_it(outbox, tmp_path):
    settings = {"CHANNEL": "outbox", "SHARDS": json.dumps({"s1": outbox.database.dsn})}
    async with projector(tmp_path / "one", **settings) as one, projector(tmp_path / "two", **settings) as two:
        both = (one, two)

        async def one_leads() -> list[Projector]:
            return [process for process in both if await process.leads()]

        first = (await eventually(one_leads, within_s=WITHIN_S))[0]
        other = both[1 - both.index(first)]
        await other.until_ready()
        assert not await other.leads()
        os.kill(first.child.pid, signal.SIGSTOP)
        try:
            await eventually(other.leads, within_s=WITHIN_S)
        finally:
            os.kill(first.child.pid, signal.SIGCONT)

        async def knows() -> bool:
            return await first.get("/healthz") is not None and not await first.leads()

        await eventually(knows, within_s=WITHIN_S)
        assert await other.leads()
