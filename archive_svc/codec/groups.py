"""How many rows make a row group, so that each is about as large as wanted once it is compressed.

What some rows weigh compressed is not known before they are. Their bytes in memory are, and what is left of
these is tried out on a sample of the very rows: neighbours in a segment may be of two users, one of whom
fills his labels with noise.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pyarrow as pa
from pyarrow import parquet

if TYPE_CHECKING:
    from collections.abc import Mapping

RAW_FACTOR_MAX = 32
"""Times the wanted size in memory, no group is larger: one of nothing but repetitions would have no end."""
KEPT_BACK = 1.5
"""Groups; with fewer than that at hand the next is not begun, so that the last one is no crumb."""
_LEAST, _MOST = 0.8, 1.25
"""Of the wanted size, a sample has to say that a group has between these."""
_RUNS = 8
"""Places of a group from which a sample is taken,"""
_RUN_SHARE = 256
"""and the share of its rows at each: one in 32 in all. Of an eighth, groups were no nearer to their size."""
_WHOLE = 128
"""Rows; so few are tried out all, and no fewer are a sample."""
_TRIES_MAX = 24
_FIRST_RATIO = 0.2


class Sizing:
    """Sizes the row groups of one segment.

    options: of the Parquet writer. group_bytes: the size that is wanted.
    """

    def __init__(self, schema: Any, options: Mapping[str, Any], group_bytes: int) -> None:
        self._schema = schema
        self._options = options
        self._group_bytes = group_bytes
        # What is left of bytes in memory, as far as is known; what part of what a sample said was true.
        self._ratio = _FIRST_RATIO
        self._bias = 1.0
        self._sampled: float | None = None
        # Headers and the like, of which a large group has no more than a small one.
        self._fixed: int | None = None

    def rows_of_next(self, pending: Any, size_bytes: int, *, everything: bool) -> int:
        """How many of the pending rows make the next group; 0 when more rows should come first.

        size_bytes: of the pending rows in memory.
        everything: no more rows come, so that it is 0 only when there are none.
        """
        there = int(pending.num_rows)
        least = KEPT_BACK * self._group_bytes
        enough = max(size_bytes * self._ratio, size_bytes / RAW_FACTOR_MAX) > least
        if not there or not (everything or enough):
            return 0
        rows = self._in_memory(pending, self._group_bytes / self._ratio) if enough else there
        low, high = 0, there + 1
        for _ in range(_TRIES_MAX):
            groups = self._groups_in(pending.slice(0, rows))
            if rows == there and groups <= KEPT_BACK:
                self._ratio = groups * self._group_bytes / size_bytes
                return there if everything else 0
            if groups <= _MOST:
                low = rows
            else:
                high = rows
            if _LEAST <= groups <= _MOST or high - low <= 1:
                break
            # In proportion, since mostly rows are alike; in the middle when that leads out of what is left.
            nearer = int(rows / groups)
            rows = nearer if low < nearer < high else (low + high) // 2
        return max(1, low)

    def took(self, table: Any, size_bytes: int) -> None:
        """Learn what a group took that `rows_of_next` sized."""
        self._ratio = size_bytes / table.nbytes
        if self._sampled is not None:
            self._bias = min(1.0, size_bytes / self._sampled)

    def _in_memory(self, pending: Any, size_bytes: float) -> int:
        """How many of the first rows have about that size in memory; at least one."""
        rows = int(pending.num_rows)
        for _ in range(3):
            size = pending.slice(0, rows).nbytes
            rows = min(max(1, int(rows * size_bytes / size)), int(pending.num_rows))
        return rows

    def _groups_in(self, table: Any) -> float:
        """How many groups these rows are, as a sample of them says."""
        rows = table.num_rows
        if rows <= _WHOLE:
            self._sampled = None
            return self._encoded(table) / self._group_bytes
        length = max(rows // _RUN_SHARE, _WHOLE // _RUNS)
        runs = [table.slice(start, length) for start in range(0, rows, rows // _RUNS)]
        sample = pa.concat_tables(runs)
        if self._fixed is None:
            self._fixed = max(0, self._encoded(table.slice(0, 1)) - table.slice(0, 1).nbytes)
        encoded = max(1, self._encoded(sample) - self._fixed)
        self._sampled = self._fixed + encoded / sample.nbytes * table.nbytes
        size = max(self._sampled * self._bias, table.nbytes / RAW_FACTOR_MAX)
        return float(size / self._group_bytes)

    def _encoded(self, table: Any) -> int:
        """How large a group of exactly these rows is."""
        sink = pa.BufferOutputStream()
        with parquet.ParquetWriter(sink, self._schema, **self._options) as writer:
            begins = sink.tell()
            writer.write_table(table, row_group_size=table.num_rows)
            return int(sink.tell() - begins)
