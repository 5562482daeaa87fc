"""The pure parts of the channel of changes: messages, inboxes, and how often to look."""

from __future__ import annotations

from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from history_svc.channel.inbox import SPANS_MAX, Inbox
from history_svc.channel.tail import BUSY_S, IDLE_S, Pace
from history_svc.channel.wire import decode, encode
from history_svc.errors import EventTooLarge
from history_svc.events import EVENT_BYTES_MAX, Record
from history_svc.position import Position
from tests.streams import MemoryLog

AT = datetime(2026, 5, 4, 3, 2, 1, 654321, tzinfo=UTC)


@dataclass
class Message:
    offset: int
    key: bytes | None
    value: bytes | None
    headers: Any


def a_record(number: int, prev: int, partition: int = 5) -> Record:
    log = MemoryLog()
    return Record(partition, Position(1, number, 1), Position(1, prev, 1), AT, log.event(partition))


def message(record: Record) -> Message:
    entry = encode(record)
    return Message(7, entry.key, entry.value, tuple(entry.headers))


def test_a_record_is_the_same_after_its_way_over_the_topic():
    record = a_record(10, 9)
    assert record.event is not None
    traced = replace(record.event, traceparent="00-1-2-01", tracestate="a=b", version=2**40, origin="repair")
    for each in (record, replace(record, event=traced), replace(record, event=None)):
        assert decode(message(each), 5) == each


def test_the_headers_are_ascii_and_the_value_is_the_payload_alone():
    record = a_record(10, 9)
    assert record.event is not None
    sent = message(replace(record, event=replace(record.event, tracestate="größe=1")))
    assert sent.value == record.event.payload
    assert sent.key == b"5"
    headers = dict(sent.headers)
    assert all(value.isascii() and name.isascii() for name, value in headers.items())
    assert (headers["x-pos"], headers["x-prev"], headers["x-bucket"]) == (b"1:10:1", b"1:9:1", b"5")
    assert headers["x-agg-version"] == b"1"


def test_what_is_larger_than_a_producer_takes_is_refused():
    record = a_record(10, 9)
    assert record.event is not None
    with pytest.raises(EventTooLarge):
        encode(replace(record, event=replace(record.event, payload=b"x" * EVENT_BYTES_MAX)))
    with pytest.raises(EventTooLarge):
        encode(replace(record, event=replace(record.event, tracestate="x" * EVENT_BYTES_MAX)))
    fits = replace(record.event, payload=b"x" * 65536)
    entry = encode(replace(record, event=fits))
    assert len(entry.value) + sum(len(n) + len(v) for n, v in entry.headers) < EVENT_BYTES_MAX


OURS = (("x-pos", b"1:2:3"), ("x-prev", b"1:2:2"))


@pytest.mark.parametrize(
    "headers",
    [
        (),
        (("x-pos", b"1"),),
        (("x-pos", None),),
        (("x-pos", b"1:2:3"), ("x-event", b"change")),
        (*OURS, ("x-at", b"9" * 30), ("x-event", b"beat")),
        (*OURS, ("x-at", None), ("x-event", b"beat")),
    ],
)
def test_a_message_of_somebody_else_is_no_record(headers):
    with pytest.raises(ValueError, match=r"Error|unpack"):
        decode(Message(1, None, b"{}", headers), 5)


def test_an_inbox_commits_only_behind_what_is_searchable_without_a_hole():
    inbox = Inbox()
    for offset, number in enumerate((10, 11, 12, 10, 11, 12, 13)):
        inbox.put(offset, a_record(number, number - 1))
    assert len(inbox.give(10**9)) == 7
    commits = []
    for number in (9, 11, 12):
        inbox.keep(Position(1, number, 1))
        commits.append(inbox.commit_to)
    assert commits == [None, 2, 6], "while 12 is not searchable, what repeats behind it has to wait"


def test_an_inbox_knows_from_where_to_read_again_and_where_the_topic_has_a_gap():
    inbox = Inbox()
    for offset, (number, prev) in enumerate(((10, 9), (11, 10), (14, 13), (15, 14))):
        inbox.put(offset, a_record(number, prev))
    inbox.give(1)
    assert inbox.offset_after(Position(1, 9, 5)) == 0
    assert inbox.offset_after(Position(1, 10, 1)) == 1
    assert inbox.offset_after(Position(1, 11, 1)) is None, "12 and 13 are nowhere"
    assert inbox.offset_after(Position(1, 14, 3)) == 3
    inbox.forget_from(1)
    assert inbox.give(10**9) == []
    assert inbox.size_bytes == 0
    assert inbox.commit_to is None, "only what is kept is searchable"
    assert not inbox.ends_by(Position(1, 9, 5))
    assert inbox.ends_by(Position(1, 10, 1))
    inbox.keep(Position(1, 10, 1))
    assert inbox.commit_to == 1


def test_an_inbox_of_which_nothing_becomes_searchable_stays_small():
    inbox, record = Inbox(), a_record(10, 9)
    for offset in range(3 * SPANS_MAX):
        inbox.put(
            offset, replace(record, position=Position(1, 10 + offset, 1), prev=Position(1, 9 + offset, 1))
        )
        inbox.give(1)
    assert len(inbox._given) <= SPANS_MAX
    inbox.keep(Position(1, 9 + SPANS_MAX, 1))
    assert inbox.commit_to is not None
    assert 0 < inbox.commit_to <= SPANS_MAX
    inbox.keep(Position(1, 9 + 3 * SPANS_MAX, 1))
    assert inbox.commit_to == 3 * SPANS_MAX


@given(
    st.lists(st.tuples(st.integers(1, 30), st.integers(0, 3)), min_size=1, max_size=60),
    st.lists(st.tuples(st.sampled_from(["give", "keep", "back"]), st.integers(0, 40)), max_size=40),
)
def test_an_inbox_never_commits_over_a_record_that_is_not_searchable(arriving, steps):
    """Whatever arrives, in whatever order it is given, kept and taken back."""
    template = a_record(1, 0)
    topic = [
        replace(template, position=Position(1, n, 1), prev=Position(1, max(0, n - back), 1))
        for n, back in arriving
    ]
    inbox, next_offset, watermark = Inbox(), 0, Position(1, 0, 0)
    for step, number in steps:
        if step == "give":
            while next_offset < min(len(topic), number):
                inbox.put(next_offset, topic[next_offset])
                next_offset += 1
            inbox.give(400)
        elif step == "keep":
            watermark = max(watermark, Position(1, number, 1))
            inbox.keep(watermark)
        else:
            inbox.keep(watermark)
            offset = inbox.offset_after(watermark)
            if offset is not None:
                assert topic[offset].prev <= watermark < topic[offset].position
                inbox.forget_from(offset)
                next_offset = offset
        committed = inbox.commit_to or 0
        assert all(record.position <= watermark for record in topic[:committed])


def test_looks_become_rarer_while_nothing_happens_and_are_quick_again_after_a_change():
    pace = Pace(lambda: 0.5)
    waits = [pace.after(found=False) for _ in range(12)]
    assert waits == sorted(waits)
    assert waits[-1] == IDLE_S
    assert pace.after(found=True) == BUSY_S
    low, high = Pace(lambda: 0.0), Pace(lambda: 1.0)
    assert low.after(found=True) < BUSY_S < high.after(found=True), "two shards do not look in step"
