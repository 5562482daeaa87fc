"""Rows go into a segment and come out of it, byte for byte."""

from __future__ import annotations

import json

from archive_svc.codec.proof import prove
from archive_svc.codec.reading import SparseFile, csv_rows, ranges_of, read_groups
from archive_svc.columns import JOURNAL, ORDERS
from archive_svc.segment import Facts
from tests.archives import csv, entry, order, written


def test_a_segment_holds_what_copy_wrote() -> None:
    blocks = [csv(*(order(n) for n in range(first, first + 50))) for first in range(0, 500, 50)]
    segment = written(ORDERS, blocks, group_bytes=8192)
    proof = prove(ORDERS, segment.body, segment.facts)
    assert proof.rows == 500
    assert b"".join(csv_rows(ORDERS, segment.body)) == b"".join(blocks)
    assert len(segment.facts.groups) > 3


def test_a_journal_s_segment_holds_what_copy_wrote() -> None:
    block = csv(*(entry(n, version) for n in range(30) for version in (1, 2)))
    segment = written(JOURNAL, [block])
    assert prove(JOURNAL, segment.body, segment.facts).rows == 60
    assert b"".join(csv_rows(JOURNAL, segment.body)) == block


def test_facts_survive_a_manifest() -> None:
    facts = written(ORDERS, [csv(order(1), order(2, amount_minor=2**63 - 1))]).facts
    assert Facts.from_json(json.loads(json.dumps(facts.as_json()))) == facts


def test_a_user_is_read_out_of_his_groups_alone() -> None:
    users = [f"user-{n:02}" for n in range(20)]
    rows = [order(n, user_id=user) for user in users for n in range(40)]
    segment = written(ORDERS, [csv(*rows)], group_bytes=8192)
    facts, body = segment.facts, segment.body
    groups = facts.groups_of("user-07")
    assert 0 < len(groups) < len(facts.groups)
    ranges = ranges_of(facts, groups)
    file = SparseFile(facts.size_bytes, {at: body[at : at + size] for at, size in ranges})
    table = read_groups(ORDERS, facts, file, groups, user_id="user-07")
    assert table.column("order_id").to_pylist() == [str(order(n)["order_id"]) for n in range(40)]
    assert file.read_bytes == sum(size for _, size in ranges) - facts.footer_bytes
