"""Rows of real shards become a segment and come back as they were."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import asyncpg
import pytest

from archive_svc.codec.proof import prove
from archive_svc.codec.reading import SparseFile, csv_rows, ranges_of, read_groups
from archive_svc.codec.writer import SegmentWriter
from archive_svc.columns import COPY_BACK_OPTIONS, COPY_OPTIONS, ORDERS, SHAPES, Shape
from archive_svc.segment import RowsRefused, Segment, Sum
from ops import seed
from ops.seed import Plan
from tests.archives import ABOUT
from tests.databases import Database

BLOCK_BYTES = 64 * 1024
COLUMNS = """
SELECT attname AS name, format_type(atttypid, atttypmod) AS type, NOT attnotnull AS nullable
FROM pg_attribute WHERE attrelid = $1::regclass AND attnum > 0 AND NOT attisdropped ORDER BY attnum"""
_TEXTS = r"""
WITH odd (n, said) AS (
  SELECT row_number() OVER (), said FROM (VALUES
    (''), ('"'), ('""'), ('a "quoted", b'), (E'line
line'), (E'
'), (E'
'), (E'
'), (E'\.'),
    (E'
\.
'), (E'"
\.
"'), (E'\N'), ('NULL'), ('null'), ('NaN'), (' '), (E' x	'), (E''),
    (','), ('-0'), ('0x10'), ('1e3'), ('2023-08-01'), ('true'), (E'﻿'), ('नमस्ते दुनिया'), ('தமிழ்'), ('বাংলা'),
    (E'שלום ‮ عربى'), ('🧾👩🏽‍🚀'), (E'é é'), (repeat('"', 511)), (repeat('ß', 512))
  ) AS v (said))"""
TORTURE = {
    "orders": _TEXTS
    + r"""
INSERT INTO source
SELECT gen_random_uuid(), timestamptz '2023-08-01 00:00+00' + n * interval '1 microsecond',
       'u' || n % 3, n, 2 ^ 62, said, (ARRAY[1, 9223372036854775807])[1 + n % 2],
       (ARRAY['PENDING', 'SUCCESS', 'FAILED'])[1 + n % 3],
       'DONE', said, ARRAY[said, 'payments', NULL, '[1,"2"]'], 2147483647, -2147483648,
       (ARRAY[9223372036854775807, -9223372036854775808, 42, 0])[1 + n % 4],
       (ARRAY['JPY', 'KWD', 'EUR'])[1 + n % 3], (ARRAY[0, 3, 2])[1 + n % 3], said,
       jsonb_build_object(said, said,
         'n', '1.00'::jsonb, 'huge', '1e400'::jsonb, 'deep', '[{}, null]'::jsonb),
       said, said, CASE WHEN n % 2 = 0 THEN said END, gen_random_uuid(),
       timestamptz '1969-12-31 23:59:59.999999+00' - n * interval '300 days 1 microsecond',
       CASE WHEN n % 2 = 0 THEN timestamptz '9999-12-31 23:59:59.999999+00' END,
       CASE WHEN n % 3 = 0 THEN timestamptz '4713-01-01 00:00:00.000001+00 BC' END, said, 32767
FROM odd""",
    "order_journal": _TEXTS
    + r"""
INSERT INTO source
SELECT '00000000-0000-0000-0000-000000000001', timestamptz '2023-08-31 23:59:59.999999+00', 'u', 0, -1,
       9223372036854775807 - n, gen_random_uuid(), said, CASE WHEN n % 2 = 0 THEN said END, said,
       CASE WHEN n % 3 = 0 THEN said END, said, 0, 0, said, CASE WHEN n % 5 = 0 THEN said END,
       to_jsonb(said), said, timestamptz '292277-01-09 04:00:54.775806+00' - n * interval '1 microsecond'
FROM odd""",
}
both_shapes = pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)


@pytest.fixture
async def database(shard_database: Callable[[], Awaitable[Database]]) -> Database:
    return await shard_database()


@pytest.fixture
async def session(database: Database) -> AsyncIterator[asyncpg.Connection]:
    session = await asyncpg.connect(
        database.dsn, timeout=10, command_timeout=60, server_settings={"search_path": "ordermesh, public"}
    )
    yield session
    await session.close(timeout=5)


async def archived(
    session: asyncpg.Connection, shape: Shape, table: str, block_bytes: int = BLOCK_BYTES
) -> Segment:
    """Everything in a table as a segment."""
    writer = SegmentWriter(shape, ABOUT)
    block = bytearray()

    async def take(data: bytes) -> None:
        block.extend(data)
        if len(block) >= block_bytes:
            writer.add(bytes(block))
            block.clear()

    sql = f"SELECT {shape.select_list('t')} FROM {table} AS t ORDER BY {shape.order_by('t')}"
    await session.copy_from_query(sql, output=take, **COPY_OPTIONS)
    writer.add(bytes(block))
    return writer.close()


async def restored(session: asyncpg.Connection, shape: Shape, segment: Segment) -> str:
    """A new table like the real one, with the rows of a segment."""
    await session.execute("DROP TABLE IF EXISTS pg_temp.staging, pg_temp.restored")
    await session.execute(f"CREATE TEMP TABLE staging ({shape.staging_columns()})")
    await session.execute(f"CREATE TEMP TABLE restored (LIKE ordermesh.{shape.table})")

    async def rows() -> AsyncIterator[bytes]:
        for block in csv_rows(shape, segment.body):
            yield block

    await session.copy_to_table("staging", source=rows(), **COPY_BACK_OPTIONS)
    await session.execute(
        f"INSERT INTO restored ({shape.column_list()}) SELECT {shape.restore_list('s')} FROM staging AS s"
    )
    return "restored"


async def differing(session: asyncpg.Connection, one: str, other: str) -> list[Any]:
    """Rows of either table that the other does not have as often; equal rows have the same text, too."""
    found: list[Any] = []
    for left, right in ((one, other), (other, one)):
        found += await session.fetch(
            f"SELECT t::text, t.* FROM {left} AS t EXCEPT ALL SELECT t::text, t.* FROM {right} AS t"
        )
    return found


async def summed(session: asyncpg.Connection, shape: Shape, table: str) -> tuple[Sum, ...]:
    """The sums of a table, by Postgres."""
    by = ", ".join(shape.sum_by)
    rows = await session.fetch(f"SELECT {shape.sums_list('t')} FROM {table} AS t GROUP BY {by}")
    found = [
        Sum(tuple(row[name] for name in shape.sum_by), row["rows"], row["total"] and int(row["total"]))
        for row in rows
    ]
    return tuple(sorted(found))


@both_shapes
async def test_a_shape_has_every_column_of_its_table(session: asyncpg.Connection, shape: Shape) -> None:
    """Whoever adds a column there has to say here how it is archived, or the archive would lose it."""
    rows = await session.fetch(COLUMNS, f"ordermesh.{shape.table}")
    assert [(c.name, c.type.sql, c.nullable) for c in shape.columns] == [tuple(row) for row in rows]


@both_shapes
async def test_tortured_rows_come_back_bit_for_bit(session: asyncpg.Connection, shape: Shape) -> None:
    await session.execute(f"CREATE TEMP TABLE source (LIKE ordermesh.{shape.table})")
    await session.execute(TORTURE[shape.table])
    segment = await archived(session, shape, "source", block_bytes=1)
    prove(shape, segment.body, segment.facts)
    assert segment.facts.rows == await session.fetchval("SELECT count(*) FROM source") > 20
    assert segment.facts.sums == await summed(session, shape, "source")
    table = await restored(session, shape, segment)
    assert await differing(session, "source", table) == []


async def test_a_seeded_shard_comes_back_bit_for_bit(session: asyncpg.Connection, database: Database) -> None:
    """Orders and journals as the domain's functions make them; a user's rows are those that SQL finds."""
    await session.execute(
        "SELECT ordermesh.identify_shard('s1'); SELECT ordermesh.own_buckets(0, 4095, 's1')"
    )
    await seed.run(Plan(users=30, orders=3000, months=2, seed=5, heavy_share=0.4), {"s1": database.dsn}, {})
    for shape in SHAPES.values():
        segment = await archived(session, shape, shape.table)
        prove(shape, segment.body, segment.facts)
        assert segment.facts.rows >= 3000
        assert segment.facts.sums == await summed(session, shape, shape.table)
        table = await restored(session, shape, segment)
        assert await differing(session, shape.table, table) == []
        for user_id in ("seed.5.heavy", "seed.5.7"):
            his = f"FROM {shape.table} AS t WHERE user_id = $1 ORDER BY {shape.order_by('t')}"
            expected = [
                row["id"] for row in await session.fetch(f"SELECT order_id::text AS id {his}", user_id)
            ]
            assert read(shape, segment, user_id).column("order_id").to_pylist() == expected != []


def read(shape: Shape, segment: Segment, user_id: str) -> Any:
    """A user's rows, out of his groups."""
    facts = segment.facts
    groups = facts.groups_of(user_id)
    parts = {at: segment.body[at : at + size] for at, size in ranges_of(facts, groups)}
    return read_groups(shape, facts, SparseFile(facts.size_bytes, parts), groups, user_id=user_id)


async def test_a_session_s_settings_change_nothing(session: asyncpg.Connection) -> None:
    """Neither on the way out nor back: another zone, another style, fewer digits."""
    await session.execute("CREATE TEMP TABLE source (LIKE ordermesh.orders)")
    await session.execute(TORTURE["orders"])
    segment = await archived(session, ORDERS, "source")
    await session.execute(
        "SET TimeZone = 'Asia/Kathmandu'; SET DateStyle = 'German'; SET IntervalStyle = 'sql_standard';"
        "SET extra_float_digits = -15"
    )
    assert (await archived(session, ORDERS, "source")).facts.stream_sha256 == segment.facts.stream_sha256
    table = await restored(session, ORDERS, segment)
    assert await differing(session, "source", table) == []


@pytest.mark.parametrize(
    ("column", "value"),
    [
        ("updated_at", "timestamptz 'infinity'"),
        ("updated_at", "timestamptz '294276-12-31 23:59:59+00'"),
        ("legs", "'[0:0]={payments}'::text[]"),
        ("legs", "'{{payments},{fulfilment}}'::text[]"),
    ],
)
async def test_what_a_segment_cannot_say_is_refused(
    session: asyncpg.Connection, column: str, value: str
) -> None:
    await session.execute("CREATE TEMP TABLE source (LIKE ordermesh.orders)")
    await session.execute(TORTURE["orders"])
    await session.execute(f"UPDATE source SET {column} = {value} WHERE amount_minor = 42")
    with pytest.raises((asyncpg.DataError, asyncpg.FeatureNotSupportedError, RowsRefused)):
        await archived(session, ORDERS, "source")
