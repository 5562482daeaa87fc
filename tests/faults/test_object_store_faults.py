"""What the port of S3 makes of each thing that can go wrong: the promised end, in the promised tries."""

from __future__ import annotations

import asyncio
import hashlib
import tracemalloc
from collections.abc import AsyncIterator
from typing import Any

import pytest
from prometheus_client import REGISTRY

from chassis.errors import Overloaded
from chassis.s3 import (
    ObjectChanged,
    ObjectCold,
    ObjectDamaged,
    ObjectExists,
    ObjectNotFound,
    ObjectStore,
    S3Refused,
    S3Unavailable,
    open_store,
    stream,
)
from chassis.testing import FakeClock
from tests.buckets import PART_BYTES, Place
from tests.inprocess_s3 import InProcessS3

KEY = "orders/v1/shard=001/month=2024-08/part-00001.parquet"
BODY = b"".join(hashlib.sha256(b"%d" % number).digest() for number in range(3000))
LARGE = BODY * (PART_BYTES * 2 // len(BODY) + 1)
TRIES = 6
SOON_S: dict[str, Any] = {"attempt_s": 1.0, "tries_max": 3}
"""Patience with a server that says nothing."""


@pytest.fixture
async def server() -> AsyncIterator[InProcessS3]:
    async with InProcessS3.serving() as serving:
        yield serving


@pytest.fixture
async def store(server: InProcessS3) -> AsyncIterator[ObjectStore]:
    async with Place.of(server).store(tries_max=TRIES) as opened:
        await opened.make_bucket()
        yield opened


async def large() -> AsyncIterator[bytes]:
    for at in range(0, len(LARGE), 1_000_003):
        yield LARGE[at : at + 1_000_003]


async def content(store: ObjectStore) -> bytes:
    """What anybody finds, and that it is what its sum says."""
    there = await store.head(KEY)
    return b"".join([piece async for piece in stream(store, there, piece_bytes=50_000)])


def counted(call: str, outcome: str) -> float:
    return (
        REGISTRY.get_sample_value("ordermesh_object_calls_total", {"call": call, "outcome": outcome}) or 0.0
    )


def retried(call: str) -> float:
    labels = {"call": call, "cause": "unavailable"}
    return REGISTRY.get_sample_value("ordermesh_object_retries_total", labels) or 0.0


# Refusals that pass.

PASSING = [(503, "SlowDown"), (500, "InternalError"), (503, "ServiceUnavailable"), (429, "TooManyRequests")]


@pytest.mark.parametrize(("status", "code"), PASSING, ids=lambda value: str(value))
async def test_a_storm_that_passes_is_waited_for_try_by_try(
    server: InProcessS3, store: ObjectStore, status: int, code: str
):
    before = retried("put"), counted("put", "ok")
    server.fail("PutObject", status, code, times=TRIES - 1)
    made = await store.create(KEY, BODY)
    assert server.seen["PutObject"] == TRIES
    assert (retried("put"), counted("put", "ok")) == (before[0] + TRIES - 1, before[1] + 1)
    for operation, read in (
        ("GetObject", store.read(made)),
        ("HeadObject", store.head(KEY)),
        ("ListObjectsV2", store.list("")),
    ):
        server.fail(operation, status, code, times=TRIES - 1)
        server.seen.clear()
        await read
        assert server.seen[operation] == TRIES
    assert await content(store) == BODY


async def test_a_storm_that_stays_ends_the_call_with_its_tries(server: InProcessS3, store: ObjectStore):
    before = counted("put", "unavailable")
    server.fail("PutObject", 503, "SlowDown", times=1000)
    with pytest.raises(S3Unavailable, match="SlowDown"):
        await store.create(KEY, BODY)
    assert server.seen["PutObject"] == TRIES
    assert counted("put", "unavailable") == before + 1
    with pytest.raises(ObjectNotFound):
        await store.head(KEY)


async def test_pauses_are_anything_up_to_a_bound_that_doubles(server: InProcessS3):
    clock = FakeClock()
    settings = Place.of(server).settings(pause_s=0.1, pause_s_max=0.5, tries_max=6)
    async with open_store(settings, clock=clock, jitter=lambda: 0.5) as store:
        await store.make_bucket()
        server.fail("PutObject", 503, "SlowDown", times=5)
        await store.create(KEY, BODY)
    assert clock.monotonic() == pytest.approx(0.5 * (0.1 + 0.2 + 0.4 + 0.5 + 0.5))


async def test_a_call_ends_at_its_deadline_however_many_tries_it_had_left(server: InProcessS3):
    clock = FakeClock()
    settings = Place.of(server).settings(pause_s=10, pause_s_max=60, call_s=25.0, tries_max=20)
    async with open_store(settings, clock=clock, jitter=lambda: 1.0) as store:
        await store.make_bucket()
        server.fail("PutObject", 500, "InternalError", times=1000)
        with pytest.raises(S3Unavailable):
            await store.create(KEY, BODY)
    for_bytes_s = len(BODY) / settings.bytes_per_s_min
    assert clock.monotonic() == pytest.approx(25.0 + for_bytes_s), "10 s, then the rest, and no try after it"
    assert server.seen["PutObject"] == 2


@pytest.mark.parametrize("code", ["AccessDenied", "InvalidAccessKeyId", "EntityTooLarge"])
async def test_a_refusal_that_stays_is_not_repeated(server: InProcessS3, store: ObjectStore, code: str):
    server.fail("PutObject", 403, code, times=1000)
    with pytest.raises(S3Refused) as refused:
        await store.create(KEY, BODY)
    assert (refused.value.code, server.seen["PutObject"]) == (code, 1)


async def test_an_object_in_cold_storage_is_told_from_one_that_is_gone(
    server: InProcessS3, store: ObjectStore
):
    made = await store.create(KEY, BODY)
    server.fail("GetObject", 403, "InvalidObjectState")
    with pytest.raises(ObjectCold):
        await store.read(made)
    assert await store.read(made) == BODY


# Answers that are lost.


async def test_a_lost_answer_of_a_put_is_settled_by_looking(server: InProcessS3, store: ObjectStore):
    server.lose_answer("PutObject", times=2)
    made = await store.create(KEY, BODY)
    assert len(server.buckets[store.settings.bucket].objects[KEY]) == 1
    assert made.version_id == server.buckets[store.settings.bucket].objects[KEY][0].version_id
    assert await content(store) == BODY


async def test_a_lost_answer_is_settled_also_when_looking_fails_at_first(
    server: InProcessS3, store: ObjectStore
):
    server.lose_answer("PutObject", times=2)
    server.fail("HeadObject", 503, "ServiceUnavailable", times=2)
    made = await store.create(KEY, BODY)
    assert [it.version_id for it in server.buckets[store.settings.bucket].objects[KEY]] == [made.version_id]


async def test_a_lost_answer_does_not_take_another_ones_object_for_ours(
    server: InProcessS3, store: ObjectStore
):
    theirs = await store.create(KEY, b"theirs")
    server.cut("PutObject", times=2)
    with pytest.raises(ObjectExists):
        await store.create(KEY, BODY)
    assert await store.read(theirs) == b"theirs"


async def test_a_lost_answer_of_a_replacement_is_settled_by_looking(server: InProcessS3, store: ObjectStore):
    first = await store.create(KEY, b"first")
    server.lose_answer("PutObject", times=2)
    second = await store.replace(first, BODY)
    assert second.etag == (await store.head(KEY)).etag
    server.lose_answer("PutObject", times=2)
    with pytest.raises(ObjectChanged):
        await store.replace(first, b"of a zombie")
    assert await content(store) == BODY


async def test_a_lost_answer_of_a_delete_is_a_delete(server: InProcessS3, store: ObjectStore):
    made = await store.create(KEY, BODY)
    server.lose_answer("DeleteObject", times=2)
    await store.delete(made)
    with pytest.raises(ObjectNotFound):
        await store.head(KEY)


@pytest.mark.parametrize("operation", ["CreateMultipartUpload", "UploadPart", "CompleteMultipartUpload"])
async def test_a_lost_answer_of_an_upload_ends_in_one_whole_object(
    server: InProcessS3, store: ObjectStore, operation: str
):
    server.lose_answer(operation, times=2)
    made = await store.upload(KEY, large)
    assert len(server.buckets[store.settings.bucket].objects[KEY]) == 1
    there = await store.head(KEY)
    assert (there.version_id, there.etag) == (made.version_id, made.etag)
    assert made.sha256 == hashlib.sha256(LARGE).hexdigest()
    assert b"".join([piece async for piece in stream(store, made)]) == LARGE


async def test_an_error_hidden_in_a_success_is_an_error(server: InProcessS3, store: ObjectStore):
    server.hide_error_in_success("CompleteMultipartUpload", times=2)
    made = await store.upload(KEY, large)
    assert server.seen["CompleteMultipartUpload"] == 3
    assert b"".join([piece async for piece in stream(store, made)]) == LARGE


async def test_a_conflict_begins_an_upload_again_and_again_in_bounds(server: InProcessS3, store: ObjectStore):
    server.fail("CompleteMultipartUpload", 409, "ConditionalRequestConflict")
    made = await store.upload(KEY, large)
    assert server.seen["CreateMultipartUpload"] == 2
    assert b"".join([piece async for piece in stream(store, made)]) == LARGE
    assert (await store.uploads("")).uploads == ()

    server.fail("CompleteMultipartUpload", 409, "ConditionalRequestConflict", times=1000)
    with pytest.raises(S3Unavailable, match="came between"):
        await store.upload(f"{KEY}.2", large)
    assert (await store.uploads("")).uploads == ()


async def test_a_conflict_sends_a_put_again(server: InProcessS3, store: ObjectStore):
    server.fail("PutObject", 409, "ConditionalRequestConflict", times=2)
    await store.create(KEY, BODY)
    assert server.seen["PutObject"] == 3


async def test_a_refused_condition_without_an_object_is_somebody_elses(
    server: InProcessS3, store: ObjectStore
):
    server.fail("PutObject", 412, "PreconditionFailed")
    with pytest.raises(ObjectExists):
        await store.create(KEY, BODY)
    server.fail("CompleteMultipartUpload", 412, "PreconditionFailed")
    with pytest.raises(ObjectExists):
        await store.upload(KEY, large)
    assert (await store.uploads("")).uploads == ()


# Bytes that change.


async def test_a_body_that_changes_on_its_way_in_is_not_kept_and_sent_again(
    server: InProcessS3, store: ObjectStore
):
    server.flip_on_the_way_in("PutObject", times=2)
    await store.create(KEY, BODY)
    assert server.seen["PutObject"] == 3
    assert await content(store) == BODY

    server.flip_on_the_way_in("UploadPart", times=2)
    made = await store.upload(f"{KEY}.large", large)
    assert b"".join([piece async for piece in stream(store, made)]) == LARGE

    server.flip_on_the_way_in("PutObject", times=1000)
    with pytest.raises(ObjectDamaged, match="not what was sent"):
        await store.create(f"{KEY}.never", BODY)
    with pytest.raises(ObjectNotFound):
        await store.head(f"{KEY}.never")


async def test_a_bit_that_changes_on_its_way_out_or_at_rest_is_found(server: InProcessS3, store: ObjectStore):
    made = await store.create(KEY, BODY)
    server.flip_on_the_way_out()
    with pytest.raises(ObjectDamaged, match="SHA-256"):
        await content(store)
    assert await content(store) == BODY
    server.flip_at_rest(store.settings.bucket, KEY)
    for _ in range(2):
        with pytest.raises(ObjectDamaged, match=made.sha256):
            await content(store)


async def test_a_body_that_ends_too_early_is_read_again(server: InProcessS3, store: ObjectStore):
    made = await store.create(KEY, BODY)
    server.truncate(times=3)
    assert await store.read(made) == BODY
    assert server.seen["GetObject"] == 4
    server.truncate(times=1000)
    with pytest.raises(S3Unavailable):
        await store.read(made)


# Silence.


async def test_a_server_that_says_nothing_is_left_and_asked_again(server: InProcessS3):
    async with Place.of(server).store(**SOON_S) as store:
        await store.make_bucket()
        server.stall("PutObject")
        made = await store.create(KEY, BODY)
        server.stall("GetObject")
        server.stall("HeadObject")
        read, there = await asyncio.gather(store.read(made), store.head(KEY))
        assert (read, there.etag) == (BODY, made.etag)
        server.stall("ListObjectsV2", times=1000)
        with pytest.raises(S3Unavailable, match="Timeout"):
            await store.list("")


async def test_a_server_that_is_down_is_unavailable_and_back_when_it_is_up(
    server: InProcessS3, store: ObjectStore
):
    made = await store.create(KEY, BODY)
    await server.go_down()
    for call in (store.read(made), store.head(KEY), store.create(f"{KEY}.2", b"x"), store.ping()):
        with pytest.raises(S3Unavailable):
            await call
    await server.come_up()
    assert await store.read(made) == BODY
    await store.create(f"{KEY}.2", b"x")


async def test_an_upload_that_cannot_go_on_says_so_and_its_rest_is_removed_later(
    server: InProcessS3, store: ObjectStore
):
    server.fail("UploadPart", 500, "InternalError", times=1000)
    server.fail("AbortMultipartUpload", 503, "SlowDown", times=1000)
    with pytest.raises(S3Unavailable, match="InternalError"):
        await store.upload(KEY, large)
    server.forgive()
    (left,) = (await store.uploads("")).uploads
    await store.abort(left)
    assert (await store.uploads("")).uploads == ()
    await store.upload(KEY, large)


async def test_somebody_who_gives_our_upload_up_makes_it_begin_again(server: InProcessS3, store: ObjectStore):
    swept = False

    async def body() -> AsyncIterator[bytes]:
        nonlocal swept
        yield LARGE[:PART_BYTES]
        if not swept:
            swept = True
            await asyncio.gather(*(store.abort(upload) for upload in (await store.uploads("")).uploads))
        yield LARGE[PART_BYTES:]

    made = await store.upload(KEY, body)
    assert swept
    assert b"".join([piece async for piece in stream(store, made)]) == LARGE


async def test_too_many_calls_at_once_are_refused_at_once_and_the_others_are_served(server: InProcessS3):
    async with Place.of(server).store(connections=2) as store:
        await store.make_bucket()
        made = await store.create(KEY, b"here")
        ends = await asyncio.gather(*(store.read(made) for _ in range(20)), return_exceptions=True)
        assert [end for end in ends if isinstance(end, bytes)] == [b"here"] * 8
        assert sum(isinstance(end, Overloaded) for end in ends) == 12


# Lists and memory.


async def test_a_late_list_misleads_nobody(server: InProcessS3, store: ObjectStore):
    made = await store.create(KEY, BODY)
    server.freeze_lists()
    await store.delete(made)
    await store.create(f"{KEY}.new", BODY)
    assert [found.key for found in (await store.list("")).objects] == [KEY]
    with pytest.raises(ObjectNotFound):
        await store.head(KEY)
    await store.delete(made)
    assert (await store.head(f"{KEY}.new")).size_bytes == len(BODY)


async def test_an_upload_of_many_parts_holds_about_one(server: InProcessS3, store: ObjectStore):
    chunk = bytes(1024 * 1024)

    async def long() -> AsyncIterator[bytes]:
        for _ in range(60):
            yield chunk

    server.forget_parts = True
    tracemalloc.start()
    try:
        with pytest.raises(S3Refused, match="InvalidPart"):
            await store.upload(KEY, long)
        _, peak_bytes = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert server.seen["UploadPart"] == 12
    assert peak_bytes < 6 * PART_BYTES, "a part here, and one on each side of the wire"
