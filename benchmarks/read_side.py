"""The read side: changes made searchable per second beside raw bulk requests, and pages beside the queries
they are made of.

    python -m benchmarks.read_side [--documents 40000] [--pages 300] [--no-write]

Starts a Postgres, a Kafka and an Elasticsearch of its own and stops them at the end; takes about five
minutes.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import random
import shutil
import sys
import tempfile
import time
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks import cpu, report
from benchmarks.histories import SHARD, Bench, store
from chassis import pg
from chassis.clock import SYSTEM_CLOCK
from chassis.es import EsSettings, open_elastic
from chassis.ids import user_bucket
from chassis.kafka import Cluster, open_consumer
from chassis.placement import Held
from history_svc.catalog import FIRST_SPAN
from history_svc.channel.hub import Hub, Watching
from history_svc.channel.kafka import KafkaPublisher, Topics
from history_svc.channel.leadership import Leadership
from history_svc.channel.log import SESSION, ShardLog
from history_svc.channel.outbox import LoggedDeadLetters, OutboxSource
from history_svc.document import month_of
from history_svc.page import EVERY_ORDER, NEWEST, OLDEST, Filter, Key, Window
from history_svc.projector import indexer, relay
from history_svc.projector.bulk import IN_FLIGHT_MAX, ITEMS_MAX
from history_svc.projector.store import ProjectionStore
from history_svc.reader import Reader, Wish
from history_svc.readmodel.elastic import ElasticReadModel, Layout
from history_svc.readmodel.port import IndexIdentity, Place
from history_svc.search import Searcher
from history_svc.settings import HistorySettings
from history_svc.store import Reading, Shards
from ops import places, ports
from ops.cli.calls import quietly
from ops.elasticsearch import ElasticsearchServer
from ops.errors import OpsError
from ops.kafka import KafkaServer
from ops.load.tallies import percentile
from ops.postgres import PostgresServer
from ops.stack.databases import schema_of

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Mapping

    from history_svc.channel.port import EventSource
    from history_svc.readmodel.port import Write

RESULTS = Path(__file__).parent / "READ_SIDE.md"
USER = "bench.reader"
SIZE = 20
MONTHS = 12
HISTORIES = (1000, 10_000, 100_000)
CHANGED = (0, 100, 500)
DRAIN_S_MAX = 300.0
LOOK_EVERY_S = 0.05
WARM_UP_WRITES = 3
"""Elasticsearch compiles itself; the first requests pay for it."""
WARM_UP = 200
"""Pages before the first that counts, for Elasticsearch's compiler and everybody's caches."""


@dataclass(frozen=True, slots=True)
class Machine:
    """The servers of one run."""

    bench: Bench
    read_model: ElasticReadModel
    kafka: KafkaServer


@dataclass(frozen=True, slots=True)
class Line:
    """One measured line: name, figure, and the figure beside the one it is compared with."""

    name: str
    cells: tuple[str, ...]


@asynccontextmanager
async def machine(directory: Path) -> AsyncIterator[Machine]:
    """Servers as long as the context lives."""
    async with AsyncExitStack() as stack:
        postgres = PostgresServer(places.data_directory(directory, "bench"), ports.free_port())
        elastic = ElasticsearchServer(
            places.data_directory(directory, "bench", kind="elasticsearch"),
            ports.free_port(),
            ports.free_port(),
        )
        kafka = KafkaServer(
            places.data_directory(directory, "bench", kind="kafka"), ports.free_port(), ports.free_port()
        )
        for server in (postgres, elastic, kafka):
            await server.start()
            stack.push_async_callback(server.stop)
        await postgres.create_database(SHARD)
        for script in schema_of("shard"):
            await postgres.run_sql(SHARD, script.read_text(encoding="utf-8"))
        bench = Bench(postgres.dsn(SHARD))
        await bench.prepare()
        client = await stack.enter_async_context(open_elastic(EsSettings(addresses=(elastic.url,))))
        yield Machine(bench, ElasticReadModel(client, Layout(1, 0)), kafka)


@dataclass(frozen=True, slots=True)
class Cost:
    """What some documents took: seconds, and CPU seconds of this process and of the servers."""

    seconds: float
    ours_s: float
    servers_s: float


async def made_searchable(run: Machine, count: int) -> list[Line]:
    """Changes per second: raw bulk requests of the same documents, then each channel with the indexer."""
    users = [f"bench.{number}" for number in range(20)]
    ids = []
    for user in users:
        ids += await run.bench.orders(user, count // len(users), 1)
    writes = [write for user in users for write in await run.bench.documents(run.read_model, user)]
    gc.collect()
    gc.freeze()  # A projector has no such heap of its own to look through.
    for _ in range(WARM_UP_WRITES):
        await raw_again(run, writes)
    raws = [await raw_again(run, writes)]
    lines = []
    for name, drain in (("outbox + indexer", by_outbox), ("relay + Kafka + indexer", by_kafka)):
        await forget(run, writes)
        taken = await drain(run, ids)
        raws.append(await raw_again(run, writes))
        lines.append(Line(name, cells_of(taken, count, raws[-2:])))
    return [Line("raw bulk requests", cells_of(mean(raws), count, raws)), *lines]


def cells_of(taken: Cost, count: int, raws: list[Cost]) -> tuple[str, ...]:
    """Documents per second, beside the raw requests just before and after, and CPU of a document."""
    ratio = mean(raws).seconds / taken.seconds
    return (
        f"{count / taken.seconds:.0f}",
        f"{ratio:.2f}",
        f"{1e6 * taken.ours_s / count:.0f}",
        f"{1e6 * taken.servers_s / count:.0f}",
    )


def mean(costs: list[Cost]) -> Cost:
    """The mean of several runs."""
    count = len(costs)
    return Cost(
        sum(cost.seconds for cost in costs) / count,
        sum(cost.ours_s for cost in costs) / count,
        sum(cost.servers_s for cost in costs) / count,
    )


async def raw_again(run: Machine, writes: list[Write]) -> Cost:
    """What raw requests take into empty indices."""
    await forget(run, writes)
    return await cost(partial(raw_bulk, run, writes))


async def raw_bulk(run: Machine, writes: list[Write]) -> None:
    """As many requests in flight as the indexer has, then one refresh."""
    chunks = [writes[start : start + ITEMS_MAX] for start in range(0, len(writes), ITEMS_MAX)]
    slots = asyncio.Semaphore(IN_FLIGHT_MAX)

    async def one(chunk: list[Write]) -> None:
        async with slots:
            await run.read_model.write(chunk, timeout_s=30)

    await asyncio.gather(*(one(chunk) for chunk in chunks))
    await run.read_model.refresh(sorted({write.index for write in writes}))


async def forget(run: Machine, writes: list[Write]) -> None:
    """Empty the indices, and mark everything so far as read, so that only what follows is measured."""
    for name in {write.index for write in writes}:
        await run.read_model.drop(name)
        await run.read_model.create(name)
    connection = await run.bench.connect()
    try:
        await connection.execute("DELETE FROM projection_index")
        await connection.execute("TRUNCATE outbox")
    finally:
        await connection.close()
    await run.bench.mark()


async def by_outbox(run: Machine, ids: list[Any]) -> Cost:
    """What the indexer takes over the outbox."""
    async with shard_of(run) as (database, shard_log, leadership):
        source = OutboxSource(shard_log, leadership, clock=SYSTEM_CLOCK, jitter=random.random)
        return await drained(run, ids, source, ProjectionStore(SHARD, database), [leadership])


async def by_kafka(run: Machine, ids: list[Any]) -> Cost:
    """What relay, Kafka and indexer take, all loops of one process as in the projector."""
    topics = Topics(Cluster(addresses=run.kafka.address), "bench.events", 8, 1)
    hub = Hub(
        partial(topics.ensure_events, 8),
        lambda rebalanced: open_consumer(
            topics.cluster, topics.events, group="bench", instance="bench", rebalanced=rebalanced
        ),
        bytes_max=64 * 1024 * 1024,
        clock=SYSTEM_CLOCK,
        jitter=random.random,
        watching=Watching(stuck_s=60),
    )
    async with shard_of(run) as (database, shard_log, leadership):
        parts = relay.Parts(shard_log, LoggedDeadLetters(), SYSTEM_CLOCK, random.random)
        publishing = relay.Relay(parts, leadership, partial(KafkaPublisher.open, topics, "bench.relay"))
        store_ = ProjectionStore(SHARD, database)
        return await drained(run, ids, hub.source(shard_log), store_, [leadership, publishing, hub])


@asynccontextmanager
async def shard_of(run: Machine) -> AsyncIterator[tuple[pg.Database, ShardLog, Leadership]]:
    wanted = pg.PgSettings(dsn=run.bench.dsn, pool_size=4, queue=12, session=SESSION)
    async with pg.open_database(wanted, name="bench") as database:
        shard_log = ShardLog(SHARD, database)
        yield (
            database,
            shard_log,
            Leadership(shard_log, wanted, holder="bench", clock=SYSTEM_CLOCK, jitter=random.random),
        )


async def drained(
    run: Machine, ids: list[Any], source: EventSource, kept: ProjectionStore, loops: list[Any]
) -> Cost:
    """What it takes from the commit that changes every order until a search finds all of them.

    The loops run before: a few changes go first, so that no start, no join of a group is measured.
    """
    parts = indexer.Parts(source, run.read_model, kept, LoggedDeadLetters(), SYSTEM_CLOCK, random.random)
    running = [asyncio.create_task(loop.run(), name=loop.name) for loop in (*loops, indexer.Indexer(parts))]
    try:
        await run.bench.change(ids[:: max(1, len(ids) // 100)])
        await indexed(run)
        await run.bench.change(ids)
        taken = await cost(partial(indexed, run))
        if (found := await searchable(run)) != len(ids):
            raise OpsError(f"{found} documents are searchable, {len(ids)} should be")
        return taken
    finally:
        for task in running:
            task.cancel()
        await asyncio.gather(*running, return_exceptions=True)


async def indexed(run: Machine) -> None:
    """Wait until the watermarks stand at the last change of every stream partition."""
    ends = await run.bench.ends()
    if not await run.bench.reached(ends, every_s=LOOK_EVERY_S, within_s=DRAIN_S_MAX):
        raise OpsError(f"watermarks do not get there in {DRAIN_S_MAX:g} s")


async def searchable(run: Machine) -> int:
    """Documents that a search would find."""
    connection = await run.bench.connect()
    try:
        names = [row[0] for row in await connection.fetch("SELECT index_name FROM projection_index")]
    finally:
        await connection.close()
    return sum([part.count for name in names for part in await run.read_model.sums(name, range(8))])


async def cost(work: Callable[[], Awaitable[None]]) -> Cost:
    """What some work takes."""
    servers, ours_s, started = cpu.Meter(), time.process_time(), time.perf_counter()
    await work()
    return Cost(time.perf_counter() - started, time.process_time() - ours_s, servers.stack_s())


async def pages(run: Machine, repeats: int) -> list[Line]:
    """Pages of an ever longer history, with changes to overlay, and without the read model."""
    lines = []
    wanted = HistorySettings(
        tls_dir=Path(), subject_dir=Path(), profile="local", shards={SHARD: run.bench.dsn}, fallback_max=8
    )
    async with Shards.open(wanted) as shards:
        for count in HISTORIES:
            user = f"{USER}.{count}"
            ids = await run.bench.orders(user, count, MONTHS)
            await store(run.read_model, await run.bench.documents(run.read_model, user))
            await run.bench.mark()
            lines += await pages_of(run, shards, user, count, repeats, ids)
    return lines


async def pages_of(
    run: Machine, shards: Shards, user: str, count: int, repeats: int, ids: list[Any]
) -> list[Line]:
    placement = {SHARD: (Held(user_bucket(user), 1),)}
    reader = Reader(shards, Searcher(run.read_model, 5.0), timedelta(days=2))
    keys = [Key(datetime.fromtimestamp((each.int >> 80) / 1000, UTC), each) for each in ids]
    deep = [NEWEST, *random.Random(7).sample(keys[len(keys) // 2 :], min(50, len(keys) // 2))]

    async def page(before: Key, shown: Filter = EVERY_ORDER) -> None:
        wish = Wish(Window(user, before, OLDEST, shown), SIZE)
        await reader.read(placement, wish, now=datetime.now(UTC), timeout_s=10)

    await in_turns(WARM_UP, deep, {"page": page})
    places_ = await places_of(run)
    works: dict[str, Callable[[Key], Awaitable[None]]] = {
        "sql": partial(keyset, shards, user),
        "search": partial(searched, run, places_, user),
        "asked": partial(asked, shards, user),
        "proven": partial(proven, run, places_, user),
        "page": page,
    }
    lines = []
    for changed in CHANGED if count == HISTORIES[1] else CHANGED[:1]:
        if changed:
            await run.bench.change(ids[-changed:])
        taken = await in_turns(repeats, deep, works)
        if not changed:
            lines.append(Line(f"{count} orders: SQL keyset query alone", cells_of_times(taken["sql"])))
            lines.append(Line(f"{count} orders: Elasticsearch query alone", cells_of_times(taken["search"])))
            lines.append(Line(f"{count} orders: what a page asks the shard", cells_of_times(taken["asked"])))
            lines.append(Line(f"{count} orders: what it asks Elasticsearch", cells_of_times(taken["proven"])))
        sources = percentile(taken["sql"], 0.5) + percentile(taken["search"], 0.5)
        ratio = percentile(taken["page"], 0.5) / sources
        lines.append(Line(f"{count} orders: page, {changed} changed", cells_of_times(taken["page"], ratio)))
        await run.bench.mark()
    away = Reader(shards, Searcher(run.read_model, 0.0001), timedelta(days=2))

    async def alone(before: Key) -> None:
        wish = Wish(Window(user, before, OLDEST), SIZE)
        await away.read(placement, wish, now=datetime.now(UTC), timeout_s=10)

    taken = await in_turns(repeats, deep, {"page": alone})
    return [*lines, Line(f"{count} orders: page, read model away", cells_of_times(taken["page"]))]


async def keyset(shards: Shards, user: str, before: Key) -> None:
    """The plain query of the shard."""
    await shards._primaries[SHARD].fetch(  # noqa: SLF001 - the same pool as the page
        "SELECT * FROM orders WHERE user_id = $1 AND created_at <= $2 AND (created_at, order_id) < ($2, $3)"
        " ORDER BY created_at DESC, order_id DESC LIMIT $4",
        user,
        before.created_at,
        before.order_id,
        SIZE + 1,
    )


async def searched(run: Machine, places_: Mapping[date, Place], user: str, before: Key) -> None:
    """The plain query of the read model, in the months that a page searches first."""
    there = first_below(places_, before)
    names = [place.index.name for place in there]
    await run.read_model.found(names, there, Window(user, before, OLDEST), (user,), SIZE + 1, 10)


async def asked(shards: Shards, user: str, before: Key) -> None:
    """What a page asks the shard: rows, changes, watermarks, fence and catalog in one statement."""
    since = datetime.now(UTC) - timedelta(days=2)
    wanted = Reading(Window(user, before, OLDEST), since, SIZE + 1, overlay_max=SIZE + 1)
    await shards.read(SHARD, (Held(user_bucket(user), 1),), wanted, timeout_s=10)


async def proven(run: Machine, places_: Mapping[date, Place], user: str, before: Key) -> None:
    """What a page asks the read model: the plain query, of the very indices that are meant."""
    await run.read_model.search(
        first_below(places_, before),
        Window(user, before, OLDEST),
        routing=(user,),
        limit=SIZE + 1,
        timeout_s=10,
    )


async def places_of(run: Machine) -> dict[date, Place]:
    """The index of each month, newest first."""
    connection = await run.bench.connect()
    try:
        rows = await connection.fetch(
            "SELECT month, index_name, cluster_uuid, index_uuid FROM projection_index ORDER BY month DESC"
        )
    finally:
        await connection.close()
    return {month: Place(IndexIdentity(*names)) for month, *names in rows}


def first_below(places_: Mapping[date, Place], before: Key) -> list[Place]:
    """The indices of a position's month and the two before it, as a page searches them first."""
    newest = month_of(min(before.created_at, datetime.now(UTC)))
    return [place for month, place in places_.items() if month <= newest][:FIRST_SPAN]


async def in_turns(
    repeats: int, keys: list[Key], works: Mapping[str, Callable[[Key], Awaitable[None]]]
) -> dict[str, list[float]]:
    """Seconds that each of some works takes, sorted; they take turns, so that what else the machine does is
    in all of them alike.
    """
    for key in keys[:10]:
        for work in works.values():
            await work(key)
    taken: dict[str, list[float]] = {name: [] for name in works}
    for number in range(repeats):
        for name, work in works.items():
            started = time.perf_counter()
            await work(keys[number % len(keys)])
            taken[name].append(time.perf_counter() - started)
    return {name: sorted(seconds) for name, seconds in taken.items()}


def cells_of_times(taken: list[float], ratio: float | None = None) -> tuple[str, ...]:
    """p50 and p99 in milliseconds, and the ratio to another figure."""
    p50, p99 = (f"{1000 * percentile(taken, share):.2f}" for share in (0.5, 0.99))
    return p50, p99, "" if ratio is None else f"{ratio:.2f}"


def document(facts: dict[str, str], bulk: list[Line], read: list[Line]) -> str:
    """The whole of READ_SIDE.md."""
    lines = [
        "# Read side",
        "",
        "Written by `python -m benchmarks.read_side`; method and caveats in [README.md](README.md).",
        "",
        *(f"- {name}: {value}" for name, value in facts.items()),
        "",
        "## Changes made searchable",
        "",
        "CPU is microseconds of a document: of this process, and of all servers.",
        "",
        "| what | documents/s | of raw bulk | CPU here | CPU of servers |",
        "|:--|--:|--:|--:|--:|",
        *(f"| {line.name} | {' | '.join(line.cells)} |" for line in bulk),
        "",
        f"## Pages of {SIZE} orders, one after the other",
        "",
        "A page asks the shard, then the read model; the last column compares p50 with both queries' sum.",
        "Beside the plain queries stand those that a page makes: of the shard also what changed, how far the",
        "read model has it, the fence and the catalog; of Elasticsearch by aliases that say which index each",
        "is, and once a second whether that is so. The rest of a page is the merge.",
        "",
        "| what | p50 ms | p99 ms | of the sum of its sources |",
        "|:--|--:|--:|--:|",
        *(f"| {line.name} | {' | '.join(line.cells)} |" for line in read),
    ]
    return "\n".join(lines) + "\n"


async def measure(directory: Path, documents: int, repeats: int) -> str:
    """Measure everything; the text of READ_SIDE.md."""
    facts = report.machine("18.4, fsync on")
    async with machine(directory) as run:
        bulk = await made_searchable(run, documents)
        for line in bulk:
            sys.stderr.write(f"{line.name}: {' '.join(line.cells)}\n")
        read = await pages(run, repeats)
    return document(facts, bulk, read)


def main() -> None:
    """Read the options, measure, write READ_SIDE.md."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--documents", type=int, default=40_000, help="changes to make searchable")
    parser.add_argument("--pages", type=int, default=300, help="pages of each line")
    parser.add_argument("--no-write", action="store_true", help="print instead of writing READ_SIDE.md")
    wanted = parser.parse_args()
    directory = Path(tempfile.mkdtemp(prefix="bench-", dir=places.user_root()))
    directory.chmod(0o755)
    try:
        text = quietly(measure(directory, wanted.documents, wanted.pages))
    except OpsError as failed:
        sys.exit(f"error: {failed}")
    finally:
        shutil.rmtree(directory, ignore_errors=True)
    if wanted.no_write:
        print(text)
    else:
        RESULTS.write_text(text, encoding="utf-8")
        print(f"wrote {RESULTS}")


if __name__ == "__main__":
    main()
