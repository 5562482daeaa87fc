"""ops.kafka on real brokers: records outlive kills, no topic is made by mistake, no process is left."""

import asyncio
import os
import signal
import socket
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from uuid import uuid4

import pytest
from aiokafka import AIOKafkaConsumer, AIOKafkaProducer, TopicPartition
from aiokafka.errors import KafkaTimeoutError, UnknownTopicOrPartitionError

from chassis.testing import eventually
from ops import ports, processes
from ops.errors import PortBusy
from ops.kafka import KafkaError, KafkaServer

pytestmark = pytest.mark.timeout(300)  # Three starts, on a machine that others use as well.


@pytest.fixture
async def own(server_dir: Path) -> AsyncIterator[KafkaServer]:
    """A broker of the test's own, not yet started."""
    server = KafkaServer(
        server_dir / f"kafka-{uuid4().hex}" / "broker", ports.free_port(), ports.free_port(), quick=True
    )
    yield server
    await server.stop()


async def produced(server: KafkaServer, topic: str, *values: bytes) -> None:
    producer = AIOKafkaProducer(
        bootstrap_servers=server.address, acks="all", enable_idempotence=True, request_timeout_ms=3_000
    )
    await producer.start()
    try:
        for value in values:
            await producer.send_and_wait(topic, value, partition=0)
    finally:
        await producer.stop()


async def consumed(server: KafkaServer, topic: str, count: int) -> list[bytes]:
    consumer = AIOKafkaConsumer(bootstrap_servers=server.address, auto_offset_reset="earliest")
    consumer.assign([TopicPartition(topic, 0)])
    await consumer.start()
    try:
        async with asyncio.timeout(20):
            return [(await consumer.getone()).value for _ in range(count)]
    finally:
        await consumer.stop()


async def test_a_record_survives_the_kill_of_its_broker_and_the_broker_starts_again(own: KafkaServer) -> None:
    await own.start()
    assert await own.create_topics({"events": 24, "events.dlq": 1}) == ["events", "events.dlq"]
    await produced(own, "events", b"before")
    assert own.pid is not None
    os.kill(own.pid, signal.SIGKILL)
    assert await own.died() == -signal.SIGKILL
    with pytest.raises(KafkaError, match="does not answer"):
        await own.create_topics({"later": 1})
    await own.start()
    assert await own.create_topics({"events": 24}) == []
    await produced(own, "events", b"after")
    assert await consumed(own, "events", 2) == [b"before", b"after"]
    await own.stop()
    assert processes.with_argument(own.mark) == []


async def test_a_topic_that_nobody_made_is_refused_not_made(kafka: KafkaServer) -> None:
    mistyped = f"evnets-{uuid4().hex}"
    with pytest.raises((UnknownTopicOrPartitionError, KafkaTimeoutError)):
        await produced(kafka, mistyped, b"lost")
    assert await kafka.create_topics({mistyped: 1}) == [mistyped]
    with pytest.raises(KafkaError, match="InvalidPartitionsError"):
        await kafka.create_topics({f"none-{uuid4().hex}": 0})


async def test_a_broker_does_not_outlive_its_killed_parent(own: KafkaServer) -> None:
    script = (
        "import asyncio, os, signal, sys; from pathlib import Path; from ops.kafka import KafkaServer\n"
        "asyncio.run(KafkaServer(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])).start())\n"
        "os.kill(os.getpid(), signal.SIGKILL)"
    )
    arguments = (str(own.data_dir), str(own.port), str(own.peer_port))
    parent = await asyncio.create_subprocess_exec(sys.executable, "-c", script, *arguments)
    assert await parent.wait() == -signal.SIGKILL

    async def gone() -> bool:
        return not processes.with_argument(own.mark)

    assert await eventually(gone, within_s=10)
    await own.start()
    assert await own.create_topics({"events": 1}) == ["events"]


async def test_a_busy_port_is_named(own: KafkaServer) -> None:
    with (
        socket.create_server(("127.0.0.1", own.port)),
        pytest.raises(PortBusy, match=f"Port {own.port}"),
    ):
        await own.start()
    assert processes.with_argument(own.mark) == []
