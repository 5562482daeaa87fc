"""A segment without one user's rows."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pyarrow as pa
import pyarrow.compute as pc
from pyarrow import parquet

from archive_svc.codec.rows import rendered
from archive_svc.codec.writer import SegmentWriter

if TYPE_CHECKING:
    from collections.abc import Mapping

    from archive_svc.columns import Shape
    from archive_svc.segment import Segment


def without(shape: Shape, body: bytes, user_id: str, about: Mapping[str, str]) -> tuple[Segment, bytes]:
    """The segment that holds all rows but a user's, and the user's rows as CSV for COPY_BACK_OPTIONS.

    body: proven before, since Arrow may end the process over another. about: what the new one says of itself.
    """
    writer = SegmentWriter(shape, about)
    gone = bytearray()
    file = parquet.ParquetFile(pa.BufferReader(body), page_checksum_verification=True, pre_buffer=False)
    for number in range(file.metadata.num_row_groups):
        table = file.read_row_group(number, use_threads=False)
        is_theirs = pc.equal(table.column("user_id"), user_id)
        gone += rendered(shape, table.filter(is_theirs)).to_pybytes()
        writer.add(rendered(shape, table.filter(pc.invert(is_theirs))).to_pybytes())
    return writer.close(), bytes(gone)
