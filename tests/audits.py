"""A small mesh's stores for the audit's tests: two shards, a control database and one upstream's ledger,
all healthy.

It holds two orders of alice, one settled and one parked, written by SQL as order_svc writes them. Tests
break one thing and audit.
"""

import sqlite3
from contextlib import closing
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from uuid import UUID, uuid4

import asyncpg
import pytest

from chassis import ids
from chassis.clock import SYSTEM_CLOCK
from ops import audit
from ops.audit.findings import Finding
from ops.stack.endpoints import DatabaseEndpoint, Endpoints, Grpc, Tls, Upstream
from ops.upstream.ledger import Ledger
from tests.conftest import DatabaseFactory

USER = "alice"
BUCKET = ids.user_bucket(USER)

ORDER = """
INSERT INTO orders (order_id, created_at, user_id, bucket, route_epoch, read_routing, version, status, stage,
                    kind, legs, leg, attempt, amount_minor, currency_code, currency_exp, upstream_ref, basis,
                    request_id, updated_at, settled_at)
VALUES ($1, ordermesh.id_time($1), $2, ordermesh.id_bucket($1), NULL, $2, $3, $4, $5,
        'payment', '{payments}', 0, 1, 700, 'EUR', 2, $6, $7, $8, clock_timestamp(), $9)"""
JOURNAL = """
INSERT INTO order_journal (order_id, created_at, user_id, bucket, route_epoch, version, event_id, kind,
                           from_status, to_status, from_stage, to_stage, leg, attempt, actor, proof, evidence,
                           at)
VALUES ($1, ordermesh.id_time($1), $2, ordermesh.id_bucket($1), NULL, $3, gen_random_uuid(), $4,
        $5, $6, $7, $8, 0, 1, 'order_svc', $9, '{"verdict": "as told"}', clock_timestamp())"""
OUTBOX = """
INSERT INTO outbox (event_id, order_id, created_at, user_id, bucket, route_epoch, stream_partition,
                    read_routing, version, kind, occurred_at, payload)
SELECT event_id, order_id, created_at, user_id, bucket, NULL, 0, user_id, version, kind, at, '{}'
  FROM order_journal WHERE order_id = $1"""
KEY = """
INSERT INTO idempotency_keys (user_id, request_id, order_id, created_at, bucket, route_epoch, fingerprint,
                              expires_at)
SELECT user_id, request_id, order_id, created_at, bucket, NULL, '\\x00', settled_at + interval '72 hours'
  FROM orders WHERE order_id = $1"""
TIMER = """
INSERT INTO order_timers (order_id, created_at, user_id, bucket, route_epoch, upstream, stage, class, due_at)
SELECT order_id, created_at, user_id, bucket, NULL, 'payments', stage, 'PROBE',
       clock_timestamp() + interval '1 day'
  FROM orders WHERE order_id = $1"""
CASE = """
INSERT INTO dead_letters (dead_letter_id, order_id, created_at, user_id, bucket, route_epoch, reason,
                          severity, evidence, opened_at, opened_version)
SELECT gen_random_uuid(), order_id, created_at, user_id, bucket, NULL, 'PROBES_EXHAUSTED', 2,
       '{}', clock_timestamp(), version
  FROM orders WHERE order_id = $1"""
EXECUTION = """
INSERT INTO executions (key, order_id, leg, attempt, user_id, amount_minor, currency_code, verdict,
                        upstream_ref, at)
VALUES (:order_id || '/0', :order_id, 0, 1, 'alice', 700, 'EUR', 'SUCCEEDED', :ref, '2026-01-01T00:00:00Z')"""


@dataclass(frozen=True)
class Stores:
    """Everything an audit reads, and hands on each of it."""

    shards: dict[str, str]
    control: str
    ledger: Path
    settled: UUID
    parked: UUID

    @property
    def endpoints(self) -> Endpoints:
        databases = [DatabaseEndpoint(role="shard", shard=name, dsn=dsn) for name, dsn in self.shards.items()]
        nowhere = "127.0.0.1:1"
        return Endpoints(
            state="ready",
            stack_pid=1,
            gateway=f"http://{nowhere}",
            grpc=Grpc(plain=nowhere, mtls=nowhere),
            tls=Tls(ca="", cert="", key=""),
            services=(),
            databases=(*databases, DatabaseEndpoint(role="control", dsn=self.control)),
            upstreams=(Upstream(name="payments", target=nowhere, ledger=str(self.ledger)),),
            issuer=f"http://{nowhere}",
        )

    async def sql(self, where: str, *statements: str) -> None:
        """Run statements on a shard or on `control`; `:settled` and `:parked` stand for the two orders."""
        session = await asyncpg.connect(self.control if where == "control" else self.shards[where])
        try:
            for statement in statements:
                text = statement.replace(":settled", f"'{self.settled}'").replace(
                    ":parked", f"'{self.parked}'"
                )
                await session.execute(text)
        finally:
            await session.close()

    def ledger_sql(self, statement: str, **values: object) -> None:
        with closing(sqlite3.connect(self.ledger)) as ledger, ledger:
            ledger.execute(statement, values)

    def executed(self, order_id: UUID, ref: str) -> None:
        self.ledger_sql(EXECUTION, order_id=str(order_id), ref=ref)

    async def broken(self, *, quiet: bool = False) -> dict[str, Finding]:
        """Audit; the checks that found something."""
        return {each.check: each for each in await audit.run(self.endpoints, quiet=quiet) if each.count}


@pytest.fixture
async def stores(
    shard_database: DatabaseFactory, control_database: DatabaseFactory, tmp_path: Path
) -> Stores:
    """Healthy stores of their own for one test."""
    order_ids = ids.OrderIds(lambda: int(SYSTEM_CLOCK.now().timestamp() * 1000))
    with Ledger.open(tmp_path / "payments.db"):
        pass
    made = Stores(
        {name: (await shard_database()).dsn for name in ("s1", "s2")},
        (await control_database()).dsn,
        tmp_path / "payments.db",
        settled=order_ids.new(BUCKET),
        parked=order_ids.new(BUCKET),
    )
    for name, (first, last) in {"s1": (0, 2047), "s2": (2048, 4095)}.items():
        own = f"SELECT ordermesh.own_buckets({first}, {last}, '{name}')"
        await made.sql(name, f"SELECT ordermesh.identify_shard('{name}')", own)
        await made.sql("control", f"SELECT ordermesh.put_shard('{name}', false, 'h:1', 'h:2')")
    await made.sql("control", "SELECT ordermesh.deal_buckets('s1', 's2')")
    await _write_orders(made)
    return made


async def _write_orders(made: Stores) -> None:
    session = await asyncpg.connect(made.shards["s1"])
    now = SYSTEM_CLOCK.now() + timedelta(milliseconds=5)
    try:
        await session.execute(
            ORDER, made.settled, USER, 2, "SUCCESS", "DONE", "payments-1", "UPSTREAM", uuid4(), now
        )
        await session.execute(ORDER, made.parked, USER, 3, "PENDING", "PARKED", "", None, uuid4(), None)
        opened = (1, "OPENED", None, "PENDING", None, "SUBMITTING", None)
        for order_id, *entry in (
            (made.settled, *opened),
            (made.settled, 2, "SETTLED", "PENDING", "SUCCESS", "SUBMITTING", "DONE", "UPSTREAM_SUCCEEDED"),
            (made.parked, *opened),
            (made.parked, 2, "UNSURE", "PENDING", "PENDING", "SUBMITTING", "UNKNOWN", None),
            (made.parked, 3, "PARKED", "PENDING", "PENDING", "UNKNOWN", "PARKED", None),
        ):
            await session.execute(JOURNAL, order_id, USER, *entry)
        for order_id in (made.settled, made.parked):
            await session.execute(OUTBOX, order_id)
            await session.execute(KEY, order_id)
        await session.execute(TIMER, made.parked)
        await session.execute(CASE, made.parked)
    finally:
        await session.close()
    made.executed(made.settled, "payments-1")
