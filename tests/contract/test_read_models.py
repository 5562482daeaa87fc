"""What a read model does, whichever it is: in Elasticsearch, in a table, or in memory as tests use it."""

from __future__ import annotations

import asyncio
import itertools
import secrets
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from chassis import es, pg
from history_svc.document import Document, columns, from_us, h32, index_name, month_of
from history_svc.errors import IndexNotOurs, ReadModelUnavailable, TooMuchAtOnce
from history_svc.page import NEWEST, Filter, Key, Row, Window
from history_svc.readmodel.elastic import ElasticReadModel, Layout
from history_svc.readmodel.port import DaySum, Entry, IndexIdentity, Outcome, Place, ReadModel, Verdict, Write
from history_svc.readmodel.table import SESSION, TableReadModel
from history_svc.text import words
from ops.elasticsearch import ElasticsearchServer
from tests.conftest import DatabaseFactory
from tests.documents import SEPTEMBER, a_document, a_window
from tests.readmodels import MemoryReadModel

KINDS = ("elasticsearch", "postgres", "memory")
TIMEOUT_S = 20.0
AUGUST = SEPTEMBER - timedelta(days=31)
STORED, STALE, MISSING = Outcome(Verdict.STORED), Outcome(Verdict.STALE), Outcome(Verdict.MISSING)
_generations = itertools.count(secrets.randbelow(1 << 40))


@dataclass
class Bench:
    """A read model with indices of the test's own."""

    kind: str
    model: ReadModel
    made: list[str] = field(default_factory=list)

    async def index(self, at: datetime = SEPTEMBER) -> str:
        """A new index of that month."""
        name = self.unknown(at)
        await self.model.create(name)
        return name

    def unknown(self, at: datetime = SEPTEMBER) -> str:
        """The name of an index that is not there yet."""
        name = index_name(month_of(at), next(_generations))
        self.made.append(name)
        return name

    async def write(self, *writes: Write) -> list[Outcome]:
        outcomes = await self.model.write(writes, timeout_s=TIMEOUT_S)
        return [Outcome(outcome.verdict) for outcome in outcomes]

    async def fill(self, name: str, documents: Iterable[Document]) -> None:
        """Store documents and make them searchable."""
        assert set(await self.write(*(Write(name, each) for each in documents))) <= {STORED}
        await self.model.refresh([name])

    async def rows(self, *names: str, limit: int = 1000, **window: Any) -> list[Row]:
        asked = a_window(**window)
        routing = [] if asked.user_id is None else [asked.user_id]
        return await self.found(await self.places(*names), asked, routing=routing, limit=limit)

    async def places(self, *names: str) -> list[Place]:
        """All of these indices, whichever they are now; one that is not there is nobody's."""
        there = await self.model.identities(names)
        return [Place(there.get(name, IndexIdentity(name, "", ""))) for name in names]

    async def found(
        self,
        places: Sequence[Place],
        window: Window,
        *,
        routing: Sequence[str] = (),
        limit: int = 1000,
    ) -> list[Row]:
        return await self.model.search(places, window, routing=routing, limit=limit, timeout_s=TIMEOUT_S)

    async def versions(self, name: str) -> dict[str, int]:
        """Version of every order that a search finds."""
        await self.model.refresh([name])
        return {str(row.key.order_id): row.version for row in await self.rows(name, user_id=None)}


@pytest.fixture(params=KINDS)
async def bench(
    request: pytest.FixtureRequest,
    readmodel_database: DatabaseFactory,
    elasticsearch: ElasticsearchServer,
) -> AsyncIterator[Bench]:
    async with AsyncExitStack() as stack:
        made: ReadModel
        match request.param:
            case "elasticsearch":
                made = await stack.enter_async_context(elastic_at(elasticsearch.url))
            case "postgres":
                made = await stack.enter_async_context(table_at((await readmodel_database()).dsn))
            case _:
                made = MemoryReadModel()
        bench = Bench(request.param, made)
        yield bench
        for name in bench.made:
            await made.drop(name)


@asynccontextmanager
async def elastic_at(url: str) -> AsyncIterator[ReadModel]:
    async with es.open_elastic(es.EsSettings(addresses=(url,))) as elastic:
        yield ElasticReadModel(elastic, Layout(shards=2))


@asynccontextmanager
async def table_at(dsn: str) -> AsyncIterator[ReadModel]:
    wanted = pg.PgSettings(dsn=dsn, pool_size=2, queue=6, session=SESSION)
    async with pg.open_database(wanted, name="read-model") as database:
        yield TableReadModel(database)


async def test_a_newer_version_replaces_an_older_one_and_never_the_other_way_round(bench: Bench) -> None:
    name, order = await bench.index(), a_document(version=5)

    assert await bench.write(Write(name, order)) == [STORED]
    assert await bench.write(Write(name, order)) == [STALE]
    assert await bench.write(Write(name, order | {"version": 4})) == [STALE]
    assert await bench.versions(name) == {order["order_id"]: 5}
    assert await bench.write(Write(name, order | {"version": 6, "status": "SUCCESS"})) == [STORED]

    (row,) = await bench.rows(name) if await bench.versions(name) else []
    assert (row.version, row.columns["status"]) == (6, "SUCCESS")


async def test_again_replaces_the_same_version_but_no_newer_one(bench: Bench) -> None:
    name, order = await bench.index(), a_document(version=5)
    await bench.write(Write(name, order))

    repaired = order | {"failure_reason": "repaired"}
    assert await bench.write(Write(name, repaired, again=True)) == [STORED]
    assert await bench.write(Write(name, order | {"version": 4}, again=True)) == [STALE]

    await bench.model.refresh([name])
    (row,) = await bench.rows(name)
    assert (row.version, row.columns["failure_reason"]) == (5, "repaired")


async def test_several_versions_in_one_batch_are_judged_in_their_order(bench: Bench) -> None:
    name, order, other = await bench.index(), a_document(), a_document()
    versions = [Write(name, order | {"version": version}) for version in (3, 2, 7, 7)]
    writes = [*versions, Write(name, other), Write(name, order | {"version": 7}, again=True)]

    assert await bench.write(*writes) == [STORED, STALE, STORED, STALE, STORED, STORED]
    assert await bench.versions(name) == {order["order_id"]: 7, other["order_id"]: 1}


async def test_what_is_stored_is_found_after_a_refresh(bench: Bench) -> None:
    name, order = await bench.index(), a_document()
    await bench.write(Write(name, order))
    if bench.kind != "postgres":  # There it is found at once, which no one may rely on.
        assert await bench.rows(name) == []

    await bench.model.refresh([name])
    (row,) = await bench.rows(name)

    assert row.key == Key(from_us(order["created_us"]), columns(order)["order_id"])
    assert row.version == 1
    assert dict(row.columns) == columns(order)


@pytest.mark.parametrize("size", [1, 2, 7, 100])
async def test_pages_give_every_order_once_newest_first_also_within_a_millisecond(
    bench: Bench, size: int
) -> None:
    october = SEPTEMBER + timedelta(days=30)
    instants = [SEPTEMBER] * 9 + [SEPTEMBER + timedelta(microseconds=us) for us in (1, 1, 2, 999)]
    documents = {
        await bench.index(SEPTEMBER): [a_document(at) for at in instants],
        await bench.index(october): [a_document(october) for _ in range(5)],
    }
    for name, of_month in documents.items():
        await bench.fill(name, [*of_month, a_document(user_id="bob")])

    walked: list[Key] = []
    before = NEWEST
    while page := await bench.rows(*documents, limit=size, before=before):
        assert len(page) <= size
        walked += [row.key for row in page]
        before = page[-1].key

    everything = [key_of(each) for of_month in documents.values() for each in of_month]
    assert walked == sorted(everything, reverse=True)


async def test_a_window_ends_at_its_oldest_instant_and_below_its_newest_order(bench: Bench) -> None:
    name = await bench.index()
    orders = [a_document(SEPTEMBER + timedelta(seconds=second)) for second in range(5)]
    await bench.fill(name, orders)
    keys = [key_of(order) for order in orders]

    shown = await bench.rows(name, before=keys[3], not_before=keys[1].created_at)

    assert [row.key for row in shown] == [keys[2], keys[1]]


STATUSES = ("PENDING", "SUCCESS", "FAILED")
TEXTS = (
    "Zwei Bücher",
    "two books",
    "Ein BUCH über Bäume",
    "",
    "café, 12 books",
    "antidisestablishmentarianism-s",
)
an_order = st.fixed_dictionaries(
    {
        "status": st.sampled_from(STATUSES),
        "kind": st.sampled_from(("payment", "purchase")),
        "currency_code": st.sampled_from(("EUR", "USD")),
        "amount_minor": st.integers(1, 6) | st.just((1 << 63) - 1),
        "description": st.sampled_from(TEXTS)
        | st.text(st.characters(codec="utf-8", exclude_characters="\0")),
    }
)
asked_words = st.sampled_from(
    ("buch", "bücher", "boo", "two books", "cafe", "12", "antidisestablishmentarianism", "x")
)
a_filter = st.builds(
    Filter,
    status=st.none() | st.sampled_from(STATUSES),
    kind=st.none() | st.sampled_from(("payment", "refund")),
    currency_code=st.none() | st.just("EUR"),
    amount_min=st.none() | st.integers(0, 6),
    amount_max=st.none() | st.integers(0, 6),
    asked=st.just(()) | asked_words.map(words),
)


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(orders=st.lists(an_order, min_size=1, max_size=12), filters=st.lists(a_filter, min_size=1, max_size=4))
async def test_a_search_shows_what_the_filter_shows(
    bench: Bench, orders: list[dict[str, Any]], filters: list[Filter]
) -> None:
    name = bench.made[0] if bench.made else await bench.index()
    user = f"user-{next(_generations)}"
    documents = [
        a_document(SEPTEMBER + timedelta(seconds=second), user_id=user, **order)
        for second, order in enumerate(orders)
    ]
    await bench.fill(name, documents)

    for asked in filters:
        shown = await bench.rows(name, user_id=user, filter=asked)
        wanted = [key_of(each) for each in documents if asked.shows(columns(each))]
        assert [row.key for row in shown] == sorted(wanted, reverse=True), asked


async def test_a_search_without_a_user_finds_everybodys_orders(bench: Bench) -> None:
    name = await bench.index()
    orders = [a_document(user_id=user) for user in ("alice", "bob", "vip.1")]
    await bench.fill(name, orders)

    shown = await bench.rows(name, user_id=None)
    assert [row.key for row in shown] == sorted((key_of(order) for order in orders), reverse=True)


async def test_all_routes_that_a_user_ever_had_are_searched(bench: Bench) -> None:
    name = await bench.index()
    routes = ["alice", *(f"alice#{number}" for number in range(6))]
    await bench.fill(name, [a_document(read_routing=route) for route in routes])

    shown = await bench.found(await bench.places(name), a_window(), routing=routes)
    assert len(shown) == len(routes)


async def test_a_deleted_order_is_not_shown_and_does_not_come_back(bench: Bench) -> None:
    name, order, other = await bench.index(), a_document(version=2), a_document()
    await bench.fill(name, [order, other])

    assert await bench.write(Write(name, order | {"version": 3, "deleted": True})) == [STORED]
    assert await bench.write(Write(name, order)) == [STALE]

    assert await bench.versions(name) == {other["order_id"]: 1}
    day = SEPTEMBER.date()
    assert await bench.model.entries(name, 3, day, after="", limit=10) == [Entry(other["order_id"], 1)]
    assert [cell.count for cell in await bench.model.sums(name, [3])] == [1]


BAD = {
    "a field that nobody knows": {"colour": "red"},
    "a word where a number is": {"amount_minor": "a lot"},
    "digits where a number is": {"amount_minor": "1250"},
    "a fraction where a number is": {"amount_minor": 12.5},
    "a number of 65 bits": {"amount_minor": 1 << 63},
    "an object where a word is": {"status": {"code": 1}},
    "a word where yes or no is": {"deleted": "perhaps"},
    "a word that cannot be indexed": {"kind": "k" * 40_000},
    "a time that is none": {"settled_us": "yesterday"},
    "a word where an object is not searched": {"leg": "second"},
}


@pytest.mark.parametrize("bad", BAD.values(), ids=BAD)
async def test_a_document_that_does_not_fit_is_refused_alone_and_with_a_reason(
    bench: Bench, bad: dict[str, Any]
) -> None:
    name = await bench.index()
    good = [a_document() for _ in range(4)]
    poison = a_document() | bad
    writes = [Write(name, each) for each in (*good[:2], poison, *good[2:])]

    outcomes = await bench.model.write(writes, timeout_s=TIMEOUT_S)

    assert [outcome.verdict for outcome in outcomes] == [
        *(Verdict.STORED, Verdict.STORED, Verdict.REFUSED, Verdict.STORED, Verdict.STORED)
    ]
    assert 0 < len(outcomes[2].reason) <= 300
    assert await bench.versions(name) == {each["order_id"]: 1 for each in good}


async def written_apart(bench: Bench, writes: list[Write]) -> list[Verdict]:
    """Write as a caller does who splits what is too much."""
    try:
        return [outcome.verdict for outcome in await bench.model.write(writes, timeout_s=TIMEOUT_S)]
    except TooMuchAtOnce:
        half = len(writes) // 2
        return [*await written_apart(bench, writes[:half]), *await written_apart(bench, writes[half:])]


@pytest.mark.parametrize(
    "bad", [{"version": "first"}, {"read_routing": {"a": 1}}, {"bucket": 1 << 70}], ids=str
)
async def test_what_spoils_a_whole_batch_is_found_by_splitting_it(bench: Bench, bad: dict[str, Any]) -> None:
    name, good = await bench.index(), [a_document(), a_document()]
    writes = [Write(name, good[0]), Write(name, a_document() | bad), Write(name, good[1])]

    assert await written_apart(bench, writes) == [Verdict.STORED, Verdict.REFUSED, Verdict.STORED]
    assert await bench.versions(name) == {each["order_id"]: 1 for each in good}


async def test_a_write_to_an_index_that_is_not_there_says_so_and_makes_none(bench: Bench) -> None:
    there, missing = await bench.index(), bench.unknown()
    orders = [a_document(), a_document(), a_document()]

    outcomes = await bench.write(Write(there, orders[0]), Write(missing, orders[1]), Write(there, orders[2]))

    assert outcomes == [STORED, MISSING, STORED]
    assert list(await bench.model.identities([there, missing])) == [there]


async def test_nothing_is_answered_about_an_index_that_is_not_there(bench: Bench) -> None:
    there, missing = await bench.index(), bench.unknown()
    model = bench.model
    asked: list[Callable[[], Awaitable[Any]]] = [
        lambda: bench.rows(there, missing),
        lambda: model.refresh([there, missing]),
        lambda: model.sums(missing, [3]),
        lambda: model.entries(missing, 3, SEPTEMBER.date(), after="", limit=10),
    ]
    for ask in asked:
        with pytest.raises(ReadModelUnavailable):
            await ask()
    with pytest.raises(IndexNotOurs):
        await bench.rows(there, missing)
    assert await bench.rows() == []
    await model.refresh([])


async def test_an_index_is_made_once_and_comes_back_as_another_one_after_it_was_lost(bench: Bench) -> None:
    name = await bench.index()
    first = await bench.model.create(name)
    assert await bench.model.create(name) == first == (await bench.model.identities([name]))[name]
    assert first.name == name
    await bench.fill(name, [a_document()])

    await bench.model.drop(name)
    await bench.model.drop(name)
    assert await bench.model.identities([name]) == {}

    second = await bench.model.create(name)
    assert second.cluster_uuid == first.cluster_uuid
    assert second.index_uuid != first.index_uuid
    assert await bench.rows(name) == []


async def test_a_search_is_of_the_very_indices_that_were_meant(bench: Bench) -> None:
    lost, kept = await bench.index(), await bench.index()
    for name in (lost, kept):
        await bench.fill(name, [a_document()])
    meant = await bench.places(lost, kept)
    assert len(await bench.found(meant, a_window())) == 2

    await bench.model.drop(lost)
    for _ in ("while it is not there", "when another one is in its place"):
        with pytest.raises(IndexNotOurs):
            await bench.found(meant, a_window())
        assert len(await bench.found(meant[1:], a_window())) == 1
        await bench.model.create(lost)


async def test_in_each_index_only_the_stream_partitions_that_count_there_are_searched(bench: Bench) -> None:
    """The old index holds what some have left; the new one what others have not taken over yet."""
    old, new, other = await bench.index(), await bench.index(), await bench.index(AUGUST)
    orders = {partition: a_document(stream_partition=partition) for partition in (0, 7, 8, 9, 16)}
    await bench.fill(old, orders.values())
    newer = {partition: order | {"version": 2, "status": "SUCCESS"} for partition, order in orders.items()}
    await bench.fill(new, newer.values())
    alone = a_document(AUGUST, stream_partition=8)
    await bench.fill(other, [alone])
    places = await bench.places(old, new, other)
    ours = [replace(places[0], stream_partitions=(0, 7)), replace(places[1], stream_partitions=(8, 9))]

    async def versions(*where: Place, limit: int = 100, **window: Any) -> list[tuple[str, int]]:
        rows = await bench.found(where, a_window(**window), routing=["alice"], limit=limit)
        return [(str(row.key.order_id), row.version) for row in rows]

    def expected(*documents: Document) -> list[tuple[str, int]]:
        newest = sorted(documents, key=key_of, reverse=True)
        return [(each["order_id"], each["version"]) for each in newest]

    counting = [orders[0], orders[7], newer[8], newer[9]]
    assert await versions(*ours) == expected(*counting)
    assert await versions(*ours, limit=3) == expected(*counting)[:3]
    assert await versions(*ours, filter=Filter(status="PENDING")) == expected(*counting[:2])
    assert await versions(*ours, user_id="bob") == []
    assert await versions(*ours, places[2]) == expected(*counting, alone), "an index in which all counts"
    assert await versions(ours[1], places[2]) == expected(*counting[2:], alone)
    assert await versions(replace(places[0], stream_partitions=())) == []
    assert len(await versions(*places)) == 11


async def test_a_search_beside_which_an_index_is_lost_and_made_again_finds_all_or_refuses(
    bench: Bench,
) -> None:
    name = await bench.index()

    async def make_again() -> None:
        await bench.model.drop(name)
        await bench.model.create(name)

    async def search(meant: Sequence[Place]) -> int:
        try:
            return len(await bench.found(meant, a_window()))
        except ReadModelUnavailable:
            return -1

    for _ in range(5):
        await bench.fill(name, [a_document(), a_document()])
        meant = await bench.places(name)
        found = await asyncio.gather(*(search(meant) for _ in range(3)), make_again(), search(meant))
        assert {each for each in found if each is not None} <= {2, -1}
        assert await search(meant) == -1


async def test_sums_and_entries_are_those_of_all_documents(bench: Bench) -> None:
    name = await bench.index()
    midnight = datetime(2026, 9, 15, tzinfo=UTC)
    instants = [midnight - timedelta(microseconds=1), midnight, *[midnight + timedelta(hours=3)] * 5]
    documents = [
        a_document(at, stream_partition=partition, version=version)
        for (at, partition), version in zip(itertools.product(instants, (3, 4, 9)), itertools.count(1))
    ]
    await bench.fill(name, documents)

    cells: dict[tuple[int, Any], list[Document]] = {}
    for each in documents:
        cells.setdefault((each["stream_partition"], from_us(each["created_us"]).date()), []).append(each)
    sums = await bench.model.sums(name, [3, 4, 5])
    assert sorted(sums, key=lambda cell: (cell.stream_partition, cell.day)) == [
        DaySum(
            *cell,
            len(of_cell),
            sum(each["version"] for each in of_cell),
            sum(h32(each["order_id"], each["version"]) for each in of_cell),
        )
        for cell, of_cell in sorted(cells.items())
        if cell[0] != 9
    ]

    for (partition, day), of_cell in cells.items():
        walked: list[Entry] = []
        while page := await bench.model.entries(
            name, partition, day, after=walked[-1].order_id if walked else "", limit=2
        ):
            walked += page
        assert walked == sorted(Entry(each["order_id"], each["version"]) for each in of_cell)


async def test_more_than_a_body_holds_is_too_much_at_once(bench: Bench) -> None:
    name, long = await bench.index(), "long " * 200_000
    writes = [Write(name, a_document() | {"description": long}) for _ in range(34)]

    with pytest.raises(TooMuchAtOnce):
        await bench.model.write(writes, timeout_s=TIMEOUT_S)
    assert await bench.write(*writes[:2]) == [STORED, STORED]


@asynccontextmanager
async def silent_server() -> AsyncIterator[int]:
    """Takes connections and never says a word: what a frozen server looks like. Its port."""
    writers = []

    async def listen(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writers.append(writer)

    server = await asyncio.start_server(listen, "127.0.0.1", 0)
    try:
        yield server.sockets[0].getsockname()[1]
    finally:
        for writer in writers:
            writer.transport.abort()
        server.close()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("how", ["closed", "silent"])
async def test_an_unreachable_server_is_said_in_time(kind: str, how: str) -> None:
    async with AsyncExitStack() as stack:
        port = await stack.enter_async_context(silent_server()) if how == "silent" else 9
        model: ReadModel
        match kind:
            case "elasticsearch":
                model = await stack.enter_async_context(elastic_at(f"http://127.0.0.1:{port}"))
            case "postgres":
                model = await stack.enter_async_context(table_at(f"postgresql://x@127.0.0.1:{port}/x"))
            case _:
                model = MemoryReadModel(down=True)
        write = Write(index_name(month_of(SEPTEMBER), 1), a_document())
        nobodys = Place(IndexIdentity(write.index, "", ""))
        asked: list[Callable[[], Awaitable[Any]]] = [
            lambda: model.write([write], timeout_s=0.3),
            lambda: model.search([nobodys], a_window(), routing=[], limit=1, timeout_s=0.3),
            model.ping,
        ]
        for ask in asked:
            began = time.monotonic()
            with pytest.raises(ReadModelUnavailable):
                await ask()
            assert time.monotonic() - began < 3.0


async def test_whoever_is_there_answers_a_ping(bench: Bench) -> None:
    assert await bench.model.ping() is None  # type: ignore[func-returns-value]


def key_of(found: Document) -> Key:
    return Key(from_us(found["created_us"]), columns(found)["order_id"])
