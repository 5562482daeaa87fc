"""The calls of the Kafka client end when they have to, whatever the library does when it is cancelled."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from types import SimpleNamespace
from typing import Any

import pytest
from aiokafka import TopicPartition

from chassis import kafka
from chassis.kafka import Cluster, Consumer, Entry, KafkaUnavailable, Producer
from tests.channels import Nobody

WITHIN_S = 20.0
Call = Callable[[Any], Coroutine[Any, Any, Any]]


class Deaf:
    """Whatever it is asked to do it never does, and does not hear that it is cancelled; until released."""

    def __init__(self) -> None:
        self.asked = asyncio.Event()
        self.released = asyncio.Event()
        self.is_closed = False
        self._client = self
        self._coordinator = None
        self._fetcher: Any = None

    def subscribe(self, *_: Any, **__: Any) -> None:
        """At once."""

    async def hang(self, *_: Any, **__: Any) -> None:
        self.asked.set()
        while not self.released.is_set():
            try:
                await self.released.wait()
            except asyncio.CancelledError:
                continue

    getmany = commit = end_offsets = partitions_for = start = stop = hang

    def assignment(self) -> set[Any]:
        return {TopicPartition("t", 0)}

    async def close(self) -> None:
        self.is_closed = True


class Quitter(Deaf):
    """Whatever it is asked to do ends as if somebody had cancelled it."""

    async def give_up(self, *_: Any, **__: Any) -> None:
        raise asyncio.CancelledError

    getmany = commit = end_offsets = partitions_for = stop = give_up


CALLS: dict[str, Call] = {
    "take": lambda client: Consumer(client, "t").take(wait_s=0.0, messages_max=1),
    "commit": lambda client: Consumer(client, "t").commit({0: 1}),
    "lags": lambda client: Consumer(client, "t").lags(),
    "send": lambda client: Producer(client).send("t", 0, [Entry(None, b"", [], 1)]),
}


@pytest.fixture(autouse=True)
def _hasty(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kafka, "LET_GO_S_MAX", 0.01)
    monkeypatch.setattr(kafka, "STOP_S_MAX", 0.05)


@pytest.mark.parametrize("call", CALLS.values(), ids=CALLS)
async def test_who_is_cancelled_during_a_call_that_does_not_hear_it_ends(call: Call):
    client = Deaf()
    calling = asyncio.create_task(call(client))
    await client.asked.wait()
    calling.cancel()
    await asyncio.wait((calling,), timeout=WITHIN_S)
    ended = calling.cancelled()
    client.released.set()
    await asyncio.wait((calling,))
    assert ended


@pytest.mark.parametrize("call", CALLS.values(), ids=CALLS)
async def test_a_call_that_ends_as_cancelled_although_nobody_asked_is_an_error(call: Call):
    with pytest.raises(KafkaUnavailable):
        await call(Quitter())


@pytest.mark.parametrize("call", CALLS.values(), ids=CALLS)
async def test_a_call_that_takes_too_long_ends_though_it_does_not_hear(
    call: Call, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(kafka, "CONNECT_S_MAX", 0.05)
    monkeypatch.setattr(kafka, "REQUEST_TIMEOUT_MS", 50)
    client = Deaf()
    calling = asyncio.create_task(call(client))
    await asyncio.wait((calling,), timeout=WITHIN_S)
    ended = calling.done()
    client.released.set()
    await asyncio.wait((calling,))
    assert ended
    assert isinstance(calling.exception(), KafkaUnavailable)


class Opened(Deaf):
    """As Deaf, but it starts."""

    async def start(self) -> None:
        """At once."""


class Quitting(Quitter):
    """As Quitter, but it starts."""

    async def start(self) -> None:
        """At once."""


@pytest.mark.parametrize("kind", [Opened, Quitting])
async def test_a_consumer_whose_stop_goes_wrong_is_closed_all_the_same(
    kind: type[Deaf], monkeypatch: pytest.MonkeyPatch
):
    client = kind()
    fetching = asyncio.create_task(asyncio.Event().wait())
    client._fetcher = SimpleNamespace(_fetch_task=fetching, _pending_tasks={fetching})
    monkeypatch.setattr(kafka, "AIOKafkaConsumer", lambda **_: client)

    async def use() -> None:
        async with kafka.open_consumer(
            Cluster(addresses="nowhere:1"), "t", group="g", instance="i", rebalanced=Nobody()
        ):
            pass

    using = asyncio.create_task(use())
    await asyncio.wait((using,), timeout=WITHIN_S)
    ended = using.done()
    client.released.set()
    await asyncio.wait((using,))
    assert ended
    assert not using.cancelled()
    assert using.exception() is None
    assert client.is_closed
    assert fetching.cancelled()
