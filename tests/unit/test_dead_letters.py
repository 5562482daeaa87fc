"""Dead letters share a producer: who waits for long throws away nothing that another is using."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any

import pytest
from structlog.testing import capture_logs

from chassis.kafka import Cluster, Entry, KafkaUnavailable
from chassis.testing import eventually
from history_svc.channel.kafka import KafkaDeadLetters, Topics
from history_svc.channel.outbox import LoggedDeadLetters
from history_svc.errors import EventsUnavailable
from tests.streams import MemoryLog

TOPICS = Topics(Cluster(addresses="nowhere:1"), "events", 8, 1)
WITHIN_S = 10.0


class Letterbox:
    """Producers that acknowledge nothing before they are told to, unless they are open at once."""

    def __init__(self, *, is_open: bool = True) -> None:
        self.opened = 0
        self.closed = 0
        self.entries: list[Entry] = []
        self.acknowledges = asyncio.Event()
        if is_open:
            self.acknowledges.set()

    @asynccontextmanager
    async def producer(self) -> AsyncIterator[Any]:
        self.opened += 1
        yield self
        self.closed += 1

    async def send(self, topic: str, partition: int, entries: Sequence[Entry]) -> asyncio.Future[Any]:
        assert self.opened > self.closed, "it was thrown away"
        self.entries += entries
        return asyncio.ensure_future(self.acknowledges.wait())

    async def is_asked(self) -> bool:
        return bool(self.entries)


class Failing(Letterbox):
    """Says that it failed where another acknowledges."""

    async def send(self, topic: str, partition: int, entries: Sequence[Entry]) -> asyncio.Future[Any]:
        await (await super().send(topic, partition, entries))
        raise KafkaUnavailable("gone")


def a_record() -> Any:
    log = MemoryLog()
    return log.put(log.event(5))


async def test_who_does_not_get_a_turn_leaves_the_producer_to_whose_turn_it_is():
    box = Letterbox(is_open=False)
    letters = KafkaDeadLetters(TOPICS, box.producer, put_s=60.0)
    slow = asyncio.create_task(letters.put(a_record(), "slow"))
    await eventually(box.is_asked, within_s=WITHIN_S)
    letters._put_s = 0.01
    with pytest.raises(EventsUnavailable):
        await letters.put(a_record(), "hasty")
    assert (box.opened, box.closed) == (1, 0)
    box.acknowledges.set()
    await slow
    await letters.put(a_record(), "after them")
    assert (box.opened, box.closed, len(box.entries)) == (1, 0, 2)
    await letters.close()
    assert box.closed == 1


async def test_a_letter_that_is_not_acknowledged_costs_the_producer_and_the_next_has_all_its_time():
    box = Letterbox(is_open=False)
    letters = KafkaDeadLetters(TOPICS, box.producer, put_s=0.05)
    with pytest.raises(EventsUnavailable):
        await letters.put(a_record(), "in vain")
    assert (box.opened, box.closed) == (1, 1)
    box.acknowledges.set()
    await asyncio.gather(*(letters.put(a_record(), "again") for _ in range(4)))
    assert (box.opened, box.closed, len(box.entries)) == (2, 1, 5)
    await letters.close()


async def test_who_waits_for_a_turn_behind_one_that_fails_gets_a_producer_of_its_own():
    failing, box = Failing(is_open=False), Letterbox()
    boxes = iter((failing, box))
    letters = KafkaDeadLetters(TOPICS, lambda: next(boxes).producer(), put_s=60.0)
    first = asyncio.create_task(letters.put(a_record(), "first"))
    second = asyncio.create_task(letters.put(a_record(), "second"))
    await eventually(failing.is_asked, within_s=WITHIN_S)
    failing.acknowledges.set()
    with pytest.raises(EventsUnavailable):
        await first
    await second
    assert (failing.closed, box.opened, box.closed, len(box.entries)) == (1, 1, 0, 1)
    await letters.close()


async def test_the_log_says_of_what_kind_a_refusal_is_and_does_not_quote_the_document():
    reason = "document_parsing_exception: failed to parse field [labels], preview 'alice@example.org'"
    box = Letterbox()
    kafka = KafkaDeadLetters(TOPICS, box.producer, put_s=60.0)
    for letters in (kafka, LoggedDeadLetters()):
        with capture_logs() as lines:
            await letters.put(a_record(), reason)
        (line,) = [each for each in lines if each["event"] == "dead_event"]
        assert line["reason"] == "document_parsing_exception"
        assert "alice" not in str(line)
    await kafka.close()
    assert b"alice" in dict(box.entries[0].headers)["x-reason"], "the letter itself says all of it"
