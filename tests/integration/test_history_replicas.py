"""Who answers a page: a replica where it may, the primary wherever the replica cannot say it."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from chassis.ids import user_bucket
from chassis.placement import Held
from chassis.testing import eventually
from history_svc.page import NEWEST, OLDEST, Window
from history_svc.reader import Reader, Served, Wish
from history_svc.search import Searcher
from history_svc.settings import HistorySettings
from history_svc.store import Shards
from tests.readmodels import MemoryReadModel
from tests.replicas import Replicated, replicated
from tests.shards import Shard

pytestmark = pytest.mark.timeout(300)
HERE = {"s1": (Held(user_bucket("alice"), 1),)}
FRESH = Wish(Window("alice", NEWEST, OLDEST), 10, replica=True, lag_max=timedelta(seconds=1))
ANY_AGE = replace(FRESH, lag_max=None)
STRONG = replace(FRESH, replica=False)


@dataclass
class Pair:
    """A shard, its replica, and who reads them."""

    both: Replicated
    reader: Reader

    @property
    def shard(self) -> Shard:
        return self.both.shard

    @property
    def replica(self) -> Any:
        return self.both.session

    async def page(self, wish: Wish) -> Served:
        return await self.reader.read(HERE, wish, now=datetime.now(UTC), timeout_s=10)

    async def sources(self, wish: Wish) -> list[str]:
        return ["replica" if part.lag is not None else "primary" for part in (await self.page(wish)).parts]

    async def caught_up(self) -> None:
        await self.both.caught_up()


@pytest.fixture
async def pair(server_dir: Path, clean_machine: None) -> AsyncIterator[Pair]:
    async with replicated(server_dir) as both:
        wanted = HistorySettings(
            tls_dir=Path(),
            subject_dir=Path(),
            profile="local",
            shards={"s1": both.database.dsn},
            replicas={"s1": both.replica_dsn},
        )
        async with Shards.open(wanted) as shards:
            reader = Reader(shards, Searcher(MemoryReadModel(), 5.0), timedelta(days=2))
            yield Pair(both, reader)


async def test_a_replica_answers_where_it_may_and_never_what_it_does_not_know_yet(pair: Pair) -> None:
    first = await pair.shard.create()
    await pair.caught_up()
    assert await pair.sources(FRESH) == ["replica"]
    assert await pair.sources(STRONG) == ["primary"]

    await pair.replica.execute("SELECT pg_wal_replay_pause()")
    second = await pair.shard.create()
    seen = {"s1": (second.position.log_epoch, second.position.xid)}
    late = await pair.page(ANY_AGE)
    assert [row.key.order_id for row in late.page.rows] == [first.order.order_id]
    assert late.parts[0].lag is not None
    for wish in (replace(ANY_AGE, tokens=seen), replace(FRESH, tokens=seen)):
        served = await pair.page(wish)
        assert served.parts[0].lag is None, "the replica has not seen what the caller has"
        assert {row.key.order_id for row in served.page.rows} == {first.order.order_id, second.order.order_id}

    await pair.replica.execute("SELECT pg_wal_replay_resume()")
    await pair.caught_up()
    assert await pair.sources(replace(ANY_AGE, tokens=seen)) == ["replica"]


async def test_a_replica_that_lags_or_is_in_another_epoch_or_behind_the_fence_is_not_believed(
    pair: Pair,
) -> None:
    await pair.shard.create()
    await pair.caught_up()
    await pair.replica.execute("SELECT pg_wal_replay_pause()")

    async def lags() -> bool:
        return await pair.sources(FRESH) == ["primary"]

    await eventually(lags, within_s=20)
    assert await pair.sources(ANY_AGE) == ["replica"]
    assert await pair.sources(replace(ANY_AGE, tokens={"s1": (2, 1)})) == ["primary"]
    await pair.shard.db.execute("UPDATE bucket_fence SET epoch = 2 WHERE bucket = 701")
    moved = {"s1": (Held(701, 2),)}
    served = await pair.reader.read(moved, ANY_AGE, now=datetime.now(UTC), timeout_s=10)
    assert served.parts[0].lag is None
    await pair.replica.execute("SELECT pg_wal_replay_resume()")
