"""Kafka over aiokafka: producers and consumers whose every wait ends, with one kind of error.

A producer or a consumer that failed is thrown away for a new one. aiokafka's idempotent producer does not get
over some refusals (a sequence or a producer id that the broker does not know), and tries for ever while
nobody answers; its consumer may stand still after a broker came back, and does not say so. The only module
that imports aiokafka, with what it starts being ended here even when no broker answers.
"""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Sequence
from contextlib import asynccontextmanager, contextmanager, suppress
from functools import partial
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, Protocol, Self, TypeVar

import structlog
from aiokafka import AIOKafkaConsumer, AIOKafkaProducer, ConsumerRebalanceListener, TopicPartition
from aiokafka.admin import AIOKafkaAdminClient, NewPartitions, NewTopic
from aiokafka.coordinator.assignors.sticky.sticky_assignor import StickyPartitionAssignor
from aiokafka.errors import (
    ConsumerStoppedError,
    IllegalOperation,
    KafkaError,
    TopicAlreadyExistsError,
    for_code,
)
from pydantic import BaseModel, ConfigDict, Field, SecretStr, model_validator

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Collection, Coroutine, Iterator, Mapping

log = structlog.get_logger("kafka")
REQUEST_TIMEOUT_MS = 10_000
CONNECT_S_MAX = 20.0
"""Finding the brokers, and for a producer its id."""
JOIN_S_MAX = 75.0
"""A rebalance may wait for every other member, `REBALANCE_TIMEOUT_MS` at most."""
STOP_S_MAX = 5.0
LET_GO_S_MAX = 1.0
"""For a call that was given up to end."""
BATCH_BYTES = 256 * 1024
LINGER_MS = 5
SESSION_TIMEOUT_MS = 30_000
REBALANCE_TIMEOUT_MS = 60_000
"""Said on purpose: without it the members have only the session's time to come."""
HEARTBEAT_MS = 3_000
FETCH_BYTES_MAX = 1024 * 1024

T = TypeVar("T")
Headers = Sequence[tuple[str, bytes]]
Mechanism = Literal["PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512"]


class Cluster(BaseModel):
    """Brokers, how to trust them, and who we are to them.

    Certificates are read each time a client is opened, so renewed ones need no restart of the process.
    """

    model_config = ConfigDict(frozen=True, hide_input_in_errors=True)

    addresses: str = Field(description="`host:port` of brokers, several with commas between them.")
    tls: bool = Field(False, description="Whether brokers are spoken to by TLS only.")
    ca_file: Path | None = Field(None, description="Whom to trust with TLS, when not the system's list.")
    cert_file: Path | None = Field(None, description="Our certificate, for brokers that ask for one.")
    key_file: Path | None = Field(None, description="Its key.")
    username: str = Field("", description="Whom we log in as; empty: nobody.")
    password: SecretStr = Field(SecretStr(""), description="That user's password.")
    mechanism: Mechanism = Field("SCRAM-SHA-512", description="How the password is proved.")

    @model_validator(mode="after")
    def _is_whole(self) -> Self:
        if (self.cert_file is None) != (self.key_file is None):
            raise ValueError("a certificate and its key belong together")
        if (self.ca_file or self.cert_file) and not self.tls:
            raise ValueError("certificates are for TLS only")
        if bool(self.username) != bool(self.password.get_secret_value()):
            raise ValueError("a user name and a password belong together")
        if self.username and self.mechanism == "PLAIN" and not self.tls:
            raise ValueError("PLAIN shows the password to everybody on the way, unless it goes by TLS")
        return self

    def options(self) -> dict[str, Any]:
        """What every client is made with.

        Raises: OSError when a file cannot be read or is no certificate.
        """
        protocol = f"{'SASL_' if self.username else ''}{'SSL' if self.tls else 'PLAINTEXT'}"
        options: dict[str, Any] = {"bootstrap_servers": self.addresses, "security_protocol": protocol}
        if self.tls:
            context = ssl.create_default_context(cafile=self.ca_file)
            if self.cert_file is not None:
                context.load_cert_chain(self.cert_file, self.key_file)
            options["ssl_context"] = context
        if self.username:
            options["sasl_mechanism"] = self.mechanism
            options["sasl_plain_username"] = self.username
            options["sasl_plain_password"] = self.password.get_secret_value()
        return options


class KafkaUnavailable(Exception):
    """No broker did what was asked in time; what was under way may have happened."""


class Entry(NamedTuple):
    """A message to publish."""

    key: bytes | None
    value: bytes
    headers: Headers
    at_ms: int


class Message(Protocol):
    """A message that was published."""

    offset: int
    key: bytes | None
    value: bytes | None
    headers: Headers


class Rebalanced(Protocol):
    """Who wants to know which partitions it has; neither call may wait or raise."""

    def on_revoked(self, partitions: Collection[int]) -> None:
        """These are somebody else's from now on, or come again from where they were committed."""
        ...

    def on_assigned(self, partitions: Collection[int]) -> None:
        """These come from now on, from where they were committed."""
        ...


@contextmanager
def _one_error() -> Iterator[None]:
    try:
        yield
    except (KafkaError, IllegalOperation, ConsumerStoppedError, OSError, TimeoutError) as failed:
        raise KafkaUnavailable(f"{type(failed).__name__}: {failed}") from failed


_at_work: set[asyncio.Future[Any]] = set()
"""The loop alone would not keep them; what was given up ends in it by itself."""


def _start(work: Coroutine[Any, Any, T]) -> asyncio.Task[T]:
    task = asyncio.create_task(work, name=f"kafka.{getattr(work, '__qualname__', 'call')}")
    _at_work.add(task)
    task.add_done_callback(_heard)
    return task


def _heard(ended: asyncio.Future[Any]) -> None:
    _at_work.discard(ended)
    if not ended.cancelled():
        ended.exception()


async def _within(seconds: float, work: Coroutine[Any, Any, T]) -> T:
    """Have aiokafka do something, for so long at most, without being at the mercy of what it does when it is
    cancelled.

    If cancelled here, or when the time is up: it was asked to end, and has ended or is waited for no longer.
    Raises: TimeoutError; KafkaUnavailable when it ended as if it had been cancelled; what the work raises.
    """
    task = _start(work)
    try:
        await asyncio.wait((task,), timeout=seconds)
        in_time = task.done()
    finally:
        if task.cancel():
            await asyncio.wait((task,), timeout=LET_GO_S_MAX)
    if not in_time:
        raise TimeoutError(f"not done in {seconds:g} s")
    if task.cancelled():
        raise KafkaUnavailable("the client gave up by itself")
    return task.result()


async def administer(
    cluster: Cluster, work: Callable[[Any], Coroutine[Any, Any, T]], *, within_s: float = CONNECT_S_MAX
) -> T:
    """Have an administrator's client, which is aiokafka's and connected, do something for so long at most.

    Raises: KafkaUnavailable.
    """
    with _one_error():
        client = AIOKafkaAdminClient(**cluster.options(), request_timeout_ms=REQUEST_TIMEOUT_MS)

        async def connected() -> T:
            await client.start()
            return await work(client)

        try:
            return await _within(within_s, connected())
        finally:
            await _end(client, client.close, _no_tasks)


async def ensure_topic(cluster: Cluster, topic: str, *, partitions: int, replicas: int) -> None:
    """Make a topic, or give it more partitions when it has fewer. Idempotent.

    Raises: KafkaUnavailable.
    """
    await administer(cluster, partial(_ensure, NewTopic(topic, partitions, replicas)))


async def _ensure(topic: NewTopic, client: Any) -> None:
    found = await client.describe_topics([topic.name])
    has = len(found[0]["partitions"]) if found and not found[0]["error_code"] else 0
    if has == 0:
        answer = await client.create_topics([topic])
        _refuse([code for _, code, *_ in answer.topic_errors])
    elif has < topic.num_partitions:
        await client.create_partitions({topic.name: NewPartitions(topic.num_partitions)})


def _refuse(codes: Sequence[int]) -> None:
    for code in codes:
        if code and code != TopicAlreadyExistsError.errno:
            refused: KafkaError = for_code(code)()
            raise refused


class Producer:
    """Publishes batches to partitions that the caller names; idempotent, acknowledged by all replicas."""

    def __init__(self, producer: Any) -> None:
        self._producer = producer

    async def send(self, topic: str, partition: int, entries: Sequence[Entry]) -> asyncio.Future[None]:
        """Hand over messages of one partition, in order. For one task per partition.

        What is returned ends when all of them are stored by every replica that has to; it may never end, so
        whoever waits for it has a deadline. If cancelled here: any of the messages may come to be stored.
        Raises: KafkaUnavailable, here or by what is returned.
        """
        with _one_error():
            stored = await _within(CONNECT_S_MAX, self._send(topic, partition, entries))
        return asyncio.create_task(_all_stored(stored), name=f"stored.{topic}.{partition}")

    async def _send(self, topic: str, partition: int, entries: Sequence[Entry]) -> list[Any]:
        if partition not in (await self._producer.partitions_for(topic) or ()):
            await self._producer.client.force_metadata_update()
            raise KafkaUnavailable(f"{topic} has no partition {partition}")
        stored = []
        batch = self._producer.create_batch()
        for entry in entries:
            if not _append(batch, entry):
                stored.append(await self._hand_over(batch, topic, partition))
                batch = self._producer.create_batch()
                _append(batch, entry)
        stored.append(await self._hand_over(batch, topic, partition))
        return stored

    async def _hand_over(self, batch: Any, topic: str, partition: int) -> Any:
        batch.close()
        return await self._producer.send_batch(batch, topic, partition=partition)


def _append(batch: Any, entry: Entry) -> bool:
    """Add to a batch unless it is full; one that is empty takes a message of any size."""
    return (
        batch.append(timestamp=entry.at_ms, key=entry.key, value=entry.value, headers=list(entry.headers))
        is not None
    )


async def _all_stored(stored: Sequence[Any]) -> None:
    here = asyncio.current_task()
    with _one_error():
        try:
            await asyncio.gather(*stored)
        except asyncio.CancelledError:
            if here is None or here.cancelling():
                raise
            raise KafkaUnavailable("the producer was thrown away") from None


@asynccontextmanager
async def open_producer(cluster: Cluster, *, name: str) -> AsyncIterator[Producer]:
    """A producer that lives as long as the context; what it has not published when that ends is given up.

    Raises: KafkaUnavailable.
    """
    with _one_error():
        producer = AIOKafkaProducer(
            **cluster.options(),
            client_id=name,
            enable_idempotence=True,
            acks="all",
            max_batch_size=BATCH_BYTES,
            linger_ms=LINGER_MS,
            request_timeout_ms=REQUEST_TIMEOUT_MS,
        )
    try:
        with _one_error():
            await _within(CONNECT_S_MAX, producer.start())
        yield Producer(producer)
    finally:
        await _end(producer.client, producer.stop, partial(_sender_tasks, producer))


class Consumer:
    """A member of a group that reads one topic."""

    def __init__(self, consumer: Any, topic: str) -> None:
        self._consumer = consumer
        self._topic = topic

    def assignment(self) -> frozenset[int]:
        """The partitions that are ours now."""
        return frozenset(at.partition for at in self._consumer.assignment())

    async def take(self, *, wait_s: float, messages_max: int) -> dict[int, list[Message]]:
        """The next messages by partition; none when none came in time.

        Raises: KafkaUnavailable.
        """
        with _one_error():
            taking = self._consumer.getmany(timeout_ms=int(wait_s * 1000), max_records=messages_max)
            found = await _within(wait_s + CONNECT_S_MAX, taking)
        return {at.partition: messages for at, messages in found.items()}

    def pause(self, partition: int) -> None:
        """Take nothing of a partition for a while; nothing when it is not ours."""
        with suppress(KafkaError):
            self._consumer.pause(TopicPartition(self._topic, partition))

    def resume(self, partition: int) -> None:
        """Take from a partition again; nothing when it is not ours."""
        with suppress(KafkaError):
            self._consumer.resume(TopicPartition(self._topic, partition))

    def seek(self, partition: int, offset: int) -> None:
        """Go on at an offset; nothing when the partition is not ours."""
        with suppress(KafkaError):
            self._consumer.seek(TopicPartition(self._topic, partition), offset)

    async def commit(self, offsets: Mapping[int, int]) -> None:
        """Note where a successor goes on.

        Raises: KafkaUnavailable, also when a partition is not ours any more.
        """
        with _one_error():
            wanted = {TopicPartition(self._topic, partition): at for partition, at in offsets.items()}
            await _within(REQUEST_TIMEOUT_MS / 1000, self._consumer.commit(wanted))

    async def lags(self) -> dict[int, tuple[int, int]]:
        """Of each partition that is ours: the offset that is taken next, and the one that is published next.

        Raises: KafkaUnavailable.
        """
        ours = list(self._consumer.assignment())
        if not ours:
            return {}
        with _one_error():
            return await _within(REQUEST_TIMEOUT_MS / 1000, self._lags(ours))

    async def _lags(self, ours: Sequence[TopicPartition]) -> dict[int, tuple[int, int]]:
        ends = await self._consumer.end_offsets(ours)
        return {at.partition: (await self._consumer.position(at), ends[at]) for at in ours}


@asynccontextmanager
async def open_consumer(
    cluster: Cluster, topic: str, *, group: str, instance: str, rebalanced: Rebalanced
) -> AsyncIterator[Consumer]:
    """A member of a group, the same one after a restart, as long as the context lives; it starts where the
    group committed, else at the beginning of the topic, and commits nothing by itself.

    Raises: KafkaUnavailable.
    """
    with _one_error():
        consumer = AIOKafkaConsumer(
            **cluster.options(),
            client_id=instance,
            group_id=group,
            group_instance_id=instance,
            enable_auto_commit=False,
            auto_offset_reset="earliest",
            partition_assignment_strategy=(StickyPartitionAssignor,),
            session_timeout_ms=SESSION_TIMEOUT_MS,
            rebalance_timeout_ms=REBALANCE_TIMEOUT_MS,
            heartbeat_interval_ms=HEARTBEAT_MS,
            max_partition_fetch_bytes=FETCH_BYTES_MAX,
            request_timeout_ms=REQUEST_TIMEOUT_MS,
        )
    try:
        with _one_error():
            consumer.subscribe([topic], listener=_Listener(rebalanced))
            await _within(JOIN_S_MAX, consumer.start())
        yield Consumer(consumer, topic)
    finally:
        await _end(consumer._client, consumer.stop, partial(_consumer_tasks, consumer))  # noqa: SLF001


class _Listener(ConsumerRebalanceListener):  # type: ignore[misc]
    """What aiokafka calls; it swallows what its listeners raise, and waits for them with its locks held."""

    def __init__(self, rebalanced: Rebalanced) -> None:
        self._rebalanced = rebalanced

    def on_partitions_revoked(self, revoked: Collection[Any]) -> None:
        self._rebalanced.on_revoked([at.partition for at in revoked])

    def on_partitions_assigned(self, assigned: Collection[Any]) -> None:
        self._rebalanced.on_assigned([at.partition for at in assigned])


def _no_tasks() -> list[Any]:
    return []


def _sender_tasks(producer: Any) -> list[Any]:
    """What goes on for ever when nobody answers."""
    unsent = producer._message_accumulator  # noqa: SLF001 - nothing public gives it up
    for batch in (*chain.from_iterable(unsent._batches.values()), *unsent._pending_batches):  # noqa: SLF001
        batch.future.cancel()  # A task that `stop` left behind waits for it.
    return [producer._sender.sender_task]  # noqa: SLF001 - as above


def _consumer_tasks(consumer: Any) -> list[Any]:
    """What goes on for ever when nobody answers."""
    names = {
        "_coordinator": ("_coordination_task", "_heartbeat_task", "_commit_refresh_task"),
        "_fetcher": ("_fetch_task",),
    }
    found = [
        getattr(getattr(consumer, part), name, None)
        for part, tasks in names.items()
        if getattr(consumer, part) is not None
        for name in tasks
    ]
    fetching = () if consumer._fetcher is None else consumer._fetcher._pending_tasks  # noqa: SLF001
    return [*found, *fetching]


async def _end(
    client: Any, stop: Callable[[], Coroutine[Any, Any, None]], tasks: Callable[[], list[Any]]
) -> None:
    """Stop politely, then firmly: `stop` waits for answers, which a frozen broker never gives.

    client: what has the connections. tasks: what `stop` would have ended.
    If cancelled here: it goes on by itself, no longer than it would have taken.
    """
    ending = _start(_ended(client, stop, tasks))
    await asyncio.wait((ending,))
    if not ending.cancelled():
        ending.result()


async def _ended(
    client: Any, stop: Callable[[], Coroutine[Any, Any, None]], tasks: Callable[[], list[Any]]
) -> None:
    try:
        await _within(STOP_S_MAX, stop())
    except (KafkaUnavailable, KafkaError, OSError, TimeoutError) as failed:
        log.info("not_stopped_politely", client=stop.__qualname__, error=type(failed).__name__)
    else:
        return
    left = [task for task in tasks() if task is not None and not task.done()]
    for task in left:
        task.cancel()
    with suppress(KafkaUnavailable, KafkaError, OSError, TimeoutError):
        await _within(STOP_S_MAX, client.close())
    if left:
        await asyncio.wait(left, timeout=STOP_S_MAX)
