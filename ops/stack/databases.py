"""Makes the databases of the stack and fills the map; everything may be repeated, so a second start works
on kept data.
"""

from __future__ import annotations

from importlib import resources
from typing import TYPE_CHECKING

import asyncpg

from ops.errors import OpsError
from ops.stack import layout

if TYPE_CHECKING:
    from collections.abc import Mapping
    from importlib.resources.abc import Traversable

    from ops.postgres import PostgresServer

CONNECT_TIMEOUT_S = 5.0
READ_MODEL = "readmodel"
_WAS_PLACED = "SELECT EXISTS (SELECT FROM ordermesh.user_bucket WHERE user_id = $1)"
"""Placing a user without a move is right only before their first order."""
_HAS_SCHEMA = "SELECT to_regnamespace('ordermesh') IS NOT NULL"
_HAS_MIGRATIONS = "SELECT to_regclass('ordermesh.schema_migrations') IS NOT NULL"
_MIGRATIONS = "SELECT name FROM ordermesh.schema_migrations"
FIRST_OF_CONTROL = "0001_initial"
"""A control database that has no list of its migrations has this one."""


async def prepare_control(server: PostgresServer) -> None:
    """Make the control database, or bring an older one up to date."""
    await _create(server, "control", "control")


async def prepare_shard(server: PostgresServer, shard: str) -> None:
    """Make one shard's database, or bring an older one up to date; name it, and give it the fence rows of the
    buckets it owns.
    """
    await _create(server, shard, "shard")
    connection = await _connect(server.dsn(shard))
    try:
        await connection.execute(
            "SELECT ordermesh.identify_shard($1, $2)", shard, layout.PARTITION_BASE[shard]
        )
        for first, last in _owned_ranges(shard):
            await connection.execute("SELECT ordermesh.own_buckets($1, $2, $3)", first, last, shard)
        await connection.execute("SELECT ordermesh.ensure_partitions()")
    finally:
        await connection.close()


async def prepare_read_model(server: PostgresServer) -> str:
    """Make the database of the read model that needs no Elasticsearch, or bring an older one up to date; its
    address.
    """
    await _create(server, READ_MODEL, READ_MODEL)
    return server.dsn(READ_MODEL)


async def fill_map(
    server: PostgresServer, *, lanes: Mapping[str, str], history: str, services: Mapping[str, str]
) -> None:
    """Tell the control database where everything is.

    lanes: address of each shard's order_svc. history: of the one process that serves the lists of every shard
    and the searches over all of them.
    """
    connection = await _connect(server.dsn("control"))
    try:
        for shard, lane in lanes.items():
            is_vip = shard == layout.VIP_SHARD
            await connection.execute(
                "SELECT ordermesh.put_shard($1, $2, $3, $4)", shard, is_vip, lane, history
            )
        for service, target in {**services, "history_svc": history}.items():
            await connection.execute("SELECT ordermesh.put_service($1, $2)", service, target)
        await connection.execute("SELECT ordermesh.deal_buckets(VARIADIC $1::text[])", list(layout.SHARDS))
        if not await connection.fetchval(_WAS_PLACED, layout.VIP_USER):
            await connection.execute(
                "SELECT ordermesh.place_vip($1, $2, $3)", layout.VIP_USER, layout.VIP_BUCKET, layout.VIP_SHARD
            )
    finally:
        await connection.close()


def _owned_ranges(shard: str) -> tuple[tuple[int, int], ...]:
    """First and last bucket of each run a shard owns; `deal_buckets` deals in the same equal runs."""
    if shard == layout.VIP_SHARD:
        return ((layout.VIP_BUCKET, layout.VIP_BUCKET),)
    share = 4096 // len(layout.SHARDS)
    first = layout.SHARDS.index(shard) * share
    return ((first, first + share - 1),)


async def _create(server: PostgresServer, name: str, kind: str) -> None:
    await server.create_database(name)
    connection = await _connect(server.dsn(name))
    try:
        scripts = await _missing(connection, kind)
        for script in scripts:
            async with connection.transaction():
                await connection.execute(script.read_text(encoding="utf-8"))
    finally:
        await connection.close()


def schema_of(kind: str) -> list[Traversable]:
    """The scripts that make a new database of a kind, in order: `schema.sql`, then `schema_*.sql`."""
    scripts = resources.files("db").joinpath(kind).iterdir()
    return sorted((each for each in scripts if each.name.startswith("schema")), key=lambda each: each.name)


async def _missing(connection: asyncpg.Connection, kind: str) -> list[Traversable]:
    """What a database still needs: the whole schema, or the migrations that are newer than its data."""
    if not await connection.fetchval(_HAS_SCHEMA):
        return schema_of(kind)
    applied = {FIRST_OF_CONTROL}
    if await connection.fetchval(_HAS_MIGRATIONS):
        applied = {row["name"] for row in await connection.fetch(_MIGRATIONS)}
    known = sorted(
        resources.files("db").joinpath(kind).joinpath("migrations").iterdir(), key=lambda script: script.name
    )
    return [script for script in known if script.name.removesuffix(".sql") not in applied]


async def _connect(dsn: str) -> asyncpg.Connection:
    try:
        return await asyncpg.connect(dsn, timeout=CONNECT_TIMEOUT_S, command_timeout=30.0)
    except (OSError, asyncpg.PostgresError) as failed:
        raise OpsError(f"a Postgres server that was just started does not answer: {failed}") from failed
