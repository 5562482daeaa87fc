"""Write a segment: rows as COPY gives them in, one Parquet object and the facts about it out."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING, Any

import pyarrow as pa
from pyarrow import parquet

from archive_svc.codec.rows import Tally, key_at, parsed, rises, schema_of
from archive_svc.segment import Facts, Group, RowsRefused, Segment

if TYPE_CHECKING:
    from collections.abc import Mapping

    from archive_svc.columns import Shape
    from archive_svc.segment import Key

GROUP_BYTES = 512 * 1024
_FIRST_GUESS = 0.2
"""Of a row's bytes in memory, what is left in a segment; the first group corrects it."""
ABOUT = "ordermesh."
"""Before every name in an object's own key-value metadata."""


class SegmentWriter:
    """One segment being written. Not for two threads at once; memory is one block of rows and the object.

    about: what the object says of itself beside its shape and rows, such as shard, month and part.
    group_bytes: about how large a row group is, compressed; it is what a reader has to fetch for one row.
    """

    def __init__(self, shape: Shape, about: Mapping[str, str], *, group_bytes: int = GROUP_BYTES) -> None:
        self._shape = shape
        self._about = dict(about)
        self._group_bytes = group_bytes
        self._schema = schema_of(shape)
        self._sink = pa.BufferOutputStream()
        self._parquet = parquet.ParquetWriter(self._sink, self._schema, **_options(shape))
        self._stream = hashlib.sha256()
        self._stream_bytes = 0
        self._rows = 0
        self._tally = Tally(shape)
        self._first: Key | None = None
        self._last: Key | None = None
        self._groups: list[Group] = []
        self._pending = self._schema.empty_table()
        self._ratio = _FIRST_GUESS

    def add(self, block: bytes) -> None:
        """Take whole rows, some MiB of them, as COPY of `Shape.select_list` with `COPY_OPTIONS` writes them.

        Raises: RowsRefused when they are not whole, not in order, or lack a value; then begin a new segment.
        """
        if not block:
            return
        if not block.endswith(b"\n"):
            raise RowsRefused("a block ends within a row")
        self._stream.update(block)
        self._stream_bytes += len(block)
        table = parsed(self._shape, block)
        first, last = key_at(self._shape, table, 0), key_at(self._shape, table, -1)
        if (self._last is not None and first <= self._last) or not rises(self._shape, table):
            raise RowsRefused(f"rows of {self._shape.table} do not rise by their key")
        self._first, self._last = self._first or first, last
        self._rows += table.num_rows
        self._tally.add(table)
        self._pending = pa.concat_tables([self._pending, table])
        self._write_groups()

    def close(self) -> Segment:
        """Write what is left, and the footer."""
        self._write_groups(everything=True)
        own = own_metadata(self._shape, self._about, self._rows)
        self._parquet.add_key_value_metadata(own)
        self._parquet.close()
        body = self._sink.getvalue().to_pybytes()
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
            footer_sha256=hashlib.sha256(body[-footer:]).hexdigest(),
            groups=tuple(self._groups),
            about=self._about,
        )
        return Segment(facts, body)

    def _write_groups(self, *, everything: bool = False) -> None:
        # Half a group more is kept back, so that the last one is no crumb.
        while self._pending.num_rows and (
            everything or self._weight(self._pending) > 1.5 * self._group_bytes
        ):
            rows = self._rows_of_a_group()
            if everything and self._weight(self._pending) <= 1.5 * self._group_bytes:
                rows = self._pending.num_rows
            self._write_group(self._pending.slice(0, rows))
            self._pending = self._pending.slice(rows)

    def _write_group(self, table: Any) -> None:
        offset = self._sink.tell()
        self._parquet.write_table(table, row_group_size=table.num_rows)
        size = self._sink.tell() - offset
        users = table.column("user_id")
        self._groups.append(Group(users[0].as_py(), users[-1].as_py(), offset, size, table.num_rows))
        self._ratio = size / table.nbytes

    def _weight(self, table: Any) -> float:
        """How many bytes these rows will take, as far as one can know."""
        weight: float = table.nbytes * self._ratio
        return weight

    def _rows_of_a_group(self) -> int:
        """How many of the pending rows make one group: as many as weigh that much, at least one."""
        low, high = 1, self._pending.num_rows
        while low < high:
            rows = (low + high + 1) // 2
            if self._weight(self._pending.slice(0, rows)) <= self._group_bytes:
                low = rows
            else:
                high = rows - 1
        return low


def own_metadata(shape: Shape, about: Mapping[str, str], rows: int) -> dict[str, str]:
    """What an object says of itself."""
    own = {"table": shape.table, "schema_version": str(shape.version), "rows": str(rows)}
    return {ABOUT + name: value for name, value in {**about, **own}.items()}


def footer_bytes(body: bytes) -> int:
    """How long an object's footer is, its length and the magic at the end included."""
    return int.from_bytes(body[-8:-4], "little") + 8


def _options(shape: Shape) -> dict[str, Any]:
    names = shape.names
    return {
        "version": "2.6",
        # Engines that cannot read the second version of pages are not rare.
        "data_page_version": "1.0",
        "compression": "zstd",
        "compression_level": 3,
        "use_dictionary": [column.name for column in shape.columns if column.repeats],
        "write_page_checksum": True,
        "write_page_index": True,
        "sorting_columns": [parquet.SortingColumn(names.index(name)) for name in shape.key],
        "store_schema": False,
    }
