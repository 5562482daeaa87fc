"""Prove that an object is the rows that COPY wrote: everything is recomputed from its bytes."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pyarrow as pa
from pyarrow import parquet

from archive_svc.codec.rows import Tally, key_at, rendered, rises, schema_of
from archive_svc.codec.writer import footer_bytes, let_go, own_metadata, sha256_of
from archive_svc.segment import Group, Range, RowsRefused, SegmentDamaged, Step

if TYPE_CHECKING:
    from archive_svc.columns import Shape
    from archive_svc.segment import Facts, Key


@dataclass(frozen=True, slots=True)
class Proof:
    """What was read to prove a segment."""

    rows: int
    size_bytes: int
    stream_bytes: int


def prove(shape: Shape, body: bytes, expected: Facts) -> Proof:
    """Prove that `body` is the segment of these facts. Memory is the body and one row group.

    Raises: SegmentDamaged with the first step that failed.
    """
    _check(Step.BYTES, len(body) == expected.size_bytes, "its size")
    _check(Step.BYTES, hashlib.sha256(body).hexdigest() == expected.sha256, "its SHA-256")
    file = _opened(shape, body, expected)
    _check(Step.SCHEMA, shape.table == expected.table and shape.version == expected.version, "its shape")
    _check(Step.SCHEMA, file.schema_arrow.equals(schema_of(shape)), "its columns")
    _check(Step.GROUPS, file.metadata.num_row_groups == len(expected.groups), "their number")
    reading = _Reading(shape)
    for number, group in enumerate(expected.groups):
        there = sha256_of(body, Range(group.offset, group.size_bytes))
        _check(Step.GROUPS, there == group.sha256, f"the SHA-256 of group {number}")
        reading.take(_decoded(file, number, group), number, group)
    reading.compare(expected)
    let_go()
    return Proof(reading.rows, len(body), reading.stream_bytes)


def _check(step: Step, holds: bool, detail: str) -> None:
    if not holds:
        raise SegmentDamaged(step, detail)


def _opened(shape: Shape, body: bytes, expected: Facts) -> Any:
    footer = footer_bytes(body)
    _check(Step.FOOTER, footer == expected.footer_bytes, "its length")
    _check(Step.FOOTER, sha256_of(body, expected.footer) == expected.footer_sha256, "its SHA-256")
    try:
        file = parquet.ParquetFile(pa.BufferReader(body), page_checksum_verification=True, pre_buffer=False)
    except (pa.ArrowException, OSError):
        raise SegmentDamaged(Step.FOOTER, "it cannot be read") from None
    own = own_metadata(shape, expected.about, expected.rows)
    said = {name.encode(): value.encode() for name, value in own.items()}
    _check(Step.FOOTER, file.metadata.metadata == said, "what it says of itself")
    return file


def _decoded(file: Any, number: int, group: Group) -> Any:
    """One row group as a table, when it is where it should be."""
    said = file.metadata.row_group(number)
    chunks = [said.column(place) for place in range(said.num_columns)]
    begins = [min(c.data_page_offset, c.dictionary_page_offset or c.data_page_offset) for c in chunks]
    size = sum(c.total_compressed_size for c in chunks)
    there = (min(begins), size, said.num_rows)
    _check(Step.GROUPS, there == (group.offset, group.size_bytes, group.rows), f"where group {number} lies")
    try:
        table = file.read_row_group(number, use_threads=False)
        table.validate(full=True)
    except (pa.ArrowException, OSError):
        raise SegmentDamaged(Step.PAGES, f"of group {number}") from None
    _check(Step.ROWS, table.num_rows == group.rows > 0, f"of group {number}")
    return table.combine_chunks()


class _Reading:
    """What was found so far."""

    def __init__(self, shape: Shape) -> None:
        self._shape = shape
        self._tally = Tally(shape)
        self._stream = hashlib.sha256()
        self._first: Key | None = None
        self._last: Key | None = None
        self.rows = 0
        self.stream_bytes = 0

    def take(self, table: Any, number: int, group: Group) -> None:
        """Look at one row group."""
        try:
            first, last = key_at(self._shape, table, 0), key_at(self._shape, table, -1)
        except RowsRefused:
            raise SegmentDamaged(Step.KEYS, f"of group {number}") from None
        users = (first.user_id, last.user_id)
        _check(Step.KEYS, users == (group.first_user, group.last_user), f"of group {number}")
        above = self._last is None or self._last < first
        _check(Step.KEYS, above and rises(self._shape, table), f"they do not rise in group {number}")
        self._first, self._last = self._first or first, last
        self.rows += table.num_rows
        self._tally.add(table)
        stream = rendered(self._shape, table)
        self._stream.update(stream)
        self.stream_bytes += len(stream)

    def compare(self, expected: Facts) -> None:
        """Hold everything against what it should be."""
        _check(Step.ROWS, self.rows == expected.rows, "their number")
        _check(
            Step.KEYS, (self._first, self._last) == (expected.first, expected.last), "the first and the last"
        )
        _check(Step.SUMS, self._tally.sums() == expected.sums, "they differ")
        _check(Step.RENDERING, self.stream_bytes == expected.stream_bytes, "its length")
        _check(Step.RENDERING, self._stream.hexdigest() == expected.stream_sha256, "its SHA-256")
