"""What an archived month keeps of each row: every column of orders and order_journal, there and back. Pure.

A column leaves by an SQL expression that COPY writes as CSV, lies in Parquet as a type that any engine reads,
and comes back by another expression out of the same text. A row that went both ways is the row it was; what
an expression cannot say exactly, it refuses. A test holds the shapes against the real tables, so that no
column that is added there is lost here.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from collections.abc import Mapping

SCHEMA_VERSION = 1
"""Of the shapes below; written into every segment. A change of a shape is a new one."""

COPY_OPTIONS: Mapping[str, Any] = {"format": "csv", "null": "", "force_quote": True, "encoding": "utf-8"}
"""How COPY has to write the rows, as asyncpg takes it. NULL is nothing, an empty text is two quotes."""
COPY_BACK_OPTIONS: Mapping[str, Any] = {"format": "csv", "null": "", "encoding": "utf-8"}
"""How COPY has to read them again, into a table of `Shape.staging_columns`."""

Arrow = Literal["string", "int16", "int32", "int64", "timestamp"]


@dataclass(frozen=True, slots=True)
class Type:
    """How a type of Postgres is archived.

    sql:   as format_type() says it.
    arrow: what it is in a segment; a timestamp is of microseconds, UTC.
    out:   with `{0}` for the column: the expression that COPY writes.
    back:  with `{0}` for that text: the column again.
    """

    sql: str
    arrow: Arrow
    out: str = "{0}"
    back: str = "{0}"


UUID = Type("uuid", "string", back="{0}::uuid")
TEXT = Type("text", "string")
SMALLINT = Type("smallint", "int16", back="{0}::smallint")
INTEGER = Type("integer", "int32", back="{0}::integer")
BIGINT = Type("bigint", "int64", back="{0}::bigint")
JSONB = Type("jsonb", "string", back="{0}::jsonb")
TIME = Type(
    "timestamp with time zone",
    "timestamp",
    # Numeric, so exact; an infinite one is refused by the cast.
    out="(extract(epoch FROM {0}) * 1000000)::bigint",
    # An interval times a number is floating point. Both are exact: 24 hours of microseconds end in 13 binary
    # zeros, the rest is below 2^37.
    back="(timestamptz 'epoch' + {0}::bigint / 86400000000 * interval '24 hours'"
    " + {0}::bigint % 86400000000 * interval '1 microsecond')",
)
TEXTS = Type(
    "text[]",
    "string",
    # What JSON cannot say, another lower bound or a second dimension, becomes NULL, which no segment takes.
    out="CASE WHEN array_ndims({0}) = 1 AND array_lower({0}, 1) = 1 THEN array_to_json({0})::text END",
    back="ARRAY(SELECT json_array_elements_text({0}::json))",
)


@dataclass(frozen=True, slots=True)
class Column:
    """One column of a table. repeats: a segment keeps each value once and points at it."""

    name: str
    type: Type
    nullable: bool = False
    repeats: bool = False


@dataclass(frozen=True, slots=True)
class Shape:
    """One table as it is archived.

    key:    by which its rows rise strictly in a segment. user_id and order_id rise by their bytes.
    sum_by: rows are counted by these columns; `sum_of`, when there is one, is summed up beside.
    """

    table: str
    columns: tuple[Column, ...]
    key: tuple[str, ...]
    sum_by: tuple[str, ...]
    sum_of: str | None = None
    version: int = field(default=SCHEMA_VERSION)

    @property
    def names(self) -> tuple[str, ...]:
        """Of the columns, in their order."""
        return tuple(column.name for column in self.columns)

    def select_list(self, alias: str) -> str:
        """What to COPY of the table called `alias`: every column, in order, each under its own name."""
        return ", ".join(f"{c.type.out.format(f'{alias}.{c.name}')} AS {c.name}" for c in self.columns)

    def order_by(self, alias: str) -> str:
        """How to sort them: the key. user_id is COLLATE "C" in the tables."""
        return ", ".join(f"{alias}.{name}" for name in self.key)

    def sums_list(self, alias: str) -> str:
        """What to select, grouped by `sum_by`, to get a segment's sums; the total is a numeric."""
        by = ", ".join(f"{alias}.{name}" for name in self.sum_by)
        total = f"sum({alias}.{self.sum_of})" if self.sum_of else "NULL::numeric"
        return f"{by}, count(*) AS rows, {total} AS total"

    def staging_columns(self) -> str:
        """The columns of a table that takes a segment's CSV as it is: all of them text."""
        return ", ".join(f"{column.name} text" for column in self.columns)

    def column_list(self) -> str:
        """The columns to insert into, in order."""
        return ", ".join(self.names)

    def restore_list(self, alias: str) -> str:
        """What to select of such a table, called `alias`, to get the columns as they were."""
        return ", ".join(f"{c.type.back.format(f'{alias}.{c.name}')} AS {c.name}" for c in self.columns)


ORDERS = Shape(
    table="orders",
    columns=(
        Column("order_id", UUID),
        Column("created_at", TIME),
        Column("user_id", TEXT, repeats=True),
        Column("bucket", INTEGER, repeats=True),
        Column("route_epoch", BIGINT, repeats=True),
        Column("read_routing", TEXT, repeats=True),
        Column("version", BIGINT, repeats=True),
        Column("status", TEXT, repeats=True),
        Column("stage", TEXT, repeats=True),
        Column("kind", TEXT, repeats=True),
        Column("legs", TEXTS, repeats=True),
        Column("leg", INTEGER, repeats=True),
        Column("attempt", INTEGER, repeats=True),
        Column("amount_minor", BIGINT),
        Column("currency_code", TEXT, repeats=True),
        Column("currency_exp", SMALLINT, repeats=True),
        Column("description", TEXT),
        Column("labels", JSONB),
        Column("upstream_ref", TEXT),
        Column("failure_reason", TEXT, repeats=True),
        Column("basis", TEXT, nullable=True, repeats=True),
        Column("request_id", UUID),
        Column("updated_at", TIME),
        Column("settled_at", TIME, nullable=True),
        Column("erased_at", TIME, nullable=True, repeats=True),
        Column("traceparent", TEXT),
        Column("schema_version", SMALLINT, repeats=True),
    ),
    key=("user_id", "created_at", "order_id"),
    sum_by=("currency_code", "status"),
    sum_of="amount_minor",
)

JOURNAL = Shape(
    table="order_journal",
    columns=(
        Column("order_id", UUID, repeats=True),
        Column("created_at", TIME, repeats=True),
        Column("user_id", TEXT, repeats=True),
        Column("bucket", INTEGER, repeats=True),
        Column("route_epoch", BIGINT, repeats=True),
        Column("version", BIGINT, repeats=True),
        Column("event_id", UUID),
        Column("kind", TEXT, repeats=True),
        Column("from_status", TEXT, nullable=True, repeats=True),
        Column("to_status", TEXT, repeats=True),
        Column("from_stage", TEXT, nullable=True, repeats=True),
        Column("to_stage", TEXT, repeats=True),
        Column("leg", INTEGER, repeats=True),
        Column("attempt", INTEGER, repeats=True),
        Column("actor", TEXT, repeats=True),
        Column("proof", TEXT, nullable=True, repeats=True),
        Column("evidence", JSONB),
        Column("traceparent", TEXT),
        Column("at", TIME),
    ),
    key=("user_id", "created_at", "order_id", "version"),
    sum_by=("kind", "to_status"),
)

SHAPES: Mapping[str, Shape] = {shape.table: shape for shape in (ORDERS, JOURNAL)}
"""Every shape by its table, the orders first."""
