"""Rows as Arrow tables: out of COPY's CSV, checked, counted, and as the same CSV again.

A timestamp is an integer of microseconds on the one side and a timestamp in UTC on the other.
"""

from __future__ import annotations

from collections import defaultdict
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any
from uuid import UUID

import pyarrow as pa
import pyarrow.compute as pc
from pyarrow import csv

from archive_svc.segment import Key, RowsRefused, Sum

if TYPE_CHECKING:
    from collections.abc import Mapping

    from archive_svc.columns import Shape

EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_TIMESTAMP = pa.timestamp("us", tz="UTC")
_ARROW: Mapping[str, Any] = {
    "string": pa.string(),
    "int16": pa.int16(),
    "int32": pa.int32(),
    "int64": pa.int64(),
    "timestamp": _TIMESTAMP,
}
_RENDER_ROWS = 8192
"""Rows that write_csv holds at once."""


def schema_of(shape: Shape) -> Any:
    """The Arrow schema of a shape's rows."""
    return pa.schema([pa.field(c.name, _ARROW[c.type.arrow], nullable=c.nullable) for c in shape.columns])


def parsed(shape: Shape, block: bytes) -> Any:
    """The rows of some CSV as `Shape.select_list` and `COPY_OPTIONS` make it.

    Raises: RowsRefused when it is not rows of this shape, or a value is missing where there has to be one.
    """
    types = {
        c.name: pa.int64() if c.type.arrow == "timestamp" else _ARROW[c.type.arrow] for c in shape.columns
    }
    try:
        table = csv.read_csv(
            pa.BufferReader(block),
            # One piece: no row can be longer than that.
            read_options=csv.ReadOptions(use_threads=False, block_size=len(block), column_names=shape.names),
            parse_options=csv.ParseOptions(newlines_in_values=True),
            convert_options=csv.ConvertOptions(
                column_types=types,
                null_values=[""],
                strings_can_be_null=True,
                quoted_strings_can_be_null=False,
            ),
        )
    except pa.ArrowInvalid:
        # Its message quotes the row, whose content no log should have.
        raise RowsRefused(f"not rows of {shape.table}") from None
    for column in shape.columns:
        if not column.nullable and table.column(column.name).null_count:
            raise RowsRefused(f"{shape.table}.{column.name} is missing in some row")
    return viewed(table, schema_of(shape))


def rendered(shape: Shape, table: Any) -> Any:
    """The rows as COPY wrote them, byte for byte; a buffer."""
    sink = pa.BufferOutputStream()
    plain = pa.schema(
        [pa.field(f.name, pa.int64() if f.type == _TIMESTAMP else f.type) for f in schema_of(shape)]
    )
    options = csv.WriteOptions(include_header=False, quoting_style="all_valid", batch_size=_RENDER_ROWS)
    csv.write_csv(viewed(table, plain), sink, options)
    return sink.getvalue()


def viewed(table: Any, schema: Any) -> Any:
    """A table whose timestamps are integers, or the other way round; nothing is copied."""
    columns = [
        column
        if column.type == wanted.type
        else pa.chunked_array([c.view(wanted.type) for c in column.chunks], wanted.type)
        for column, wanted in zip(table.columns, schema, strict=True)
    ]
    return pa.Table.from_arrays(columns, schema=schema)


def key_at(shape: Shape, table: Any, row: int) -> Key:
    """The key of one row; a negative one counts from the end. Raises: RowsRefused when it is none."""
    values = [table.column(name)[row % table.num_rows] for name in shape.key]
    try:
        created_at, order_id = EPOCH + timedelta(microseconds=values[1].value), UUID(values[2].as_py())
    except (ValueError, OverflowError):
        raise RowsRefused(f"a row of {shape.table} has no key") from None
    return Key(values[0].as_py(), created_at, order_id, *(value.as_py() for value in values[3:]))


def rises(shape: Shape, table: Any) -> bool:
    """Whether every key is above the one before it."""
    rows = table.num_rows
    before, after = table.slice(0, max(0, rows - 1)), table.slice(1)
    above = None
    for name in reversed(shape.key):
        low, high = before.column(name), after.column(name)
        higher = pc.less(low, high)
        above = higher if above is None else pc.or_(higher, pc.and_(pc.equal(low, high), above))
    return rows < 2 or pc.all(above).as_py() is True


class Tally:
    """Counts rows, and sums one column exactly, by the values of some others."""

    def __init__(self, shape: Shape) -> None:
        self._shape = shape
        self._rows: dict[tuple[str, ...], int] = defaultdict(int)
        self._totals: dict[tuple[str, ...], int] = defaultdict(int)

    def add(self, table: Any) -> None:
        """Count these, too."""
        shape = self._shape
        counted = table.select(shape.sum_by)
        wanted: list[tuple[Any, str]] = [([], "count_all")]
        if shape.sum_of:
            # In halves: the sum of a few values of 64 bits may have more.
            amounts = table.column(shape.sum_of)
            counted = counted.append_column("high", pc.shift_right(amounts, 32))
            counted = counted.append_column("low", pc.bit_wise_and(amounts, 0xFFFFFFFF))
            wanted += [("high", "sum"), ("low", "sum")]
        for row in counted.group_by(list(shape.sum_by), use_threads=False).aggregate(wanted).to_pylist():
            by = tuple(row[name] for name in shape.sum_by)
            self._rows[by] += row["count_all"]
            if shape.sum_of:
                self._totals[by] += (row["high_sum"] << 32) + row["low_sum"]

    def sums(self) -> tuple[Sum, ...]:
        """What was counted, sorted."""
        totals = self._totals if self._shape.sum_of else None
        return tuple(
            Sum(by, rows, None if totals is None else totals[by]) for by, rows in sorted(self._rows.items())
        )
