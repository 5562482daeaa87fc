"""Seeding real shards: the audit passes, lists show what was seeded, and a second run adds nothing."""

from collections.abc import Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import asyncpg
import pytest

from chassis.ids import user_bucket
from chassis.placement import Held
from history_svc.catalog import State
from history_svc.document import month_of
from history_svc.page import NEWEST, OLDEST, Filter, Key, Window
from history_svc.reader import Reader, Wish
from history_svc.search import Searcher
from history_svc.settings import HistorySettings
from history_svc.store import Shards
from ops import audit, seed
from ops.seed import Outcome, Plan, PlanRefused
from ops.seed.drafts import Drafts
from ops.seed.lives import Life, lived
from ops.seed.run import KINDS
from ops.seed.shard import ShardRefused
from ops.stack.endpoints import Upstream
from ops.upstream.ledger import Ledger
from tests.audits import Stores, stores
from tests.readmodels import MemoryReadModel

__all__ = ["stores"]

PLAN = Plan(users=12, orders=900, months=2, seed=5, heavy_share=0.4)
SIZE = 37
READ_S = 5.0
SERVING = """
INSERT INTO ordermesh.projection_index
       (month, generation, index_name, cluster_uuid, index_uuid, state, catalog_version, created_at)
SELECT date_trunc('month', ordermesh.clock() - interval '49 hours', 'UTC')::date, 1, 'orders-v1', 'c', 'i',
       'SERVING', 0, clock_timestamp()"""


ARCHIVING = """
INSERT INTO ordermesh.archive_months
       (month, archive_id, state, reach, begins_at, ends_at, actor, reason, created_at, updated_at)
SELECT m, gen_random_uuid(), 'WANTED', 'DROPPED', m, m + interval '1 month', 'a test', 'it is old',
       now(), now()
  FROM (SELECT date_trunc('month', now() - interval '40 days')::date AS m) AS x"""


@dataclass
class Field:
    """Two shards with the ledgers of both upstreams."""

    stores: Stores
    ledgers: dict[str, Path]

    async def seed(self, plan: Plan = PLAN, **options: Any) -> Outcome:
        return await seed.run(plan, self.stores.shards, self.ledgers, **options)

    async def broken(self) -> list[str]:
        upstreams = [
            Upstream(name=name, target="127.0.0.1:1", ledger=str(path)) for name, path in self.ledgers.items()
        ]
        endpoints = self.stores.endpoints.model_copy(update={"upstreams": tuple(upstreams)})
        found = await audit.run(endpoints)
        return [f"{each.check}: {each.first[0]}" for each in found if each.count]

    async def rows(self, statement: str, *values: object) -> list[Any]:
        found: list[Any] = []
        for dsn in self.stores.shards.values():
            session = await asyncpg.connect(dsn, server_settings={"search_path": "ordermesh, public"})
            found += await session.fetch(statement, *values)
            await session.close()
        return found


@pytest.fixture
def field(stores: Stores) -> Field:
    ledgers = {"payments": stores.ledger, "fulfilment": stores.ledger.with_name("fulfilment.db")}
    with Ledger.open(ledgers["fulfilment"]):
        pass
    return Field(stores, ledgers)


def expected(outcome: Outcome) -> list[Life]:
    """What the plan makes, drawn again."""
    drafts = Drafts(outcome.plan, outcome.until, KINDS)
    now = datetime.now(UTC)
    return [
        lived(drafts.draft(number), until=outcome.until, now=now) for number in range(outcome.plan.orders)
    ]


async def test_seeded_shards_pass_the_audit_and_a_second_run_adds_nothing(field: Field) -> None:
    told: list[int] = []
    first = await field.seed(progress=told.append)
    assert (first.added, first.there_before) == (PLAN.orders, 0)
    assert told[-1] == PLAN.orders
    assert await field.broken() == []

    again = await field.seed()
    assert (again.added, again.there_before, again.until) == (0, PLAN.orders, first.until)
    assert await field.rows("SELECT FROM outbox WHERE user_id LIKE 'seed.%'") == []
    assert await field.broken() == []


async def test_months_that_are_written_aside_are_partitions_like_all_others(field: Field) -> None:
    await field.seed(Plan(users=5, orders=300, months=4, seed=9))
    tables = await field.rows(
        "SELECT c.relname, array_agg(DISTINCT t.tgname ORDER BY t.tgname) AS triggers, "
        "       (SELECT count(*) FROM pg_index x WHERE x.indrelid = c.oid) AS indexes, c.reloptions "
        "  FROM pg_inherits i JOIN pg_class c ON c.oid = i.inhrelid JOIN pg_trigger t ON t.tgrelid = c.oid "
        " WHERE i.inhparent IN ('orders'::regclass, 'order_journal'::regclass) AND t.tgenabled = 'A' "
        " GROUP BY c.oid, c.relname, c.reloptions"
    )
    for parent in ("orders_2", "order_journal_2"):
        kinds = {str(dict(row) | {"relname": ""}) for row in tables if row["relname"].startswith(parent)}
        assert len(kinds) == 1, kinds
    assert sum(row["relname"].startswith("orders_2") for row in tables) >= 2 * (4 + 3)


async def test_an_archived_month_is_not_seeded(field: Field) -> None:
    for dsn in field.stores.shards.values():
        session = await asyncpg.connect(dsn)
        await session.execute(ARCHIVING)
        await session.close()
    with pytest.raises(ShardRefused, match="is archived"):
        await field.seed()


async def test_a_run_that_was_cut_off_is_completed_by_the_next_one(field: Field) -> None:
    class CutOff(Exception):
        """The process dies here."""

    def die(done: int) -> None:
        if done > PLAN.orders * 0.9:
            raise CutOff

    with pytest.raises(CutOff):
        await field.seed(progress=die)
    there = len(await field.rows("SELECT FROM orders WHERE user_id LIKE 'seed.%'"))
    assert 0 < there < PLAN.orders
    rest = await field.seed()
    assert rest.added == PLAN.orders - there
    assert await field.broken() == []


async def test_the_same_seed_with_other_arguments_is_refused(field: Field) -> None:
    await field.seed()
    with pytest.raises(PlanRefused, match="--seed 5 was used with other arguments"):
        await field.seed(Plan(users=12, orders=901, months=2, seed=5, heavy_share=0.4))
    more = await field.seed(Plan(users=3, orders=50, months=1, seed=6))
    assert more.added == 50
    assert await field.broken() == []


@asynccontextmanager
async def reader(shards: Mapping[str, str]):
    settings = HistorySettings(tls_dir=Path(), subject_dir=Path(), profile="local", shards=shards)
    async with Shards.open(settings) as opened:
        yield Reader(opened, Searcher(MemoryReadModel(), READ_S), timedelta(days=2))


async def walk(reads: Reader, user_id: str, shard: str, wanted: Filter) -> list[Any]:
    placement = {shard: (Held(user_bucket(user_id), 1),)}
    before: Key | None = NEWEST
    rows: list[Any] = []
    while before is not None:
        wish = Wish(Window(user_id, before, OLDEST, wanted), SIZE)
        served = await reads.read(placement, wish, now=datetime.now(UTC), timeout_s=READ_S)
        rows += served.page.rows
        before = served.page.next_after
    return rows


async def test_a_walk_over_a_seeded_history_shows_exactly_what_was_seeded(field: Field) -> None:
    outcome = await field.seed()
    everyone = expected(outcome)
    async with reader(field.stores.shards) as reads:
        for user_id in PLAN.user_ids():
            shard = "s1" if user_bucket(user_id) < 2048 else "s2"
            theirs = [life for life in everyone if life.order.user_id == user_id]
            theirs.sort(key=lambda life: (life.order.created_at, life.order.order_id), reverse=True)
            for wanted in (Filter(), Filter(status="FAILED"), Filter(kind="purchase", status="SUCCESS")):
                shown = await walk(reads, user_id, shard, wanted)
                assert [(row.key.order_id, row.version) for row in shown] == [
                    (life.order.order_id, life.order.version)
                    for life in theirs
                    if wanted.status in (None, life.order.status) and wanted.kind in (None, life.order.kind)
                ]


async def test_a_month_that_gets_rows_is_not_served_until_it_is_built_again(field: Field) -> None:
    await field.stores.sql("s1", SERVING)
    outcome = await field.seed()
    listed = await field.rows(
        "SELECT month, generation, state FROM projection_index ORDER BY month, generation"
    )
    states = {(row["month"], row["generation"], row["state"]) for row in listed}
    older, last = outcome.months
    assert states == {(older, 1, State.BUILDING), (last, 1, State.BUILDING), (last, 2, State.BUILDING)}

    await field.seed(Plan(users=3, orders=50, months=2, seed=6))
    planned = await field.rows("SELECT FROM projection_index")
    assert len(planned) == len(listed), "what is planned and was not begun will have these rows as well"
    assert last == month_of(outcome.until - timedelta(milliseconds=1))
