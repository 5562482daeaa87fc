"""Who does not lead a shard, or has none of its partitions, shows nothing that only a leader can know."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any
from uuid import uuid4

import pytest
from prometheus_client import Gauge

from chassis import meters, pg
from chassis.clock import SYSTEM_CLOCK
from chassis.testing import eventually
from history_svc.channel.hub import Hub
from history_svc.channel.leadership import Leadership
from history_svc.events import StreamRange

TERM = 3


@pytest.fixture
def metric() -> Gauge:
    shown = meters.gauge(f"test_{uuid4().hex}_rows", "Rows.", {"shard": None})
    shown.labels("another").set(7)
    return shown


@pytest.fixture
def leadership() -> Leadership:
    shard_log: Any = SimpleNamespace(shard="s1")
    wanted = pg.PgSettings(dsn="postgresql://nobody@127.0.0.1:1/none")
    return Leadership(shard_log, wanted, holder="test", clock=SYSTEM_CLOCK, jitter=lambda: 0.5)


def shown(metric: Gauge) -> dict[str, float]:
    (family,) = metric.collect()
    return {sample.labels["shard"]: sample.value for sample in family.samples}


@contextmanager
def leading(leadership: Leadership, term: int = TERM) -> Iterator[None]:
    with leadership._leading(term):
        yield


async def until_shown(metric: Gauge, shard: str = "s1") -> None:
    async def ask() -> bool:
        return shard in shown(metric)

    await eventually(ask)


async def test_what_the_work_showed_is_gone_when_the_term_is_over_and_its_last_word_too(
    leadership: Leadership, metric: Gauge
) -> None:
    async def work(_term: int) -> None:
        try:
            metric.labels("s1").set(1)
            await asyncio.Event().wait()
        finally:
            metric.labels("s1").set(2)

    with leading(leadership):
        doing = asyncio.create_task(leadership.while_leading(work, shows=[metric]))
        await until_shown(metric)
    await doing
    assert shown(metric) == {"another": 7}


async def test_work_that_fails_still_knows_how_the_shard_stands_until_the_term_is_over(
    leadership: Leadership, metric: Gauge
) -> None:
    async def work(_term: int) -> None:
        metric.labels("s1").set(1)
        raise ConnectionError

    with leading(leadership), pytest.raises(ConnectionError):
        await leadership.while_leading(work, shows=[metric])
    assert shown(metric) == {"another": 7, "s1": 1}, "the work is done again"
    waits = asyncio.create_task(leadership.while_leading(work, shows=[metric]))

    async def is_gone() -> bool:
        return shown(metric) == {"another": 7}

    await eventually(is_gone)
    waits.cancel()
    await asyncio.gather(waits, return_exceptions=True)


async def test_a_shard_of_the_topic_is_ours_while_one_of_its_partitions_is_assigned() -> None:
    async def nothing() -> None: ...

    def no_consumer(rebalanced: Any) -> Any:
        raise AssertionError("nobody runs it")

    async def starts() -> Any:
        return SimpleNamespace(streams=StreamRange(16, 16))

    def is_ours() -> bool:
        return source.is_ours

    hub = Hub(nothing, no_consumer, bytes_max=1 << 20, clock=SYSTEM_CLOCK, jitter=lambda: 0.5)
    shard_log: Any = SimpleNamespace(shard="s2", starts=starts)
    source = hub.source(shard_log)
    assert not is_ours(), "nothing is known of it"
    hub.on_assigned([3, 16])
    hub._consumer = SimpleNamespace()  # type: ignore[assignment]
    await source.take(bytes_max=1, wait_s=0.0)
    assert is_ours()
    hub.on_revoked([16])
    assert not is_ours(), "3 is another shard's"
    hub.on_assigned([31])
    assert is_ours()
