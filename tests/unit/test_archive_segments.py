"""Rows go into a segment and come out of it, byte for byte; what is no row goes into none."""

from __future__ import annotations

import json
import random
from collections import Counter
from itertools import pairwise
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pyarrow import parquet

from archive_svc.codec.proof import prove
from archive_svc.codec.reading import csv_rows
from archive_svc.codec.writer import SegmentWriter
from archive_svc.columns import JOURNAL, ORDERS, Shape
from archive_svc.segment import Facts, Key, RowsRefused, Segment, Sum
from tests.archives import ABOUT, BEGINS, Row, csv, entry, order, written

INT64 = st.integers(-(2**63), 2**63 - 1)
ODD = (
    "",
    '"',
    '""',
    "\n",
    "\r\n",
    "\r",
    "\\.",
    "\n\\.\n",
    "\\N",
    "NULL",
    ",",
    " ",
    "NaN",
    "-0",
    "0x1",
    "\ufeff",
)
SPOKEN = ("नमस्ते दुनिया", "தமிழ்", "বাংলা", "שלום \u202e عربى", "e\u0301", "👩🏽‍🚀", "\U0010ffff")
TEXTS = st.sampled_from(ODD + SPOKEN) | st.text(
    st.characters(exclude_characters="\0", exclude_categories=["Cs"]), max_size=40
)
CURRENCIES = st.sampled_from([("JPY", 0), ("KWD", 3), ("EUR", 2), ("INR", 2)])


@st.composite
def orders(draw: st.DrawFn) -> list[Row]:
    """Some orders of some users, in their order."""
    rows = []
    for user_id in sorted(draw(st.sets(TEXTS.filter(bool), max_size=4)), key=str.encode):
        for number in range(draw(st.integers(1, 5))):
            code, exponent = draw(CURRENCIES)
            changes = {
                "amount_minor": draw(INT64),
                "currency_code": code,
                "currency_exp": exponent,
                "description": draw(TEXTS),
                "labels": draw(TEXTS),
                "failure_reason": draw(TEXTS),
                "basis": draw(st.none() | TEXTS),
                "updated_at": draw(INT64),
                "settled_at": draw(st.none() | INT64),
                "route_epoch": draw(INT64),
                "leg": draw(st.integers(-(2**31), 2**31 - 1)),
                "schema_version": draw(st.integers(-(2**15), 2**15 - 1)),
            }
            rows.append(order(number, user_id=user_id, **changes))
    return rows


def stream_of(shape: Shape, segment: Segment) -> bytes:
    """A segment's rows, which are proven first."""
    proof = prove(shape, segment.body, segment.facts)
    stream = b"".join(csv_rows(shape, segment.body))
    assert (proof.rows, proof.stream_bytes) == (segment.facts.rows, len(stream))
    return stream


@settings(deadline=None, max_examples=80)
@given(rows=orders(), cuts=st.lists(st.integers(0, 20), max_size=3), group_bytes=st.integers(1, 20_000))
def test_whatever_copy_writes_comes_back(rows: list[Row], cuts: list[int], group_bytes: int) -> None:
    edges = [0, *sorted(cuts), len(rows)]
    blocks = [csv(*rows[first:last]) for first, last in pairwise(edges)]
    segment = written(ORDERS, blocks, group_bytes=group_bytes)
    assert stream_of(ORDERS, segment) == csv(*rows)
    facts = segment.facts
    assert sum(group.rows for group in facts.groups) == facts.rows == len(rows)
    counts = Counter((row["currency_code"], row["status"]) for row in rows)
    totals: Counter[tuple[str, str]] = Counter()
    for row in rows:
        totals[row["currency_code"], row["status"]] += row["amount_minor"]
    assert facts.sums == tuple(Sum(by, counts[by], totals[by]) for by in sorted(counts))
    assert Facts.from_json(json.loads(json.dumps(facts.as_json()))) == facts


@settings(deadline=None, max_examples=50)
@given(texts=st.lists(st.tuples(st.none() | TEXTS, TEXTS, INT64), min_size=1, max_size=12))
def test_whatever_copy_writes_of_a_journal_comes_back(texts: list[tuple[str | None, str, int]]) -> None:
    rows = [
        entry(7, version, proof=maybe, evidence=text, actor=text, from_stage=maybe, at=at)
        for version, (maybe, text, at) in enumerate(texts, start=1)
    ]
    segment = written(JOURNAL, [csv(*rows)])
    assert stream_of(JOURNAL, segment) == csv(*rows)
    assert segment.facts.last == Key("alice", BEGINS.replace(second=7), rows[0]["order_id"], len(rows))
    kinds = Counter((row["kind"], row["to_status"]) for row in rows)
    assert segment.facts.sums == tuple(Sum(by, count, None) for by, count in sorted(kinds.items()))


@pytest.mark.parametrize("more", [-1, 0, 1])
@pytest.mark.parametrize("groups", [1, 3])
def test_a_month_may_end_where_a_group_does(groups: int, more: int) -> None:
    many = written(ORDERS, [csv(*(order(n) for n in range(2000)))], group_bytes=8192)
    rows = groups * many.facts.groups[0].rows + more
    segment = written(ORDERS, [csv(*(order(n) for n in range(rows)))], group_bytes=8192)
    assert stream_of(ORDERS, segment) == csv(*(order(n) for n in range(rows)))


def test_a_part_may_have_one_row_or_none() -> None:
    one, none = written(ORDERS, [csv(order(5))]), written(ORDERS, [b""])
    assert stream_of(ORDERS, one) == csv(order(5))
    assert one.facts.first == one.facts.last == Key("alice", BEGINS.replace(second=5), order(5)["order_id"])
    assert stream_of(ORDERS, none) == b""
    assert (none.facts.rows, none.facts.groups, none.facts.first, none.facts.sums) == (0, (), None, ())
    assert Facts.from_json(json.loads(json.dumps(none.facts.as_json()))) == none.facts


def test_totals_are_exact_beyond_64_bits() -> None:
    most, least = 2**63 - 1, -(2**63)
    rows = [order(n, amount_minor=most) for n in range(5)]
    rows += [order(n, amount_minor=least, currency_code="JPY") for n in range(5, 8)]
    facts = written(ORDERS, [csv(*rows[:2]), csv(*rows[2:])]).facts
    assert facts.sums == (Sum(("EUR", "SUCCESS"), 5, 5 * most), Sum(("JPY", "SUCCESS"), 3, 3 * least))
    assert Facts.from_json(json.loads(json.dumps(facts.as_json()))) == facts


def long_block(broken: bytes) -> list[bytes]:
    """Good rows, then something in a block of its own."""
    return [csv(order(1), order(2)), broken]


@pytest.mark.parametrize(
    "blocks",
    [
        pytest.param(long_block(csv(order(3))[:-1]), id="ends before its newline"),
        pytest.param(long_block(csv(order(3, traceparent="a\nb"))[:-30] + b"\n"), id="ends within a value"),
        pytest.param(long_block(b'"1","2"\n'), id="too few columns"),
        pytest.param(long_block(csv({**order(3), "more": 1})), id="a column more"),
        pytest.param(long_block(csv(order(3, amount_minor=2**63))), id="a number too large"),
        pytest.param(long_block(csv(order(3, leg="1.5"))), id="no integer"),
        pytest.param(long_block(csv(order(3, description="#")).replace(b"#", b"\xff")), id="no UTF-8"),
        pytest.param(long_block(csv(order(3, description=None))), id="a value missing"),
        pytest.param(long_block(csv(order(3, created_at=None))), id="no time"),
        pytest.param(long_block(csv(order(3, order_id="no id"))), id="no id"),
        pytest.param(long_block(csv(order(3, created_at=2**63 - 1))), id="a time that no month has"),
        pytest.param(long_block(csv(order(2))), id="a row twice"),
        pytest.param(long_block(csv(order(1))), id="falling between blocks"),
        pytest.param([csv(order(1), order(3), order(2))], id="falling in a block"),
        pytest.param([csv(order(1), order(1))], id="a row twice in a block"),
        pytest.param([csv(order(1, user_id="b"), order(2, user_id="B"))], id="users not by their bytes"),
    ],
)
def test_what_is_no_row_in_its_place_is_refused(blocks: list[bytes]) -> None:
    writer = SegmentWriter(ORDERS, ABOUT)
    for block in blocks[:-1]:
        writer.add(block)
    with pytest.raises(RowsRefused) as refused:
        writer.add(blocks[-1])
    assert "payments" not in str(refused.value)
    assert refused.value.__cause__ is None


def test_a_journal_s_versions_rise() -> None:
    writer = SegmentWriter(JOURNAL, ABOUT)
    writer.add(csv(entry(1, 9), entry(1, 10), entry(2, 1)))
    with pytest.raises(RowsRefused):
        writer.add(csv(entry(2, 1)))


def noisy(dice: random.Random, length: int) -> str:
    """Text that nothing compresses by more than a quarter."""
    return "".join(chr(dice.randrange(0x21, 0x7F)) for _ in range(length)).replace('"', "'")


def test_row_groups_are_of_one_size_whatever_users_write() -> None:
    wanted, dice = 64 * 1024, random.Random(1)
    rows = [order(n, user_id="a", labels="{}") for n in range(3000)]
    rows += [order(n, user_id="b", labels=noisy(dice, 16_000)) for n in range(300)]
    rows += [order(n, user_id="c", labels="x" * 400) for n in range(3000)]
    rows += [order(n, user_id="d", labels=noisy(dice, 400)) for n in range(3000)]
    rows += [order(n, user_id="e", labels="{}") for n in range(6000)]
    blocks = [csv(*rows[first : first + 500]) for first in range(0, len(rows), 500)]
    sizes = [group.size_bytes for group in written(ORDERS, blocks, group_bytes=wanted).facts.groups]
    assert len(sizes) > 50
    assert wanted / 3 < min(sizes) <= max(sizes) < 2 * wanted


def test_a_group_of_nothing_new_is_bounded_in_memory() -> None:
    rows = [
        order(n, upstream_ref="", labels="x" * 4000, request_id=order(0)["request_id"]) for n in range(4000)
    ]
    segment = written(ORDERS, [csv(*rows)], group_bytes=64 * 1024)
    assert len(segment.facts.groups) > 4
    assert stream_of(ORDERS, segment) == csv(*rows)


def test_any_engine_can_read_a_segment() -> None:
    """Typed columns, compressed pages with checksums, an index, and what the object says of itself."""
    rows = [order(n, basis=None if n % 2 else "UPSTREAM") for n in range(300)]
    body = written(ORDERS, [csv(*rows)]).body
    table = parquet.read_table(pa.BufferReader(body))
    assert table.schema.field("created_at").type == pa.timestamp("us", tz="UTC")
    assert table.schema.field("amount_minor").type == pa.int64()
    assert table.column("basis").to_pylist() == [row["basis"] for row in rows]
    assert table.column("created_at")[1].as_py() == BEGINS.replace(second=1)
    metadata: Any = parquet.read_metadata(pa.BufferReader(body))
    column = metadata.row_group(0).column(ORDERS.names.index("user_id"))
    assert (column.compression, column.has_offset_index, column.has_column_index) == ("ZSTD", True, True)
    assert column.statistics.max == "alice"
    assert [s.column_index for s in metadata.row_group(0).sorting_columns] == [
        ORDERS.names.index(name) for name in ORDERS.key
    ]
    said = {
        "shard": "s1",
        "month": "2023-08",
        "part": "0",
        "table": "orders",
        "schema_version": "1",
        "rows": "300",
    }
    assert metadata.metadata == {f"ordermesh.{k}".encode(): v.encode() for k, v in said.items()}
