"""What the port of S3 promises, whichever S3 it is: the one in this process, and SeaweedFS."""

from __future__ import annotations

import asyncio
import hashlib
import zlib
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta

import httpx
import pytest
from botocore.exceptions import ClientError

from chassis.s3 import (
    LINK_S_MAX,
    Found,
    ObjectChanged,
    ObjectExists,
    ObjectLocked,
    ObjectNotFound,
    ObjectStore,
    S3Refused,
    stream,
)
from chassis.s3.store import PUT_BYTES_MAX
from chassis.testing import eventually
from ops.seaweedfs import SeaweedServer
from tests.buckets import PART_BYTES, Place
from tests.inprocess_s3 import InProcessS3

KEY = "orders/v1/shard=001/month=2024-08/part-00001.parquet"
LARGE = PART_BYTES * 2 + 1234


@pytest.fixture(params=["in_process", "seaweedfs"])
async def place(request: pytest.FixtureRequest, s3: SeaweedServer) -> AsyncIterator[Place]:
    if request.param == "seaweedfs":
        yield Place.of(s3)
        return
    async with InProcessS3.serving() as server:
        yield Place.of(server)


@pytest.fixture
async def store(place: Place) -> AsyncIterator[ObjectStore]:
    """A bucket with versions."""
    async with place.store() as opened:
        await opened.make_bucket()
        yield opened


@pytest.fixture
async def plain(place: Place) -> AsyncIterator[ObjectStore]:
    """A bucket without versions."""
    async with place.store() as opened:
        await opened.make_bucket(versions=False)
        yield opened


def body_of(size_bytes: int) -> bytes:
    """Bytes of which no two pieces are alike."""
    return b"".join(hashlib.sha256(b"%d" % number).digest() for number in range(size_bytes // 32 + 1))[
        :size_bytes
    ]


def opened(body: bytes, *, chunk_bytes: int = 300_000):
    async def chunks() -> AsyncIterator[bytes]:
        for at in range(0, len(body), chunk_bytes):
            yield body[at : at + chunk_bytes]

    return chunks


async def whole(store: ObjectStore, of) -> bytes:
    return b"".join([piece async for piece in stream(store, of, piece_bytes=3_000_000)])


async def test_an_object_is_created_once_and_the_same_bytes_again_are_the_same_success(store: ObjectStore):
    first = await store.create(KEY, b"the first")
    again = await store.create(KEY, b"the first")
    assert (again.etag, again.version_id, again.sha256) == (first.etag, first.version_id, first.sha256)
    with pytest.raises(ObjectExists):
        await store.create(KEY, b"the second")
    assert await store.read(first) == b"the first"


async def test_of_many_who_create_at_once_one_wins(store: ObjectStore, plain: ObjectStore):
    for place in (store, plain):
        bodies = [b"from %d" % number for number in range(8)]
        ends = await asyncio.gather(*(place.create(KEY, body) for body in bodies), return_exceptions=True)
        won = [body for body, end in zip(bodies, ends, strict=True) if not isinstance(end, BaseException)]
        lost = [end for end in ends if isinstance(end, BaseException)]
        assert len(won) == 1
        assert all(isinstance(end, ObjectExists) for end in lost), lost
        assert await place.read(await place.head(KEY)) == won[0]


async def test_a_head_says_what_is_there_and_that_nothing_is(store: ObjectStore):
    body = body_of(100_000)
    made = await store.create(KEY, body, content_type="application/vnd.apache.parquet")
    there = await store.head(KEY)
    assert (there.key, there.size_bytes, there.etag) == (KEY, len(body), made.etag)
    assert there.sha256 == made.sha256 == hashlib.sha256(body).hexdigest()
    assert there.version_id == made.version_id != ""
    assert there.stored_at is not None
    assert abs(there.stored_at - datetime.now(UTC)) < timedelta(minutes=1)
    assert await store.head(KEY, version_id=made.version_id) == there
    with pytest.raises(ObjectNotFound):
        await store.head("orders/none")
    with pytest.raises(ObjectNotFound):
        await store.head(KEY, version_id="0" * 32)


async def test_an_empty_object_is_one(store: ObjectStore):
    made = await store.create(KEY, b"")
    assert await store.read(made) == b""
    assert await whole(store, await store.head(KEY)) == b""


async def test_a_range_gives_exactly_its_bytes_and_lies_within_the_object(store: ObjectStore):
    body = body_of(70_000)
    made = await store.create(KEY, body)
    assert await store.read(made) == body
    assert await store.read(made, first_byte=69_999) == body[-1:]
    assert await store.read(made, first_byte=1_000, size_bytes=5) == body[1_000:1_005]
    assert await store.read(made, first_byte=70_000) == b""
    for first, size in ((0, 70_001), (70_000, 1), (-1, 2), (5, -1)):
        with pytest.raises(ValueError, match="are not within"):
            await store.read(made, first_byte=first, size_bytes=size)


async def test_a_read_never_gives_the_bytes_of_another_object(store: ObjectStore, plain: ObjectStore):
    old = await plain.create(KEY, b"as it was")
    new = await plain.replace(old, b"as it is!")
    with pytest.raises(ObjectChanged):
        await plain.read(old)
    assert await plain.read(new) == b"as it is!"
    kept = await store.create(KEY, b"as it was")
    await store.replace(kept, b"as it is!")
    assert await store.read(kept) == b"as it was", "the old version is still there"
    await store.delete(kept)
    with pytest.raises(ObjectNotFound):
        await store.read(kept)


async def test_an_object_is_replaced_only_when_it_is_the_one_that_is_meant(store: ObjectStore):
    first = await store.create(KEY, b"first")
    second = await store.replace(first, b"second")
    assert (await store.replace(first, b"second")).etag == second.etag, "a repetition finds its own bytes"
    with pytest.raises(ObjectChanged):
        await store.replace(first, b"third")
    assert await store.read(await store.head(KEY)) == b"second"


async def test_nothing_is_replaced_where_nothing_is(plain: ObjectStore):
    gone = await plain.create(KEY, b"gone")
    await plain.delete(gone)
    with pytest.raises(ObjectChanged):
        await plain.replace(gone, b"new")
    with pytest.raises(ObjectNotFound):
        await plain.head(KEY)


async def test_a_delete_takes_exactly_what_is_meant_and_may_be_repeated(
    plain: ObjectStore, store: ObjectStore
):
    old = await plain.create(KEY, b"old")
    new = await plain.replace(old, b"new!")
    with pytest.raises(ObjectChanged):
        await plain.delete(old)
    assert await plain.read(new) == b"new!"
    await plain.delete(new)
    await plain.delete(new)
    with pytest.raises(ObjectNotFound):
        await plain.head(KEY)

    old = await store.create(KEY, b"old")
    new = await store.replace(old, b"new!")
    await store.delete(old)
    await store.delete(old)
    assert await store.read(new) == b"new!"
    assert (await store.head(KEY)).version_id == new.version_id


async def test_a_locked_object_is_not_deleted(place: Place):
    async with place.store(object_lock=True) as store:
        await store.make_bucket(locks=True)
        locked = await store.create(KEY, b"kept", retain_until=datetime.now(UTC) + timedelta(days=1))
        free = await store.create("free", b"not kept")
        with pytest.raises(ObjectLocked):
            await store.delete(locked)
        await store.delete(free)
        assert await store.read(locked) == b"kept"


async def test_a_lock_is_told_and_gives_way_only_to_who_bypasses_it(place: Place):
    until = (datetime.now(UTC) + timedelta(days=1)).replace(microsecond=0)
    async with place.store(object_lock=True) as store:
        await store.make_bucket(locks=True)
        small = await store.create(KEY, b"kept", retain_until=until)
        large = await store.upload("large", opened(body_of(6 * 1024 * 1024)), retain_until=until)
        for locked in (small, large):
            there = await store.head(locked.key)
            assert (locked.locked_until, there.locked_until) == (until, until)
            with pytest.raises(ObjectLocked):
                await store.delete(there)
            await store.delete(there, bypass_lock=True)
            with pytest.raises(ObjectNotFound):
                await store.head(locked.key)
        assert (await store.head((await store.create("free", b"not kept")).key)).locked_until is None


async def test_a_list_comes_by_key_in_bounded_pages(store: ObjectStore):
    keys = [f"month={month:02}/part-{part}" for month in (10, 9, 11) for part in (2, 0, 1)]
    made = {key: await store.create(key, key.encode()) for key in keys}
    seen: list[Found] = []
    after, pages = "", 0
    while True:
        page = await store.list("month=1", after=after, limit=2)
        pages += 1
        assert len(page.objects) <= 2
        seen += page.objects
        if not page.more:
            break
        after = page.objects[-1].key
    assert [found.key for found in seen] == sorted(key for key in keys if key.startswith("month=1"))
    assert [found.etag for found in seen] == [made[found.key].etag for found in seen]
    assert {found.size_bytes for found in seen} == {len(keys[0])}
    assert pages == 3, "six objects, two by two"
    for limit in (0, 1001):
        with pytest.raises(ValueError, match="a page has"):
            await store.list("", limit=limit)


@pytest.mark.parametrize("key", ["with space/and+plus", "a%20b/100%", "ä/₹/注文", "q?x=1&y=2", "a=b;c,d@e:f"])
async def test_a_key_may_have_any_letters(store: ObjectStore, key: str):
    made = await store.create(key, b"here")
    assert (await store.head(key)).etag == made.etag
    assert await store.read(made) == b"here"
    assert [found.key for found in (await store.list("")).objects] == [key]
    address = await store.link(made, valid_s=60, filename="it.txt")
    async with httpx.AsyncClient() as client:
        assert (await client.get(address)).content == b"here"
    await store.delete(made)


async def test_what_is_large_goes_in_parts_and_comes_back_whole(store: ObjectStore):
    body = body_of(LARGE)
    made = await store.upload(KEY, opened(body), content_type="text/csv")
    assert (made.size_bytes, made.sha256) == (LARGE, hashlib.sha256(body).hexdigest())
    assert made.crc32 == f"{zlib.crc32(body):08x}"
    there = await store.head(KEY)
    assert (there.size_bytes, there.etag, there.version_id) == (LARGE, made.etag, made.version_id)
    assert (there.sha256, there.crc32) == ("", made.crc32)
    assert await whole(store, made) == body
    assert (
        await store.read(there, first_byte=PART_BYTES - 2, size_bytes=4)
        == body[PART_BYTES - 2 : PART_BYTES + 2]
    )
    assert (await store.uploads("")).uploads == ()


async def test_an_upload_that_ends_at_a_part_has_no_empty_one(store: ObjectStore):
    body = body_of(PART_BYTES * 2)
    made = await store.upload(KEY, opened(body))
    assert made.etag.endswith("-2")
    assert await whole(store, made) == body


async def test_an_upload_that_fits_into_one_request_is_one(store: ObjectStore):
    made = await store.upload(KEY, opened(b"small"))
    assert made == await store.create(KEY, b"small") or made.etag == (await store.head(KEY)).etag
    assert "-" not in made.etag
    assert (await store.upload("empty", opened(b""))).size_bytes == 0


async def test_an_upload_does_not_replace_what_is_there(store: ObjectStore):
    first = await store.create(KEY, b"first")
    with pytest.raises(ObjectExists):
        await store.upload(KEY, opened(body_of(LARGE)))
    assert await store.read(await store.head(KEY)) == b"first"
    assert (await store.head(KEY)).etag == first.etag
    assert (await store.uploads("")).uploads == ()


async def test_an_upload_whose_body_fails_leaves_nothing(store: ObjectStore):
    async def broken() -> AsyncIterator[bytes]:
        yield body_of(PART_BYTES + 1)
        raise RuntimeError("no more rows")

    with pytest.raises(RuntimeError, match="no more rows"):
        await store.upload(KEY, broken)
    with pytest.raises(ObjectNotFound):
        await store.head(KEY)
    assert (await store.uploads("")).uploads == ()


async def test_a_cancelled_upload_leaves_nothing(store: ObjectStore):
    sent = asyncio.Event()

    async def endless() -> AsyncIterator[bytes]:
        yield body_of(PART_BYTES + 1)
        sent.set()
        await asyncio.Event().wait()

    task = asyncio.create_task(store.upload(KEY, endless))
    await sent.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    with pytest.raises(ObjectNotFound):
        await store.head(KEY)
    assert (await store.uploads("")).uploads == ()


async def test_what_a_killed_process_began_is_found_and_removed(store: ObjectStore):
    await store._parts._begin("month=1/a", "nobody", store.write_options("text/csv"))
    await store._parts._begin("month=2/b", "nobody", store.write_options("text/csv"))
    assert {upload.key for upload in (await store.uploads("")).uploads} == {"month=1/a", "month=2/b"}
    (left,) = (await store.uploads("month=1/")).uploads
    assert abs(left.begun_at - datetime.now(UTC)) < timedelta(minutes=1)
    await store.abort(left)
    await store.abort(left)
    assert [upload.key for upload in (await store.uploads("")).uploads] == ["month=2/b"]
    assert len((await store.uploads("", limit=1)).uploads) == 1


async def test_uploads_are_listed_page_by_page_also_when_they_go_meanwhile(store: ObjectStore):
    keys = [f"month={number}/a" for number in range(5)]
    for key in (*keys, keys[2]):
        await store._parts._begin(key, "nobody", store.write_options("text/csv"))
    for is_given_up in (False, True):
        page = await store.uploads("month=", limit=2)
        found = [*page.uploads]
        while page.next:
            if is_given_up:
                for each in page.uploads:
                    await store.abort(each)
            page = await store.uploads("month=", after=page.next, limit=2)
            assert len(page.uploads) <= 2
            found += page.uploads
        assert sorted(each.key for each in found) == sorted([*keys, keys[2]])
        assert len({each.upload_id for each in found}) == len(found)


async def test_a_link_gives_one_object_for_a_while(store: ObjectStore):
    made = await store.create(KEY, b"a;b\r\n", content_type="text/csv")
    address = await store.link(made, valid_s=60, filename="statement_2024-08.csv", content_type="text/csv")
    async with httpx.AsyncClient() as client:
        answer = await client.get(address)
        assert (answer.status_code, answer.content) == (200, b"a;b\r\n")
        assert answer.headers["content-disposition"] == 'attachment; filename="statement_2024-08.csv"'
        assert answer.headers["content-type"].startswith("text/csv")
        assert (await client.get(address.replace("part-00001", "part-00002"))).status_code == 403
        assert (await client.get(address.replace("statement_", "malware_"))).status_code == 403

        short = await store.link(made, valid_s=1, filename="a.csv")

        async def over() -> bool:
            return (await client.get(short)).status_code == 403

        assert await eventually(over, within_s=10)
    for valid_s in (0, LINK_S_MAX + 1):
        with pytest.raises(ValueError, match="valid for"):
            await store.link(made, valid_s=valid_s, filename="a.csv")
    for name in ("", 'a"b', "a\r\nSet-Cookie: x", "../a", "ä.csv"):
        with pytest.raises(ValueError, match="name of a file"):
            await store.link(made, valid_s=60, filename=name)


async def test_a_link_leads_to_the_public_endpoint_and_calls_to_the_other(place: Place):
    inside, outside = place.endpoint, place.endpoint.replace("127.0.0.1", "localhost")
    assert inside != outside
    async with place.store(public_endpoint=outside) as store:
        await store.make_bucket()
        made = await store.create(KEY, b"here")
        address = await store.link(made, valid_s=60, filename="a.csv")
        assert address.startswith(f"{outside}/")
        async with httpx.AsyncClient(trust_env=False) as client:
            assert (await client.get(address)).content == b"here"
            assert (await client.get(address.replace(outside, inside))).status_code == 403, (
                "the host is signed"
            )
    async with place.store(store.settings.bucket, public_endpoint="https://files.invalid") as store:
        assert await store.read(made) == b"here"
        assert (await store.link(made, valid_s=60, filename="a.csv")).startswith("https://files.invalid/")


async def test_s3_keeps_only_what_its_sum_says(store: ObjectStore):
    """The port always gives the sum of what it sends; this is what the server makes of one that differs."""
    for sums in ({"ChecksumSHA256": "0" * 43 + "="}, {"ChecksumCRC32": "AAAAAA=="}):
        with pytest.raises(ClientError, match="BadDigest"):
            await store._client.put_object(Bucket=store.settings.bucket, Key=KEY, Body=b"other", **sums)
    with pytest.raises(ObjectNotFound):
        await store.head(KEY)


async def test_who_may_not_is_told_so_and_so_is_who_asks_for_no_bucket(place: Place, store: ObjectStore):
    await store.ping()
    bucket = store.settings.bucket
    async with place.store(bucket, secret_key="wrong") as stranger:
        for call in (stranger.ping(), stranger.create(KEY, b"x"), stranger.list("")):
            with pytest.raises(S3Refused) as refused:
                await call
            assert refused.value.status == 403
    async with place.store() as nowhere:
        for call in (nowhere.ping(), nowhere.create(KEY, b"x"), nowhere.list("")):
            with pytest.raises(S3Refused, match="NoSuchBucket"):
                await call
    assert (await store.list("")).objects == ()


async def test_a_bucket_is_made_once(store: ObjectStore):
    made = await store.create(KEY, b"here")
    await store.make_bucket()
    assert await store.read(made) == b"here"


async def test_a_body_that_is_too_large_is_refused_before_it_is_sent(store: ObjectStore):
    with pytest.raises(ValueError, match="too many for one request"):
        await store.create(KEY, bytes(PUT_BYTES_MAX + 1))
