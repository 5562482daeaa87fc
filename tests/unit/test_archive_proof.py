"""A segment that is not what was written is refused, at the step that names what is wrong with it."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pyarrow as pa
import pytest
from pyarrow import parquet

from archive_svc.codec.proof import prove
from archive_svc.codec.rows import rendered, schema_of
from archive_svc.codec.writer import footer_bytes, options_of, own_metadata, sha256_of
from archive_svc.columns import JOURNAL, ORDERS
from archive_svc.segment import Facts, Group, Range, Segment, SegmentDamaged, Step, Sum
from tests.archives import ABOUT, csv, entry, order, written

ROWS = 240
SEGMENT = written(
    ORDERS,
    [csv(*(order(n, user_id=f"u{n // 80}", currency_code="EUR" if n % 3 else "JPY") for n in range(ROWS)))],
    group_bytes=4000,
)
FACTS = SEGMENT.facts
LAST = FACTS.groups[-1]


def refused(body: bytes, facts: Facts = FACTS) -> Step:
    """The step at which a body is refused."""
    with pytest.raises(SegmentDamaged) as damaged:
        prove(ORDERS, body, facts)
    assert str(damaged.value).startswith(damaged.value.step.value)
    return damaged.value.step


def flipped(place: int, body: bytes = SEGMENT.body) -> bytes:
    """One bit of a byte, turned."""
    return body[:place] + bytes([body[place] ^ 0x10]) + body[place + 1 :]


def sealed(body: bytes, facts: Facts = FACTS) -> Facts:
    """The facts of somebody who took every checksum of the object after it was damaged."""
    footer = footer_bytes(body)
    return replace(
        facts,
        size_bytes=len(body),
        sha256=hashlib.sha256(body).hexdigest(),
        footer_bytes=footer,
        footer_sha256=sha256_of(body, Range(len(body) - footer, footer)),
        groups=tuple(
            group._replace(sha256=sha256_of(body, Range(group.offset, group.size_bytes)))
            for group in facts.groups
        ),
    )


def rows_of(segment: Segment = SEGMENT) -> Any:
    """Its rows as a table."""
    return parquet.read_table(pa.BufferReader(segment.body))


def forged(table: Any, facts: Facts = FACTS, *, plainly: bool = False) -> tuple[bytes, Facts]:
    """An object of other rows that says the same of itself, and the facts of who was told of the original.

    plainly: by no options, which are for the columns of a shape.
    """
    options: dict[str, Any] = {"store_schema": False} if plainly else options_of(ORDERS)
    sink = pa.BufferOutputStream()
    groups = []
    with parquet.ParquetWriter(sink, table.schema, **options) as writer:
        for group, there in zip(facts.groups, divided(table, facts), strict=True):
            offset = sink.tell()
            writer.write_table(there, row_group_size=there.num_rows)
            users = there.column("user_id")
            place = Range(offset, sink.tell() - offset)
            groups.append(Group(users[0].as_py(), users[-1].as_py(), *place, there.num_rows, group.sha256))
        writer.add_key_value_metadata(own_metadata(ORDERS, facts.about, facts.rows))
    body = sink.getvalue().to_pybytes()
    return body, sealed(body, replace(facts, groups=tuple(groups)))


def divided(table: Any, facts: Facts) -> list[Any]:
    """The rows of each group; the last gets what is more, or less."""
    starts = [sum(group.rows for group in facts.groups[:n]) for n in range(len(facts.groups))]
    return [
        table.slice(start, end - start)
        for start, end in zip(starts, [*starts[1:], table.num_rows], strict=True)
    ]


def with_column(table: Any, name: str, change: Callable[[list[Any]], list[Any]]) -> Any:
    """The rows with one column changed."""
    place = table.schema.get_field_index(name)
    values = pa.array(change(table.column(name).to_pylist()), table.schema.field(name).type)
    return table.set_column(place, table.schema.field(name), values)


def swapped(values: list[Any], one: int, other: int) -> list[Any]:
    """Two of them in each other's place."""
    values[one], values[other] = values[other], values[one]
    return values


def test_what_was_written_is_proven() -> None:
    assert len(FACTS.groups) > 2
    proof = prove(ORDERS, SEGMENT.body, FACTS)
    assert (proof.rows, proof.size_bytes, proof.stream_bytes) == (ROWS, len(SEGMENT.body), FACTS.stream_bytes)
    forged_body, facts = forged(rows_of())
    assert prove(ORDERS, forged_body, facts).rows == ROWS, "a forgery of the same rows is as good"


@pytest.mark.parametrize(
    ("place", "where"),
    [
        (0, "magic"),
        (FACTS.groups[0].offset, "a page's header"),
        (FACTS.groups[0].offset + 200, "a page"),
        (LAST.offset + LAST.size_bytes - 1, "the last page's end"),
        (LAST.offset + LAST.size_bytes + 1, "the page index"),
        (FACTS.size_bytes - FACTS.footer_bytes + 1, "the footer"),
        (FACTS.size_bytes - 8, "the footer's length"),
        (FACTS.size_bytes - 1, "the last magic"),
    ],
)
def test_a_bit_that_turned_anywhere_is_seen_in_the_bytes(place: int, where: str) -> None:
    assert refused(flipped(place)) is Step.BYTES, where


@pytest.mark.parametrize("size", [0, 4, 7, 100, FACTS.size_bytes // 2, FACTS.size_bytes - 1])
def test_a_truncated_object_is_seen_in_the_bytes(size: int) -> None:
    assert refused(SEGMENT.body[:size]) is Step.BYTES
    assert refused(SEGMENT.body[:size] + bytes(FACTS.size_bytes - size)) is Step.BYTES
    assert refused(SEGMENT.body + SEGMENT.body[:size] + b"PAR1") is Step.BYTES


def test_another_segment_s_object_is_seen_in_the_bytes_or_in_what_it_says_of_itself() -> None:
    rows = csv(*(order(n, user_id=f"u{n // 80}") for n in range(ROWS)))
    other = written(ORDERS, [rows], {**ABOUT, "part": "1"}, group_bytes=4000)
    assert refused(other.body) is Step.BYTES
    assert refused(other.body, replace(other.facts, about=ABOUT)) is Step.FOOTER
    fewer = written(ORDERS, [csv(order(1))])
    assert refused(fewer.body, replace(fewer.facts, rows=2)) is Step.FOOTER


def test_a_footer_whose_checksum_is_another_is_never_read() -> None:
    """Arrow may end the process over one."""
    for place in (FACTS.size_bytes - FACTS.footer_bytes + 40, FACTS.size_bytes - 1):
        body = flipped(place)
        facts = replace(FACTS, sha256=hashlib.sha256(body).hexdigest())
        assert refused(body, facts) is Step.FOOTER
    longer = SEGMENT.body[:-8] + (FACTS.footer_bytes + 1).to_bytes(4, "little") + b"PAR1"
    assert refused(longer, replace(FACTS, sha256=hashlib.sha256(longer).hexdigest())) is Step.FOOTER


def test_what_is_no_parquet_at_all_is_refused() -> None:
    for body in (b"", b"PAR1", b"PAR1PAR1", bytes(100)):
        facts = replace(sealed(body, replace(FACTS, groups=())), groups=FACTS.groups)
        assert refused(body, facts) is Step.FOOTER


def test_other_columns_are_refused() -> None:
    table = rows_of()
    place = table.schema.get_field_index("bucket")
    wider = table.set_column(place, "bucket", table.column("bucket").cast(pa.int64()))
    nullable = table.cast(pa.schema([field.with_nullable(True) for field in table.schema]))
    fewer = table.drop_columns(["traceparent"])
    for other in (wider, nullable, fewer):
        assert refused(*forged(other, plainly=True)) is Step.SCHEMA
    assert refused(SEGMENT.body, replace(FACTS, table="order_journal")) is Step.SCHEMA
    assert refused(SEGMENT.body, replace(FACTS, version=2)) is Step.SCHEMA
    journal = written(JOURNAL, [csv(entry(1, 1))])
    assert refused(journal.body, journal.facts) is Step.FOOTER


def test_groups_that_lie_elsewhere_are_refused() -> None:
    first, *rest = FACTS.groups
    for groups in (
        (*rest,),
        (first, *rest, first),
        (first._replace(offset=first.offset + 1), *rest),
        (first._replace(size_bytes=first.size_bytes - 1), *rest),
        (first._replace(rows=first.rows - 1), *rest),
        (first._replace(sha256=rest[0].sha256), *rest),
    ):
        assert refused(SEGMENT.body, replace(FACTS, groups=groups)) is Step.GROUPS


def test_a_group_that_is_missing_is_refused() -> None:
    few = replace(FACTS, groups=FACTS.groups[:-1])
    body, facts = forged(rows_of().slice(0, ROWS - LAST.rows), few)
    assert refused(body, facts) is Step.ROWS
    assert refused(body, replace(facts, groups=(*facts.groups, LAST))) is Step.GROUPS


def test_a_page_that_turned_before_the_checksums_were_taken_is_refused() -> None:
    pages = [group.offset + group.size_bytes * part // 10 for group in FACTS.groups for part in range(1, 10)]
    steps = set()
    for place in pages:
        body = flipped(place)
        try:
            prove(ORDERS, body, sealed(body))
        except SegmentDamaged as damaged:
            steps.add(damaged.step)
        else:
            rows = rendered(ORDERS, rows_of(Segment(FACTS, body))).to_pybytes()
            assert hashlib.sha256(rows).hexdigest() == FACTS.stream_sha256, "a header says what nobody asks"
    assert steps == {Step.PAGES}


def test_a_row_more_or_less_is_refused() -> None:
    table = rows_of()
    assert refused(*forged(table.slice(0, ROWS - 1))) is Step.ROWS
    twice = pa.concat_tables([table, table.slice(ROWS - 1)])
    assert refused(*forged(twice)) is Step.KEYS
    later = csv(order(ROWS, user_id="u2"))
    more = pa.concat_tables([table, rows_of(written(ORDERS, [later]))])
    assert refused(*forged(more)) is Step.ROWS


def test_rows_out_of_order_or_of_others_are_refused() -> None:
    table, border = rows_of(), FACTS.groups[0].rows
    for one, other in ((3, 4), (border - 1, border)):
        order_ = swapped(list(range(ROWS)), one, other)
        assert refused(*forged(table.take(order_))) is Step.KEYS
    ids = with_column(table, "order_id", lambda ids: [*ids[:-1], str(order(ROWS + 5)["order_id"])])
    assert refused(*forged(ids)) is Step.KEYS
    none = with_column(table, "order_id", lambda ids: [*ids[:-1], "none"])
    assert refused(*forged(none)) is Step.KEYS
    first = FACTS.groups[0]
    assert refused(
        SEGMENT.body, replace(FACTS, groups=(first._replace(first_user="t"), *FACTS.groups[1:]))
    ) is (Step.KEYS)


def test_other_amounts_are_refused() -> None:
    table = rows_of()
    swap = with_column(table, "amount_minor", lambda amounts: swapped(amounts, 0, 1))
    assert refused(*forged(swap)) is Step.SUMS
    currencies = with_column(table, "currency_code", lambda codes: swapped(codes, 0, 1))
    assert refused(*forged(currencies)) is Step.SUMS
    by, rows, total = FACTS.sums[0]
    assert (
        refused(SEGMENT.body, replace(FACTS, sums=(Sum(by, rows, (total or 0) + 1), *FACTS.sums[1:])))
        is Step.SUMS
    )


@pytest.mark.parametrize(
    "name", sorted(set(ORDERS.names) - {"order_id", "created_at", "user_id", "amount_minor"})
)
def test_any_other_value_is_refused(name: str) -> None:
    """Of every column: swapping two rows' values, or changing one."""
    table = rows_of()
    kind = schema_of(ORDERS).field(name).type

    def changed(values: list[Any]) -> list[Any]:
        if values[7] is None:
            values[7] = values[8] or 0
        elif kind == pa.string():
            values[7] += " "
        elif pa.types.is_timestamp(kind):
            values[7] = values[7].replace(microsecond=values[7].microsecond ^ 1)
        else:
            values[7] += 1
        return values

    step = refused(*forged(with_column(table, name, changed)))
    assert step is (Step.SUMS if name in ORDERS.sum_by else Step.RENDERING)


def test_nothing_and_an_empty_text_are_told_apart() -> None:
    rows = [order(n, basis=None if n % 2 else "") for n in range(10)]
    segment = written(ORDERS, [csv(*rows)])
    other = with_column(rows_of(segment), "basis", lambda values: [value or "" for value in values])
    assert refused(*forged(other, segment.facts)) is Step.RENDERING
