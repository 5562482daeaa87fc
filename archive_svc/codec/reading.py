"""Read rows of a segment: a user's, out of the bytes that hold them, or all of them, to put them back."""

from __future__ import annotations

import hashlib
import io
import os
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.compute as pc
from pyarrow import parquet

from archive_svc.codec.rows import rendered, schema_of
from archive_svc.columns import ORDERS
from archive_svc.segment import Range, ReadOutsidePlan, SegmentDamaged, Step

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence

    from archive_svc.columns import Shape
    from archive_svc.segment import Facts


class SparseFile(io.RawIOBase):
    """A file of which only some ranges are there. Reading anything else raises ReadOutsidePlan.

    size_bytes: of the whole file. parts: bytes by their offset; a read lies within one of them.
    """

    def __init__(self, size_bytes: int, parts: Mapping[int, bytes]) -> None:
        super().__init__()
        self._size_bytes = size_bytes
        self._parts = dict(parts)
        self._place = 0
        self.read_bytes = 0

    def readable(self) -> bool:
        """Yes."""
        return True

    def seekable(self) -> bool:
        """Yes."""
        return True

    def tell(self) -> int:
        """Where the next read begins."""
        return self._place

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        """Go anywhere; only a read has to be where there is something."""
        start = {os.SEEK_SET: 0, os.SEEK_CUR: self._place, os.SEEK_END: self._size_bytes}[whence]
        self._place = start + offset
        return self._place

    def read(self, size: int | None = -1) -> bytes:
        """The next bytes, to the end without a size. Raises: ReadOutsidePlan."""
        wanted = self._size_bytes - self._place if size is None or size < 0 else size
        found = self.range(self._place, wanted)
        self._place += wanted
        self.read_bytes += wanted
        return found

    def range(self, offset: int, size_bytes: int) -> bytes:
        """Some bytes that were fetched. Raises: ReadOutsidePlan."""
        for start, part in self._parts.items():
            if start <= offset and offset + size_bytes <= start + len(part):
                return part[offset - start : offset - start + size_bytes]
        raise ReadOutsidePlan(offset, size_bytes)


def ranges_of(facts: Facts, groups: Iterable[int]) -> list[Range]:
    """What to fetch for these row groups: the footer, then each of them."""
    return [facts.footer, *(Range(facts.groups[n].offset, facts.groups[n].size_bytes) for n in groups)]


def read_groups(
    shape: Shape,
    facts: Facts,
    file: SparseFile,
    groups: Sequence[int],
    *,
    user_id: str | None = None,
    columns: Sequence[str] | None = None,
) -> Any:
    """The rows of some row groups as an Arrow table, in order; only those of a user, if one is named.

    file:    has the ranges that `ranges_of` says.
    columns: these and no others, in their order in the shape; user_id among them, if a user is named.
    Every byte is checked before it is used.
    Raises: ReadOutsidePlan; SegmentDamaged at FOOTER, SCHEMA, BYTES or PAGES.
    """
    footer = file.range(*facts.footer)
    if hashlib.sha256(footer).hexdigest() != facts.footer_sha256:
        raise SegmentDamaged(Step.FOOTER, "its SHA-256")
    metadata = parquet.read_metadata(pa.BufferReader(footer))
    opened = parquet.ParquetFile(
        pa.PythonFile(file, mode="r"), metadata=metadata, pre_buffer=False, page_checksum_verification=True
    )
    if not opened.schema_arrow.equals(schema_of(shape)):
        raise SegmentDamaged(Step.SCHEMA, "its columns")
    tables = [schema_of(shape).empty_table().select(list(columns or shape.names))]
    for number in groups:
        there = file.range(facts.groups[number].offset, facts.groups[number].size_bytes)
        if hashlib.sha256(there).hexdigest() != facts.groups[number].sha256:
            raise SegmentDamaged(Step.BYTES, f"of group {number}")
        try:
            table = opened.read_row_group(number, columns=columns, use_threads=False)
        except (pa.ArrowException, OSError):
            raise SegmentDamaged(Step.PAGES, f"of group {number}") from None
        tables.append(table if user_id is None else table.filter(pc.equal(table.column("user_id"), user_id)))
    return pa.concat_tables(tables)


def user_rows(
    facts: Facts, file: SparseFile, group: int, *, user_id: str, columns: Sequence[str]
) -> list[tuple[Any, ...]]:
    """A user's orders of one row group as tuples of these columns; a time is microseconds since 1970.

    file, raises: as `read_groups`.
    """
    wanted = {*columns, "user_id"}
    names = [name for name in ORDERS.names if name in wanted]
    table = read_groups(ORDERS, facts, file, [group], user_id=user_id, columns=names)
    return list(zip(*(_plain(table.column(name)) for name in columns), strict=True))


def _plain(column: Any) -> list[Any]:
    if pa.types.is_timestamp(column.type):
        column = column.cast(pa.int64())
    return list(column.to_pylist())


def csv_rows(shape: Shape, body: bytes) -> Iterator[bytes]:
    """All rows of a segment as the CSV that they came as, a row group at a time, for COPY_BACK_OPTIONS.

    body: proven before, since Arrow may end the process over another.
    """
    file = parquet.ParquetFile(pa.BufferReader(body), page_checksum_verification=True, pre_buffer=False)
    for number in range(file.metadata.num_row_groups):
        yield rendered(shape, file.read_row_group(number, use_threads=False)).to_pybytes()
