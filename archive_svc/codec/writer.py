"""Write a segment: rows as COPY gives them in, one Parquet object and the facts about it out."""

from __future__ import annotations

import hashlib
from bisect import bisect_right
from typing import TYPE_CHECKING, Any

import pyarrow as pa
from pyarrow import parquet

from archive_svc.codec.groups import Sizing
from archive_svc.codec.rows import Tally, key_at, parsed, rendered, rises, schema_of
from archive_svc.segment import Facts, Group, Range, RowsRefused, Segment

if TYPE_CHECKING:
    from collections.abc import Mapping

    from archive_svc.columns import Shape
    from archive_svc.segment import Key

GROUP_BYTES = 512 * 1024
ABOUT = "ordermesh."
"""Before every name in an object's own key-value metadata."""


class SegmentWriter:
    """One segment being written. Not for two threads at once.

    In memory are a block of rows, those of a row group or two (RAW_FACTOR_MAX bounds them), and the object.

    about: what the object says of itself beside its shape and rows, such as shard, month and part.
    group_bytes: about how large a row group is, compressed; it is what a reader has to fetch for one row.
    """

    def __init__(self, shape: Shape, about: Mapping[str, str], *, group_bytes: int = GROUP_BYTES) -> None:
        self._shape = shape
        self._about = dict(about)
        schema = schema_of(shape)
        self._sink = pa.BufferOutputStream()
        options = options_of(shape)
        self._parquet = parquet.ParquetWriter(self._sink, schema, **options)
        self._sizing = Sizing(schema, options, group_bytes)
        self._stream = hashlib.sha256()
        self._stream_bytes = 0
        self._rows = 0
        self._tally = Tally(shape)
        self._first: Key | None = None
        self._last: Key | None = None
        self._groups: list[tuple[str, str, Range, int]] = []
        self._pending = schema.empty_table()
        # Of these in memory; kept, since Arrow looks at every piece of every column to say it.
        self._pending_bytes = 0

    def add(self, block: bytes, until: Key | None = None) -> bytes:
        """Take whole rows, some MiB of them, as COPY of `Shape.select_list` with `COPY_OPTIONS` writes them.

        until: the key of the last order of which rows are taken. Returns what lies beyond, as it came.
        Raises: RowsRefused when they are not whole, not in order, or lack a value; then begin a new segment.
        """
        if not block:
            return b""
        if not block.endswith(b"\n"):
            raise RowsRefused("a block ends within a row")
        table, size = parsed(self._shape, block), len(block)
        if until is not None:
            table, size = self._up_to(until, table, block)
        if size:
            self._add(table, memoryview(block)[:size])
        return block[size:]

    def _up_to(self, until: Key, table: Any, block: bytes) -> tuple[Any, int]:
        """The first rows, up to and with those of an order, and how many bytes of the block they are."""
        rows = bisect_right(
            range(table.num_rows), until[:3], key=lambda row: key_at(self._shape, table, row)[:3]
        )
        if rows == table.num_rows:
            return table, len(block)
        ours = table.slice(0, rows)
        # A row has no length of its own; what is written as COPY wrote it ends where the next one begins.
        text = rendered(self._shape, ours).to_pybytes() if rows else b""
        if not block.startswith(text):
            raise RowsRefused(f"rows of {self._shape.table} are not written as they are read")
        return ours, len(text)

    def _add(self, table: Any, block: memoryview) -> None:
        self._stream.update(block)
        self._stream_bytes += len(block)
        first, last = key_at(self._shape, table, 0), key_at(self._shape, table, -1)
        if (self._last is not None and first <= self._last) or not rises(self._shape, table):
            raise RowsRefused(f"rows of {self._shape.table} do not rise by their key")
        self._first, self._last = self._first or first, last
        self._rows += table.num_rows
        self._tally.add(table)
        self._pending = pa.concat_tables([self._pending, table])
        self._pending_bytes += table.nbytes
        self._write_groups()

    def close(self) -> Segment:
        """Write what is left, and the footer."""
        self._write_groups(everything=True)
        own = own_metadata(self._shape, self._about, self._rows)
        self._parquet.add_key_value_metadata(own)
        self._parquet.close()
        body = self._sink.getvalue().to_pybytes()
        del self._parquet, self._sink, self._pending
        let_go()
        footer = footer_bytes(body)
        facts = Facts(
            table=self._shape.table,
            version=self._shape.version,
            rows=self._rows,
            size_bytes=len(body),
            sha256=hashlib.sha256(body).hexdigest(),
            stream_bytes=self._stream_bytes,
            stream_sha256=self._stream.hexdigest(),
            sums=self._tally.sums(),
            first=self._first,
            last=self._last,
            footer_bytes=footer,
            footer_sha256=sha256_of(body, Range(len(body) - footer, footer)),
            groups=tuple(
                Group(first, last, place.offset, place.size_bytes, rows, sha256_of(body, place))
                for first, last, place, rows in self._groups
            ),
            about=self._about,
        )
        return Segment(facts, body)

    def _write_groups(self, *, everything: bool = False) -> None:
        while rows := self._sizing.rows_of_next(self._pending, self._pending_bytes, everything=everything):
            self._write_group(self._pending.slice(0, rows))
            self._pending = self._pending.slice(rows)
            self._pending_bytes = self._pending.nbytes

    def _write_group(self, table: Any) -> None:
        offset = self._sink.tell()
        self._parquet.write_table(table, row_group_size=table.num_rows)
        size = self._sink.tell() - offset
        users = table.column("user_id")
        self._groups.append((users[0].as_py(), users[-1].as_py(), Range(offset, size), table.num_rows))
        self._sizing.took(table, size)


def let_go() -> None:
    """Give the system back what Arrow kept for the thread that calls."""
    pa.default_memory_pool().release_unused()


def own_metadata(shape: Shape, about: Mapping[str, str], rows: int) -> dict[str, str]:
    """What an object says of itself."""
    own = {"table": shape.table, "schema_version": str(shape.version), "rows": str(rows)}
    return {ABOUT + name: value for name, value in {**about, **own}.items()}


def sha256_of(body: bytes, place: Range) -> str:
    """The SHA-256 of some bytes of an object, hex."""
    return hashlib.sha256(memoryview(body)[place.offset : place.offset + place.size_bytes]).hexdigest()


def footer_bytes(body: bytes) -> int:
    """How long an object's footer is, its length and the magic at the end included."""
    return int.from_bytes(body[-8:-4], "little") + 8


def options_of(shape: Shape) -> dict[str, Any]:
    """How Parquet is written, as pyarrow takes it."""
    names = shape.names
    return {
        "version": "2.6",
        # Engines that cannot read the second version of pages are not rare.
        "data_page_version": "1.0",
        "compression": "zstd",
        # A higher one takes a third longer, and these columns grow by it.
        "compression_level": 1,
        "use_dictionary": [column.name for column in shape.columns if column.repeats],
        # Of times of one user and of amounts: a twentieth less of an object.
        "column_encoding": {
            column.name: "DELTA_BINARY_PACKED"
            for column in shape.columns
            if not column.repeats and column.type.arrow in {"int64", "timestamp"}
        },
        # What an engine may skip rows by; of all columns they would make the footer larger by two fifths.
        "write_statistics": sorted({*shape.key, *shape.sum_by}, key=names.index),
        "write_page_checksum": True,
        "write_page_index": True,
        "sorting_columns": [parquet.SortingColumn(names.index(name)) for name in shape.key],
        "store_schema": False,
    }
