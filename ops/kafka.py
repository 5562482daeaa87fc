"""One real Kafka broker of the local stack, the tests and the benchmarks: KRaft, a single node.

Its own controller, so nothing else is needed; topics are made by `create_topics` and never by a client that
mistyped a name. What it owns, and how it lives and dies, says ops.owned.

    server = KafkaServer(data_directory(state_dir, "kafka", kind="kafka"), port=9092, peer_port=9093)
    await server.start()
    await server.create_topics({"ordermesh.order-events.v1": 24})
    server.address        # 127.0.0.1:9092
    await server.stop()
"""

import asyncio
import logging
from collections.abc import Callable, Coroutine, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, Final

from aiokafka.admin import NewTopic
from aiokafka.errors import TopicAlreadyExistsError, for_code

from chassis import kafka
from ops.jvm import JavaServer
from ops.owned import HOST, ServerError

logging.getLogger("aiokafka").addHandler(logging.NullHandler())  # What fails here is raised, and said once.

_CLUSTER_ID: Final = "b3JkZXJtZXNoLWxvY2FsMQ"  # 16 bytes in base64url; one node, so it distinguishes nothing.
_FORMAT_TIMEOUT_S: Final = 60.0
_REQUEST_TIMEOUT_S: Final = 15.0
_CONNECT_TIMEOUT_S: Final = 1.0

_PROPERTIES: Final = """\
process.roles=broker,controller
node.id=1
controller.quorum.voters=1@{host}:{peer_port}
controller.listener.names=CONTROLLER
listeners=PLAINTEXT://{host}:{port},CONTROLLER://{host}:{peer_port}
advertised.listeners=PLAINTEXT://{host}:{port}
inter.broker.listener.name=PLAINTEXT
log.dirs={data}
auto.create.topics.enable=false
default.replication.factor=1
offsets.topic.replication.factor=1
offsets.topic.num.partitions=4
transaction.state.log.replication.factor=1
transaction.state.log.min.isr=1
transaction.state.log.num.partitions=4
share.coordinator.state.topic.replication.factor=1
share.coordinator.state.topic.min.isr=1
group.initial.rebalance.delay.ms=0
# A broker that was killed may register again only when its last session has ended.
broker.session.timeout.ms=2000
broker.heartbeat.interval.ms=500
# Threads and buffers of a laptop: the cleaner alone would take 128 MB of the heap.
num.network.threads=2
num.io.threads=4
background.threads=2
log.cleaner.dedupe.buffer.size=4194304
log.cleaner.io.buffer.size=131072
"""
_LOGGING: Final = """\
status = error
appender.console.type = Console
appender.console.name = console
appender.console.layout.type = PatternLayout
appender.console.layout.pattern = [%d] %p %m (%c{1})%n
rootLogger.level = info
rootLogger.appenderRef.console.ref = console
# Prints every setting several times at each start.
logger.config.name = org.apache.kafka.common.config
logger.config.level = warn
logger.configs.name = org.apache.kafka.common.config.AbstractConfig
logger.configs.level = warn
logger.kafkaconfig.name = kafka.server.KafkaConfig
logger.kafkaconfig.level = warn
"""


class KafkaError(ServerError):
    """The broker was asked for something that it did not do."""


class KafkaServer(JavaServer):
    """A Kafka broker that is its own controller.

    peer_port: the controller's.
    """

    title = "Kafka"
    bundle = "kafka"

    @property
    def address(self) -> str:
        """What clients call the bootstrap server."""
        return f"{HOST}:{self.port}"

    async def create_topics(self, partitions: Mapping[str, int]) -> list[str]:
        """Make the topics that do not exist; return their names. One that exists stays as it is.

        partitions: how many each topic gets.
        Raises: KafkaError when the broker refuses one.
        """
        wanted = [NewTopic(name, count, replication_factor=1) for name, count in partitions.items()]
        answer = await _asked(self.address, lambda client: client.create_topics(wanted))
        made = []
        for name, code, *_ in answer.topic_errors:
            if code == TopicAlreadyExistsError.errno:
                continue
            if code:
                raise KafkaError(f"Kafka refuses the topic {name}: {for_code(code).__name__}.")
            made.append(name)
        return made

    def _configure(self, home: Path) -> None:
        text = _PROPERTIES.format(
            host=HOST, port=self.port, peer_port=self.peer_port, data=self.data_dir / "data"
        )
        self._write_config("server.properties", text)
        self._write_config("log4j2.properties", _LOGGING)

    async def _prepare(self, home: Path) -> None:
        if (self.data_dir / "data" / "meta.properties").exists():
            return
        tool = self._tool(home, "kafka.tools.StorageTool")
        command: list[str | Path] = [
            *tool,
            "format",
            "--cluster-id",
            _CLUSTER_ID,
            "--config",
            self.config_dir / "server.properties",
        ]
        await asyncio.to_thread(self._run, command, timeout_s=_FORMAT_TIMEOUT_S)

    def _command(self, home: Path) -> list[str | Path]:
        return [*self._tool(home, "kafka.Kafka"), self.config_dir / "server.properties"]

    def _tool(self, home: Path, main: str) -> list[str | Path]:
        return [
            self._java(),
            f"-Xmx{self.heap_mb}m",
            *("-XX:+UseSerialGC", "-XX:+ExitOnOutOfMemoryError"),
            *self._compiler(),
            f"-Dlog4j2.configurationFile={self.config_dir / 'log4j2.properties'}",
            f"-Djava.io.tmpdir={self.data_dir / 'tmp'}",
            self.mark,
            *("-cp", f"{home}/*", main),
        ]

    async def _answers(self) -> bool:
        # A broker that listens waits with its first answers until it may give them.
        with suppress(OSError, TimeoutError, KafkaError):
            async with asyncio.timeout(_CONNECT_TIMEOUT_S):
                _, writer = await asyncio.open_connection(HOST, self.port)
            writer.close()
            await topics(self.address)
            return True
        return False


async def topics(address: str, *, within_s: float = _REQUEST_TIMEOUT_S) -> dict[str, int]:
    """The topics of a broker, and how many partitions of each have a leader.

    Raises: KafkaError when it does not answer.
    """
    described = await _asked(address, lambda client: client.describe_topics(), within_s=within_s)
    return {each["topic"]: sum(part["leader"] >= 0 for part in each["partitions"]) for each in described}


async def _asked(
    address: str,
    question: Callable[[Any], Coroutine[Any, Any, Any]],
    *,
    within_s: float = _REQUEST_TIMEOUT_S,
) -> Any:
    try:
        return await kafka.administer(kafka.Cluster(addresses=address), question, within_s=within_s)
    except kafka.KafkaUnavailable as failed:
        raise KafkaError(f"Kafka at {address} does not answer: {failed}.") from failed
