"""What is known of a segment, one Parquet object of a part of an archived month. Pure, and without Parquet.

The facts are taken from the stream of rows while the segment is written. They stand in the catalog and the
manifest, and a proof recomputes each of them from the object's bytes.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from enum import Enum
from typing import Any, NamedTuple
from uuid import UUID


class Step(Enum):
    """A step of a proof, in the order in which they are taken."""

    BYTES = "BYTES"
    """The object, or what was fetched of it, has another size or another SHA-256."""
    FOOTER = "FOOTER"
    """Its footer cannot be read, is another one, or says that it is about something else."""
    SCHEMA = "SCHEMA"
    """Its columns are not those of the shape."""
    GROUPS = "GROUPS"
    """Its row groups do not lie where they should, or are others."""
    PAGES = "PAGES"
    """A page cannot be decoded, or its checksum is wrong."""
    ROWS = "ROWS"
    """There are more or fewer rows."""
    KEYS = "KEYS"
    """Keys do not rise strictly, or begin or end elsewhere."""
    SUMS = "SUMS"
    """A count or a total differs."""
    RENDERING = "RENDERING"
    """The rows, written as COPY wrote them, are not byte for byte what COPY wrote."""


class SegmentDamaged(Exception):
    """A segment is not what it was written as.

    step: which proof failed. detail: of what, without any row's content.
    """

    def __init__(self, step: Step, detail: str) -> None:
        super().__init__(f"{step.value}: {detail}")
        self.step = step
        self.detail = detail


class RowsRefused(Exception):
    """Rows that no segment is written of: not whole, out of order, or without a value they must have."""


class ReadOutsidePlan(Exception):
    """Parquet wanted bytes that were not fetched: the plan of what to read was wrong."""

    def __init__(self, offset: int, size_bytes: int) -> None:
        super().__init__(f"bytes {offset} to {offset + size_bytes} were not fetched")
        self.offset = offset
        self.size_bytes = size_bytes


class Key(NamedTuple):
    """Where a row stands; compares as the rows are sorted.

    created_at: aware, UTC. version: 0 in a key of an order.
    """

    user_id: str
    created_at: datetime
    order_id: UUID
    version: int = 0


class Group(NamedTuple):
    """One row group: whose rows it has, and which bytes to fetch for them. sha256: of these bytes, hex."""

    first_user: str
    last_user: str
    offset: int
    size_bytes: int
    rows: int
    sha256: str


class Sum(NamedTuple):
    """Of the rows that have these values in the shape's `sum_by`.

    total: of its `sum_of`, exact; None without one.
    """

    by: tuple[str, ...]
    rows: int
    total: int | None


class Range(NamedTuple):
    """Bytes of an object, to be fetched by one request."""

    offset: int
    size_bytes: int


@dataclass(frozen=True, slots=True)
class Facts:
    """Everything that is known of a segment; two segments of equal facts are equal byte for byte.

    table, version:  its shape.
    about:           what the writer was told of it, such as shard and month; stands in the object too.
    sha256:          of the object, hex. size_bytes: of it.
    stream_sha256:   of the rows as COPY wrote them, hex. stream_bytes: of these.
    sums:            sorted by `by`.
    first, last:     keys; None when there are no rows.
    footer_bytes:    at the object's end, what a reader has to fetch beside row groups.
    footer_sha256:   of these, hex.
    groups:          in the order of their rows.
    """

    table: str
    version: int
    rows: int
    size_bytes: int
    sha256: str
    stream_bytes: int
    stream_sha256: str
    sums: tuple[Sum, ...]
    first: Key | None
    last: Key | None
    footer_bytes: int
    footer_sha256: str
    groups: tuple[Group, ...]
    about: Mapping[str, str] = field(default_factory=dict)

    @property
    def footer(self) -> Range:
        """Where its footer is."""
        return Range(self.size_bytes - self.footer_bytes, self.footer_bytes)

    def groups_of(self, user_id: str) -> range:
        """The row groups that may hold rows of a user: every row of his lies in one of them."""
        return groups_of(user_id, self.groups)

    def as_json(self) -> dict[str, Any]:
        """The same for a manifest or a jsonb column."""
        return {
            "table": self.table,
            "version": self.version,
            "rows": self.rows,
            "size_bytes": self.size_bytes,
            "sha256": self.sha256,
            "stream_bytes": self.stream_bytes,
            "stream_sha256": self.stream_sha256,
            # Text: a total may be beyond what a JSON reader takes for an integer.
            "sums": [[list(s.by), s.rows, None if s.total is None else str(s.total)] for s in self.sums],
            "first": _key_as_json(self.first),
            "last": _key_as_json(self.last),
            "footer_bytes": self.footer_bytes,
            "footer_sha256": self.footer_sha256,
            "groups": [list(group) for group in self.groups],
            "about": dict(self.about),
        }

    @classmethod
    def from_json(cls, told: Mapping[str, Any]) -> Facts:
        """Of what as_json() gave. Raises: KeyError, TypeError, ValueError when it is something else."""
        return cls(
            **{
                **told,
                "sums": tuple(
                    Sum(tuple(by), rows, None if total is None else int(total))
                    for by, rows, total in told["sums"]
                ),
                "first": _key_from_json(told["first"]),
                "last": _key_from_json(told["last"]),
                "groups": tuple(Group(*group) for group in told["groups"]),
            }
        )


@dataclass(frozen=True, slots=True)
class Segment:
    """One that was just written. body: the object, whole."""

    facts: Facts
    body: bytes


def groups_of(user_id: str, groups: Sequence[Group]) -> range:
    """The places of those that may hold rows of a user, in `groups` as they lie in a segment.

    No other holds one.
    """
    first = bisect_left(groups, user_id, key=lambda group: group.last_user)
    return range(first, max(first, bisect_right(groups, user_id, key=lambda group: group.first_user)))


def _key_as_json(key: Key | None) -> list[Any] | None:
    return key and [key.user_id, key.created_at.isoformat(), str(key.order_id), key.version]


def _key_from_json(told: Sequence[Any] | None) -> Key | None:
    if told is None:
        return None
    user_id, created_at, order_id, version = told
    return Key(user_id, datetime.fromisoformat(created_at), UUID(order_id), version)
