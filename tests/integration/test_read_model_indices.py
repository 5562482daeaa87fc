"""What the suite of both read models cannot ask: shards that are away, blocks, and the plans of a table."""

from __future__ import annotations

import asyncio
import itertools
import json
import secrets
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import asyncpg
import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer

from chassis import es, pg
from history_svc.document import index_name, month_of, next_month, to_us
from history_svc.errors import IndexNotOurs, ReadModelUnavailable, TooMuchAtOnce
from history_svc.page import NEWEST, OLDEST, Row
from history_svc.readmodel.elastic import ElasticReadModel, Layout
from history_svc.readmodel.port import IndexIdentity, Place, Verdict, Write
from history_svc.readmodel.table import QUERIES, SESSION, TableReadModel
from ops.elasticsearch import ElasticsearchServer
from tests.conftest import DatabaseFactory
from tests.documents import SEPTEMBER, a_document, a_window

NOWHERE = {"index.routing.allocation.require._name": "no such node"}
_generations = itertools.count(secrets.randbelow(1 << 40))


@dataclass
class Cluster:
    """Elasticsearch as the read model has it, and as its operator has."""

    elastic: es.Elastic
    model: ElasticReadModel

    async def index(self, settings: dict[str, Any] | None = None) -> str:
        """A new index, made by our template and with other settings."""
        name = index_name(month_of(SEPTEMBER), next(_generations))
        if settings is None:
            await self.model.create(name)
        else:
            params = {"wait_for_active_shards": "0"}
            await self.elastic.call("PUT", f"/{name}", params=params, body={"settings": settings})
            await self.model.seal([name])
        return name

    async def set(self, name: str, settings: dict[str, Any]) -> None:
        await self.elastic.call("PUT", f"/{name}/_settings", body=settings)


@pytest.fixture
async def cluster(elasticsearch: ElasticsearchServer) -> AsyncIterator[Cluster]:
    async with es.open_elastic(es.EsSettings(addresses=(elasticsearch.url,))) as elastic:
        found = Cluster(elastic, ElasticReadModel(elastic, Layout(shards=1)))
        await found.model.drop(await found.index())  # The template is there.
        yield found


async def found(model: ElasticReadModel, *names: str) -> list[Row]:
    """What is found in indices of these names, whichever they are."""
    identities = await model.identities(names)
    return await model.search(
        [Place(identities[name]) for name in names], a_window(), routing=[], limit=5, timeout_s=5
    )


async def test_a_shard_that_is_away_is_never_taken_for_refreshed_or_searched(cluster: Cluster) -> None:
    there, away = await cluster.index(), await cluster.index(NOWHERE)

    with pytest.raises(ReadModelUnavailable):
        await ElasticReadModel(cluster.elastic, Layout(), refresh_timeout_s=1.0).refresh([there, away])
    with pytest.raises(ReadModelUnavailable):
        await found(cluster.model, there, away)
    with pytest.raises(ReadModelUnavailable):
        await cluster.model.sums(away, [3])
    await cluster.model.refresh([there])
    for name in (there, away):
        await cluster.model.drop(name)


async def test_a_copy_that_is_not_there_yet_hinders_nobody(cluster: Cluster) -> None:
    name = await cluster.index({"index.number_of_replicas": 1})
    await cluster.model.write([Write(name, a_document())], timeout_s=10)

    await cluster.model.refresh([name])
    assert len(await found(cluster.model, name)) == 1
    await cluster.model.drop(name)


async def test_what_cannot_be_written_now_is_for_later_and_hinders_no_other_index(cluster: Cluster) -> None:
    there, away, blocked = await cluster.index(), await cluster.index(NOWHERE), await cluster.index()
    await cluster.set(blocked, {"index.blocks.write": True})
    writes = [Write(name, a_document()) for name in (there, away, blocked, there)]

    outcomes = await cluster.model.write(writes, timeout_s=3)

    verdicts = [outcome.verdict for outcome in outcomes]
    assert verdicts == [Verdict.STORED, Verdict.LATER, Verdict.LATER, Verdict.STORED]
    assert "cluster_block_exception" in outcomes[2].reason
    await cluster.set(blocked, {"index.blocks.write": False})
    (again,) = await cluster.model.write([writes[2]], timeout_s=10)
    assert again.verdict is Verdict.STORED
    for name in (there, away, blocked):
        await cluster.model.drop(name)


async def test_an_index_is_sorted_as_lists_are_and_takes_our_fields_only(cluster: Cluster) -> None:
    name = await cluster.index()
    made = (await cluster.elastic.call("GET", f"/{name}"))[name]
    assert made["settings"]["index"]["sort"] == {
        "field": ["created_us", "order_id"],
        "order": ["desc", "desc"],
    }
    assert made["settings"]["index"]["refresh_interval"] == "-1"
    assert made["mappings"]["dynamic"] == "strict"
    assert made["mappings"]["_routing"] == {"required": True}
    assert made["mappings"]["properties"].keys() == a_document().keys() | {"created_at"}
    await cluster.model.drop(name)


async def test_orders_are_counted_by_when_they_were_made_and_by_why_they_failed(cluster: Cluster) -> None:
    """As dashboards ask, which know dates and no microseconds."""
    name = await cluster.index()
    failed: dict[str, Any] = {
        "status": "FAILED",
        "stage": "DONE",
        "basis": "UPSTREAM",
        "settled_at": SEPTEMBER.isoformat(),
    }
    reasons = ("DECLINED", "DECLINED", "EXPIRED")
    documents = [a_document(failure_reason=reason, **failed) for reason in reasons] + [a_document()]
    outcomes = await cluster.model.write([Write(name, document) for document in documents], timeout_s=10)
    assert {outcome.verdict for outcome in outcomes} == {Verdict.STORED}
    await cluster.model.refresh([name])

    at_ms = int(SEPTEMBER.timestamp() * 1000)
    span = {"gte": at_ms, "lt": at_ms + 1000, "format": "epoch_millis"}
    by_reason = {"terms": {"field": "failure_reason"}}
    by_day = {"date_histogram": {"field": "created_at", "fixed_interval": "1d"}, "aggs": {"why": by_reason}}
    chosen = {"bool": {"filter": [{"range": {"created_at": span}}, {"term": {"status": "FAILED"}}]}}
    asked = {"size": 0, "query": chosen, "aggs": {"days": by_day}}
    answer = await cluster.elastic.call("POST", f"/{name}/_search", body=asked)
    (day,) = answer["aggregations"]["days"]["buckets"]
    assert {each["key"]: each["doc_count"] for each in day["why"]["buckets"]} == {"DECLINED": 2, "EXPIRED": 1}
    (row, *_) = await found(cluster.model, name)
    assert row.version == documents[0]["version"], "lists do not see the date"
    await cluster.model.drop(name)


class Scripted:
    """A server that gives the answers it is told, by the end of the path: one after the other, the last for
    ever.
    """

    def __init__(self, answers: dict[str, list[tuple[int, Any]]]) -> None:
        self._answers = answers

    async def answer(self, request: web.Request) -> web.Response:
        await request.read()
        answers = self._answers[request.path.rpartition("/")[2]]
        status, body = answers.pop(0) if len(answers) > 1 else answers[0]
        headers = {"X-Elastic-Product": "Elasticsearch"}
        return web.json_response(body, status=status, headers=headers)


@asynccontextmanager
async def answering(**answers: list[tuple[int, Any]]) -> AsyncIterator[ElasticReadModel]:
    """A read model over a scripted server; for what a real one does rarely, or after a minute."""
    app = web.Application(client_max_size=1 << 26)
    app.router.add_route("*", "/{path:.*}", Scripted(answers).answer)
    server = TestServer(app)
    await server.start_server()
    try:
        async with es.open_elastic(es.EsSettings(addresses=(str(server.make_url("/")),))) as elastic:
            yield ElasticReadModel(elastic, Layout())
    finally:
        await server.close()


def refreshed(successful: int, total: int, failed: int = 0) -> tuple[int, Any]:
    return 200, {"_shards": {"total": total, "successful": successful, "failed": failed}}


def health(status: str, active: int) -> tuple[int, Any]:
    return 200, {"status": status, "active_shards": active}


@pytest.mark.parametrize(
    ("refreshes", "status", "is_done"),
    [
        ([refreshed(2, 2)], health("red", 0), True),
        ([refreshed(1, 2)], health("red", 1), False),
        ([refreshed(1, 2)], health("yellow", 1), True),
        ([refreshed(1, 2)], health("yellow", 2), False),
        ([refreshed(1, 2), refreshed(2, 2)], health("green", 2), True),
        ([refreshed(1, 2, failed=1)], health("green", 1), False),
    ],
)
async def test_a_refresh_is_done_when_every_copy_that_is_there_did_it(
    refreshes: list[Any], status: Any, is_done: bool
) -> None:
    async with answering(_refresh=refreshes, a=[status]) as model:
        if is_done:
            await model.refresh(["a"])
            return
        with pytest.raises(ReadModelUnavailable):
            await model.refresh(["a"])


WHOLE = {"total": 1, "successful": 1, "failed": 0}
NO_HITS: dict[str, Any] = {"hits": {"hits": []}}
ERROR = {"error": {"type": "some_exception", "reason": "some reason"}}


@pytest.mark.parametrize(
    "answer",
    [
        (200, {"timed_out": True, "_shards": WHOLE, **NO_HITS}),
        (200, {"timed_out": False, "_shards": {**WHOLE, "failed": 1}, **NO_HITS}),
        *((status, ERROR) for status in (400, 403, 404, 429, 500, 502, 503)),
    ],
    ids=str,
)
async def test_a_search_that_leaves_anything_out_is_no_answer(answer: tuple[int, Any]) -> None:
    ours = (200, {"a": {"settings": {"index.uuid": "u"}}})
    async with answering(_search=[answer], **{"index.uuid": [ours]}) as model:
        place = Place(IndexIdentity("a", "c", "u"))
        with pytest.raises(ReadModelUnavailable):
            await model.search([place], a_window(), routing=[], limit=1, timeout_s=5)


async def test_an_index_of_another_make_is_not_ours_also_when_it_cannot_be_searched(cluster: Cluster) -> None:
    name = await cluster.index()
    ours = (await cluster.model.identities([name]))[name]
    await cluster.model.drop(name)
    unsorted = {"mappings": {"properties": {"created_us": {"type": "long", "doc_values": False}}}}
    settings: dict[str, Any] = {"settings": {"index.sort.field": [], "index.sort.order": []}}
    await cluster.elastic.call("PUT", f"/{name}", body={**unsorted, **settings})
    with pytest.raises(IndexNotOurs):
        await found(cluster.model, name)

    await cluster.model.seal([name])
    with pytest.raises(ReadModelUnavailable) as refused:
        await found(cluster.model, name)
    assert not isinstance(refused.value, IndexNotOurs), "it refuses to sort"
    with pytest.raises(IndexNotOurs):
        await cluster.model.search([Place(ours)], a_window(), routing=[], limit=1, timeout_s=5)
    await cluster.model.drop(name)


async def aliases(cluster: Cluster, name: str) -> set[str]:
    return set((await cluster.elastic.call("GET", f"/{name}/_alias"))[name]["aliases"])


async def test_an_index_that_an_earlier_release_made_is_searched_once_it_is_sealed(cluster: Cluster) -> None:
    """Each seal is its index's own; aliases of others stay, what is left of earlier seals goes."""
    old, away = (index_name(month_of(SEPTEMBER), next(_generations)) for _ in range(2))
    made: dict[str, Any] = {"aliases": {"somebodys": {}, f"{old}.of-before": {}}}
    await cluster.elastic.call("PUT", f"/{old}", body=made)
    await cluster.model.write([Write(old, a_document())], timeout_s=10)
    await cluster.model.refresh([old])
    identity = (await cluster.model.identities([old]))[old]
    with pytest.raises(IndexNotOurs):
        await found(cluster.model, old)

    await asyncio.gather(*(cluster.model.seal([old, away]) for _ in range(2)))
    assert await aliases(cluster, old) == {"somebodys", f"{old}.{identity.index_uuid}"}
    assert len(await found(cluster.model, old)) == 1
    await cluster.model.drop(old)


class Meddled(es.Elastic):
    """A cluster to which something happens just before one of the requests that give an alias."""

    meddle: Callable[[], Awaitable[Any]]
    left = -1

    async def call(self, method: str, path: str, **how: Any) -> dict[str, Any]:
        if path == "/_aliases":
            self.left -= 1
            if self.left == 0:
                await self.meddle()
        return await super().call(method, path, **how)


@pytest.mark.parametrize("number", [1, 2])
async def test_an_index_that_is_made_again_while_it_is_sealed_gets_no_seal_of_the_lost_one(
    cluster: Cluster, number: int
) -> None:
    name = await cluster.index()
    lost = (await cluster.model.identities([name]))[name]
    await cluster.elastic.call("DELETE", f"/{name}/_alias/{name}.*")
    elastic = Meddled(cluster.elastic._client)
    other = ElasticReadModel(elastic, Layout())

    async def make_again() -> None:
        await cluster.model.drop(name)
        await cluster.elastic.call("PUT", f"/{name}", body={})

    elastic.meddle, elastic.left = make_again, number
    await other.seal([name])
    assert elastic.left < 0, "it happened"
    there = (await cluster.model.identities([name]))[name]
    assert there != lost
    assert await aliases(cluster, name) == {f"{name}.{there.index_uuid}"}
    await cluster.model.drop(name)


async def test_an_index_with_the_seal_of_a_lost_one_is_found_out_by_its_uuid(cluster: Cluster) -> None:
    """As one that a snapshot brought back with its aliases."""
    name = await cluster.index()
    lost = (await cluster.model.identities([name]))[name]
    await cluster.model.drop(name)
    seal = f"{name}.{lost.index_uuid}"
    await cluster.elastic.call("PUT", f"/{name}", body={"aliases": {seal: {}}})

    with pytest.raises(IndexNotOurs):
        await cluster.model.search([Place(lost)], a_window(), routing=[], limit=1, timeout_s=5)
    await cluster.model.create(name)
    assert seal not in await aliases(cluster, name)
    assert await found(cluster.model, name) == []
    await cluster.model.drop(name)


async def test_a_bulk_that_is_refused_as_a_whole_is_split_or_tried_again() -> None:
    writes = [Write("a", a_document()), Write("a", a_document())]
    for status in (400, 413):
        async with answering(_bulk=[(status, ERROR)]) as model:
            with pytest.raises(TooMuchAtOnce):
                await model.write(writes, timeout_s=5)
            (outcome,) = await model.write(writes[:1], timeout_s=5)
            assert outcome.verdict is Verdict.REFUSED
    for status in (401, 403, 404, 429, 500, 503):
        async with answering(_bulk=[(status, ERROR)]) as model:
            with pytest.raises(ReadModelUnavailable):
                await model.write(writes, timeout_s=5)


@pytest.fixture
async def table(readmodel_database: DatabaseFactory) -> AsyncIterator[tuple[TableReadModel, str]]:
    dsn = (await readmodel_database()).dsn
    wanted = pg.PgSettings(dsn=dsn, pool_size=4, queue=12, session=SESSION)
    async with pg.open_database(wanted, name="read-model") as database:
        yield TableReadModel(database), dsn


async def test_two_writers_of_the_same_orders_do_not_wait_for_each_other_for_ever(
    table: tuple[TableReadModel, str],
) -> None:
    model, _ = table
    name = index_name(month_of(SEPTEMBER), 1)
    await model.create(name)
    orders = [a_document() for _ in range(300)]

    async def write(version: int) -> None:
        writes = [Write(name, order | {"version": version}) for order in orders[:: 1 - 2 * (version % 2)]]
        outcomes = await model.write(writes, timeout_s=20)
        assert {outcome.verdict for outcome in outcomes} <= {Verdict.STORED, Verdict.STALE}

    await asyncio.gather(*(write(version) for version in range(1, 13)))
    entries = await model.entries(name, 3, SEPTEMBER.date(), after="", limit=1000)
    assert [entry.version for entry in entries] == [12] * 300


async def test_a_search_walks_one_index_of_the_months_it_names(table: tuple[TableReadModel, str]) -> None:
    model, dsn = table
    month, names = month_of(SEPTEMBER), []
    for _ in range(12):
        names.append(index_name(month, 1))
        await model.create(names[-1])
        month = next_month(month)
    users = [*["vip.1"] * 2000, *(f"user-{number}" for number in range(1000))]
    for number, name in enumerate(names[:3]):
        at = SEPTEMBER + timedelta(days=31 * number)
        writes = [
            Write(name, a_document(at + timedelta(seconds=second), user_id=user))
            for second, user in enumerate(users)
        ]
        await model.write(writes, timeout_s=60)

    for user, narrowed in itertools.product(("vip.1", "user-7", None), (False, True)):
        plan = await explained(dsn, names[:3], user, narrowed=narrowed)
        scans = [node for node in plan if node["Node Type"].endswith("Scan") and "Relation Name" in node]
        scans = [node for node in scans if node["Relation Name"].startswith("orders-v")]
        assert {node["Relation Name"] for node in scans} <= set(names[:3])
        assert {node["Node Type"] for node in scans} <= {"Index Scan", "Bitmap Heap Scan"}
        assert sum(node["Actual Rows"] * node["Actual Loops"] for node in scans) < 100, user


async def explained(
    dsn: str, names: list[str], user: str | None, *, narrowed: bool = False
) -> list[dict[str, Any]]:
    """The executed nodes of the plan of a page of 20."""
    connection = await asyncpg.connect(dsn, server_settings={"search_path": "ordermesh", **SESSION})
    try:
        await connection.execute("ANALYZE documents")
        asked: list[Any] = [*[None] * 5, [], 20]
        window = [to_us(OLDEST), to_us(NEWEST.created_at), NEWEST.order_id]
        sql = f"EXPLAIN (ANALYZE, FORMAT JSON) {QUERIES.search_documents}"
        identities = [[""] * len(names)] * 2
        kept = [names[:1], names[:1], [3]] if narrowed else [None, [], []]
        plan = await connection.fetchval(sql, names, *identities, user, *window, *asked, *kept)
    finally:
        await connection.close()
    return [node for node in nodes(json.loads(plan)[0]["Plan"]) if node["Actual Loops"]]


def nodes(plan: dict[str, Any]) -> list[dict[str, Any]]:
    return [plan, *(node for child in plan.get("Plans", []) for node in nodes(child))]
