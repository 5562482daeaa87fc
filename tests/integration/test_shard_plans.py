"""The plan of every hot statement over 27 months of orders: no more partitions than needed, by an index."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import Any
from uuid import UUID, uuid4

import asyncpg
import pytest

from chassis.ids import OrderIds, user_bucket
from order_svc import rows
from order_svc.domain import open_order, transition
from order_svc.events import Verdict
from order_svc.order import Change, Seen, Tally
from order_svc.store import queries
from tests.databases import Databases
from tests.shards import opened
from tests.unit.orders import rules, told, wish

MONTHS = 27
ORDERS_PER_MONTH = 300
SETTINGS = {"search_path": "ordermesh", "plan_cache_mode": "force_generic_plan", "timezone": "UTC"}


@dataclass(frozen=True, slots=True)
class Past:
    """A shard with years of orders, and one of them."""

    connection: asyncpg.Connection
    seen: Seen

    async def explain(self, name: str, *args: object) -> list[dict[str, Any]]:
        """The nodes of a named statement's generic plan that were executed. Nothing it writes is kept."""
        transaction = self.connection.transaction()
        await transaction.start()
        try:
            await self.connection.execute(f"PREPARE hot AS {getattr(queries, name)}")
            arguments = ", ".join(map(literal, args))
            plan = await self.connection.fetchval(f"EXPLAIN (ANALYZE, FORMAT JSON) EXECUTE hot({arguments})")
            return [node for node in nodes(json.loads(plan)[0]["Plan"]) if node["Actual Loops"] > 0]
        finally:
            await transaction.rollback()
            await self.connection.execute("DEALLOCATE ALL")


def literal(value: object) -> str:
    """Any argument as a literal that takes the type of its place."""
    match value:
        case None:
            return "NULL"
        case bool():
            return str(value).lower()
        case bytes():
            return f"'\\x{value.hex()}'"
        case dict():
            return f"'{json.dumps(value)}'"
        case list():
            return "'{" + ",".join(f'"{each}"' for each in value) + "}'"
        case timedelta():
            return f"'{value.total_seconds()} seconds'"
        case _:
            return f"'{value}'"


def nodes(plan: dict[str, Any]) -> Iterator[dict[str, Any]]:
    yield plan
    for child in plan.get("Plans", ()):
        yield from nodes(child)


def partitions(executed: list[dict[str, Any]], parent: str) -> set[str]:
    names = {node.get("Relation Name", "") for node in executed}
    return {name for name in names if name.startswith(f"{parent}_20")}


def sequential(executed: list[dict[str, Any]]) -> set[str]:
    """Tables that were read from end to end; tables of a handful of rows may be."""
    small = {"shard_identity", "holds", "clock_offset", "bucket_fence"}
    return {node["Relation Name"] for node in executed if node["Node Type"] == "Seq Scan"} - small


@pytest.fixture(scope="module")
async def past(databases: Databases) -> AsyncIterator[Past]:
    database = await databases.create("shard")
    async with opened(database) as shard:
        for back in range(MONTHS):
            await shard.db.execute(
                "SELECT ordermesh.ensure_month(date_trunc('month', now()) - $1 * interval '1 month')", back
            )
        # No cache: explain() deallocates what the driver would keep.
        connection = await asyncpg.connect(database.dsn, server_settings=SETTINGS, statement_cache_size=0)
        await fill(connection)
        order = (await shard.create()).order
        seen = Seen(order, Tally(), None, order.created_at)
        await connection.execute("ANALYZE")
        yield Past(connection, seen)
        await connection.close()
    await databases.drop(database)


async def fill(connection: asyncpg.Connection) -> None:
    """Unsettled orders of 40 users, evenly over the months, each with timer and journal entry."""
    now = datetime.now(UTC)
    step = timedelta(days=30.4 * (MONTHS - 1)) / (MONTHS * ORDERS_PER_MONTH)
    columns = ("order_id", "created_at", "user_id", "bucket")
    written = []
    for number in range(MONTHS * ORDERS_PER_MONTH):
        at, user = whole_ms(now - number * step - timedelta(hours=1)), f"u{number % 40}"
        order_id = OrderIds(now_ms=partial(round, at.timestamp() * 1000)).new(user_bucket(user))
        written.append((order_id, at, user, user_bucket(user)))
    await connection.execute(
        "CREATE TEMP TABLE wanted (order_id uuid, created_at timestamptz, user_id text, bucket int)"
    )
    await connection.copy_records_to_table("wanted", records=written, columns=columns)
    await connection.execute(
        """
        INSERT INTO orders (order_id, created_at, user_id, bucket, read_routing, version, status, stage, kind,
                            legs, leg, attempt, amount_minor, currency_code, currency_exp, request_id,
                            updated_at)
        SELECT order_id, created_at, user_id, bucket, user_id, 1, 'PENDING', 'UNKNOWN', 'payment',
               '{payments}', 0, 1, 100, 'EUR', 2, gen_random_uuid(), created_at
          FROM wanted;
        INSERT INTO order_timers (order_id, created_at, user_id, bucket, upstream, stage, class, due_at)
        SELECT order_id, created_at, user_id, bucket, 'payments', 'UNKNOWN', 'PROBE',
               now() + interval '10 minutes' + (now() - created_at) / 20000
          FROM wanted;
        INSERT INTO idempotency_keys (user_id, request_id, order_id, created_at, bucket, fingerprint)
        SELECT user_id, gen_random_uuid(), order_id, created_at, bucket, 'f' FROM wanted;
        INSERT INTO order_journal (order_id, created_at, user_id, bucket, version, event_id, kind, to_status,
                                   to_stage, leg, attempt, actor, evidence, at)
        SELECT order_id, created_at, user_id, bucket, 1, gen_random_uuid(), 'OPENED', 'PENDING',
               'UNKNOWN', 0, 1, 'a', '{}', created_at
          FROM wanted;
        INSERT INTO dead_letters (dead_letter_id, order_id, created_at, user_id, bucket, reason, severity,
                                  evidence, opened_at, opened_version)
        SELECT gen_random_uuid(), order_id, created_at, user_id, bucket, 'POISON', 2,
               '{}', created_at, 1
          FROM wanted
        """
    )


def whole_ms(at: datetime) -> datetime:
    return at.replace(microsecond=at.microsecond // 1000 * 1000)


async def test_months_are_there_to_be_left_alone(past: Past) -> None:
    count = "SELECT count(*) FROM pg_inherits WHERE inhparent = 'ordermesh.orders'::regclass"
    assert await past.connection.fetchval(count) >= MONTHS


@pytest.mark.parametrize("name", ["get_order", "see_order", "list_events", "find_key"])
async def test_a_read_of_one_order_touches_one_month_by_index(past: Past, name: str) -> None:
    order = past.seen.order
    arguments: dict[str, tuple[object, ...]] = {
        "get_order": (order.order_id, order.created_at, order.bucket),
        "see_order": (order.order_id, order.created_at, order.bucket, uuid4()),
        "list_events": (order.order_id, order.created_at, order.bucket, 0, 50),
        "find_key": (order.user_id, order.request_id, order.bucket),
    }
    executed = await past.explain(name, *arguments[name])
    assert len(partitions(executed, "orders")) <= 1
    assert len(partitions(executed, "order_journal")) <= 1
    assert sequential(executed) == set()


async def test_a_change_touches_one_month_by_index(past: Past) -> None:
    seen = past.seen
    change = transition(seen, told(seen, Verdict.SUCCEEDED), rules(), jitter=0.5)
    assert isinstance(change, Change)
    executed = await past.explain("apply_change", *rows.change(change))
    assert partitions(executed, "orders") == {f"orders_{seen.order.created_at:%Y_%m}"}
    assert partitions(executed, "order_journal") == set()
    assert sequential(executed) == set()


async def test_a_create_reads_no_month_at_all(past: Past) -> None:
    order = past.seen.order
    ids = OrderIds(now_ms=lambda: round(order.created_at.timestamp() * 1000))
    change = open_order(replace(wish(), order_id=ids.new(order.bucket)), rules())
    executed = await past.explain("create_order", *rows.creation(change, 1, b"f"))
    assert partitions(executed, "orders") == set()
    assert sequential(executed) == set()


async def test_a_claim_reads_timers_by_index_and_the_months_of_what_it_claims(past: Past) -> None:
    await past.connection.execute(
        "UPDATE order_timers SET due_at = now() - interval '1 s', route_epoch = NULL WHERE order_id = $1",
        past.seen.order.order_id,
    )
    executed = await past.explain("claim_due", "PROBE", 16, 4, timedelta(seconds=30), "r1", None)
    assert partitions(executed, "orders") == {f"orders_{past.seen.order.created_at:%Y_%m}"}
    assert {"order_timers_of_upstream", "order_timers_leased"} <= {
        node.get("Index Name") for node in executed
    }
    assert sequential(executed) == set()
    one = await past.explain("claim_one", past.seen.order.order_id, "r1", timedelta(seconds=30))
    assert len(partitions(one, "orders")) == 1
    assert sequential(one) == set()


def rows_read(executed: list[dict[str, Any]], table: str) -> int:
    """How many rows of a table were looked at, whether or not they were of any use."""
    return sum(
        node["Actual Loops"] * (node["Actual Rows"] + node.get("Rows Removed by Filter", 0))
        for node in executed
        if node.get("Relation Name") == table and "Scan" in node["Node Type"]
    )


async def test_a_claim_reads_nothing_of_a_backlog_that_is_held_or_not_asked_for(past: Past) -> None:
    order, lease = past.seen.order, timedelta(seconds=30)
    transaction = past.connection.transaction()
    await transaction.start()
    try:
        await past.connection.execute(
            "UPDATE order_timers SET due_at = now() - interval '1 h', route_epoch = NULL"
        )
        everything = await past.explain("claim_due", "PROBE", 16, 4, lease, "r1", None)
        assert rows_read(everything, "order_timers") < 200, "a backlog is read as far as it is claimed"
        await past.connection.execute(
            "UPDATE order_timers SET upstream = 'fulfilment', route_epoch = NULL"
            f" WHERE order_id = {literal(order.order_id)}"
        )
        other = await past.explain("claim_due", "PROBE", 16, 16, lease, "r1", "fulfilment")
        assert rows_read(other, "order_timers") < 20
        await past.connection.execute(
            "INSERT INTO holds (hold_id, scope, reason, actor, created_at)"
            " VALUES (gen_random_uuid(), 'upstream:payments', 'down', 'mira', now())"
        )
        held = await past.explain("claim_due", "PROBE", 16, 4, lease, "r1", None)
        assert rows_read(held, "order_timers") < 20
        assert partitions(held, "orders") == {f"orders_{order.created_at:%Y_%m}"}
        assert sequential(held) == set()
    finally:
        await transaction.rollback()


async def test_some_orders_are_read_from_their_months_only(past: Past) -> None:
    newest = "SELECT order_id, created_at, bucket FROM orders ORDER BY created_at DESC LIMIT 5"
    some = await past.connection.fetch(newest)
    executed = await past.explain("get_orders", *(list(column) for column in zip(*some, strict=True)))
    assert partitions(executed, "orders") <= {f"orders_{row['created_at']:%Y_%m}" for row in some}
    assert sequential(executed) == set()


async def test_lists_of_waiting_orders_and_cases_are_read_in_index_order(past: Past) -> None:
    start = (datetime(1, 1, 2, tzinfo=UTC), UUID(int=0))
    due = await past.explain("list_due", *start, False, 20)
    assert "order_timers_due" in {node.get("Index Name") for node in due}
    assert sequential(due) == set()
    cases = await past.explain("list_dead_letters", *start, True, 20)
    assert "dead_letters_all" in {node.get("Index Name") for node in cases}
    case = await past.explain("get_dead_letter", past.seen.order.order_id, past.seen.order.bucket)
    assert sequential(cases + case) == set()


async def test_a_users_orders_of_two_days_are_read_from_two_months_at_most(past: Past) -> None:
    await past.connection.execute(
        "PREPARE page AS SELECT * FROM orders WHERE user_id = $1 AND created_at >= $2 AND created_at <= $3"
        " ORDER BY created_at DESC, order_id DESC LIMIT 20"
    )
    now = datetime.now(UTC)
    arguments = ", ".join(map(literal, ("u7", now - timedelta(hours=48), now)))
    plan = await past.connection.fetchval(f"EXPLAIN (ANALYZE, FORMAT JSON) EXECUTE page({arguments})")
    executed = [node for node in nodes(json.loads(plan)[0]["Plan"]) if node["Actual Loops"] > 0]
    assert 1 <= len(partitions(executed, "orders")) <= 2
    assert sequential(executed) == set()
