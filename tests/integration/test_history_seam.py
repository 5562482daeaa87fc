"""A page is only ever made of the index that its shards meant, also while it is lost and made again."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from chassis import es
from chassis.ids import user_bucket
from chassis.placement import Held
from history_svc.errors import ReadModelUnavailable
from history_svc.page import NEWEST, OLDEST, Filter, Window
from history_svc.reader import Reader, Served, ServedBy, Wish
from history_svc.readmodel.elastic import ElasticReadModel, Layout
from history_svc.search import Searcher
from history_svc.settings import HistorySettings
from history_svc.store import Shards
from ops.elasticsearch import ElasticsearchServer
from tests.databases import Database
from tests.projections import TWO_DAYS, Projection
from tests.shards import opened

HERE = {"s1": (Held(user_bucket("alice"), 1),)}
READ_S = 10.0
ORDERS = 4


class Interrupted(es.Elastic):
    """A cluster to which something happens just before its next search, or just after it."""

    before: Callable[[], Awaitable[Any]] | None = None
    after: Callable[[], Awaitable[Any]] | None = None

    async def call(self, method: str, path: str, **how: Any) -> dict[str, Any]:
        is_search = path.endswith("/_search")
        if is_search and self.before is not None:
            happens, self.before = self.before, None
            await happens()
        answer = await super().call(method, path, **how)
        if is_search and self.after is not None:
            happens, self.after = self.after, None
            await happens()
        return answer


@dataclass
class History:
    """Some old orders in Elasticsearch, and who reads them."""

    elastic: Interrupted
    model: ElasticReadModel
    reader: Reader
    at: Any
    index: str

    async def page(self, shown: Filter = Filter()) -> Served:  # noqa: B008 - frozen
        wish = Wish(Window("alice", NEWEST, OLDEST, shown), 20)
        return await self.reader.read(HERE, wish, now=self.at, timeout_s=READ_S)

    async def make_again(self) -> None:
        """Lose the index, and make another one in its place."""
        await self.model.drop(self.index)
        await self.model.create(self.index)


@asynccontextmanager
async def interrupted(url: str) -> AsyncIterator[Interrupted]:
    async with es.open_elastic(es.EsSettings(addresses=(url,))) as elastic:
        yield Interrupted(elastic._client)


@pytest.fixture
async def history(
    shard_database: Callable[[], Awaitable[Database]], elasticsearch: ElasticsearchServer
) -> AsyncIterator[History]:
    database = await shard_database()
    wanted = HistorySettings(tls_dir=Path(), subject_dir=Path(), profile="local", shards={"s1": database.dsn})
    async with (
        interrupted(elasticsearch.url) as elastic,
        Shards.open(wanted) as shards,
        opened(database) as shard,
    ):
        model = ElasticReadModel(elastic, Layout())
        for _ in range(ORDERS):
            await shard.create()
        await shard.let_pass(timedelta(days=3))
        await Projection(shard, model).catch_up()
        (index,) = [row["index_name"] for row in await shard.rows("SELECT index_name FROM projection_index")]
        at = await shard.value("SELECT ordermesh.clock()")
        yield History(elastic, model, Reader(shards, Searcher(model, READ_S), TWO_DAYS), at, index)
        await model.drop(index)


@pytest.mark.parametrize("when", ["before", "after"])
async def test_an_index_that_is_made_again_while_it_is_searched_makes_no_page_short(
    history: History, when: str
) -> None:
    """Before the search: the one that was meant is not found. After it: it was found, and all that it had."""
    served = await history.page()
    assert (served.served_by, len(served.page.rows)) == (ServedBy.READ_MODEL, ORDERS)

    setattr(history.elastic, when, history.make_again)
    served = await history.page()
    assert getattr(history.elastic, when) is None, "it happened"
    assert len(served.page.rows) == ORDERS
    if when == "before":
        assert served.served_by is ServedBy.SQL_FALLBACK
    served = await history.page()
    assert (served.served_by, len(served.page.rows)) == (ServedBy.SQL_FALLBACK, ORDERS)
    with pytest.raises(ReadModelUnavailable):
        await history.page(Filter(asked=("book",)))


async def test_an_index_that_is_not_there_spoils_no_search_of_the_others(history: History) -> None:
    """Whoever lost a month waits for it alone: the read model is there, and asked again at once."""
    await history.model.drop(history.index)
    assert (await history.page()).served_by is ServedBy.SQL_FALLBACK
    await history.model.create(history.index)
    assert (await history.page()).served_by is ServedBy.SQL_FALLBACK
    nowhere = history.reader._searcher.search(
        [], Window("alice", NEWEST, OLDEST), routing=(), limit=1, timeout_s=READ_S
    )
    assert await nowhere == [], "it does not rest"
