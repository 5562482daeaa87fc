"""The port: what services do with the objects of one bucket."""

from __future__ import annotations

import asyncio
import hashlib
import io
import random
import re
from contextlib import AsyncExitStack, asynccontextmanager
from functools import cache
from typing import TYPE_CHECKING, Any

from aiobotocore.config import AioConfig
from aiobotocore.session import AioSession, get_session
from botocore.exceptions import ClientError

from chassis import faults
from chassis.clock import SYSTEM_CLOCK
from chassis.s3.calls import Calls, typed
from chassis.s3.errors import (
    ObjectChanged,
    ObjectExists,
    ObjectLocked,
    ObjectNotFound,
    S3Error,
    S3Refused,
    S3Unavailable,
)
from chassis.s3.metrics import BYTES
from chassis.s3.objects import (
    SHA256,
    Found,
    Listing,
    Stored,
    Upload,
    Uploads,
    base64_of,
    quoted,
    stored,
    unquoted,
    utc,
    version,
)
from chassis.s3.parts import Parts
from chassis.s3.settings import MIB

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable
    from datetime import datetime

    from chassis.clock import Clock
    from chassis.s3.parts import OpenBody
    from chassis.s3.settings import S3Settings

PUT_BYTES_MAX = 64 * MIB
"""What one request may carry, either way; larger objects go in parts and come in ranges."""
PAGE_MAX = 1000
LINK_S_MAX = 900
"""A link that works for longer is a key that somebody forwards."""
BINARY = "application/octet-stream"
_FILENAME = re.compile(r"[A-Za-z0-9._-]{1,120}")

BEFORE_PUT = faults.declare("s3.before_put", "The object is not there.")
AFTER_PUT = faults.declare("s3.after_put", "The object is there; nobody was told.")
AFTER_DELETE = faults.declare("s3.after_delete", "The object is gone; nobody was told.")


class ObjectStore:
    """The objects of one bucket. Safe to use by many tasks. Made by `open_store`.

    Every method raises S3Unavailable when S3 gives no answer in time and S3Refused for what only a person can
    mend, besides what it names; and Overloaded when too many calls wait for a connection.
    """

    def __init__(self, client: Any, settings: S3Settings, calls: Calls, *, links: Any | None = None) -> None:
        self._client = client
        self._links = links or client
        self._settings = settings
        self._calls = calls
        self._parts = Parts(client, settings, calls, self)

    @property
    def settings(self) -> S3Settings:
        """Which bucket this is."""
        return self._settings

    async def ping(self) -> None:
        """See that the bucket is there and lets us in."""

        async def attempt(_: S3Error | None) -> None:
            await self._client.head_bucket(Bucket=self._settings.bucket)

        try:
            await self._calls.make("ping", "", attempt)
        except ObjectNotFound:
            raise S3Refused(404, "NoSuchBucket", f"there is no bucket {self._settings.bucket}") from None

    async def make_bucket(self, *, versions: bool = True, locks: bool = False) -> None:
        """Make the bucket where there is none, for stacks of our own. Idempotent."""
        bucket, region = self._settings.bucket, self._settings.region
        where = {} if region == "us-east-1" else {"LocationConstraint": region}

        async def attempt(_: S3Error | None) -> None:
            await self._client.create_bucket(
                Bucket=bucket,
                ObjectLockEnabledForBucket=locks,
                **({"CreateBucketConfiguration": where} if where else {}),
            )

        async def enable(_: S3Error | None) -> None:
            await self._client.put_bucket_versioning(
                Bucket=bucket, VersioningConfiguration={"Status": "Enabled"}
            )

        try:
            await self._calls.make("make_bucket", "", attempt)
        except S3Refused as refused:
            if refused.code not in ("BucketAlreadyOwnedByYou", "BucketAlreadyExists"):
                raise
        if versions and not locks:
            await self._calls.make("make_bucket", "", enable)

    async def create(
        self, key: str, body: bytes, *, content_type: str = BINARY, retain_until: datetime | None = None
    ) -> Stored:
        """Store an object under a key that nobody has; of two at once, one wins.

        body:         PUT_BYTES_MAX at most; S3 refuses to keep another than this, by SHA-256.
        retain_until: locked until then, when the settings say that the bucket has locks.

        Idempotent: the same bytes under the same key are a success. If cancelled here: it may be stored.
        Raises: ObjectExists when other bytes are there; ObjectDamaged when S3 got other bytes, each time.
        """
        return await self._put(key, body, {"IfNoneMatch": "*"}, content_type, retain_until)

    async def replace(self, meant: Stored, body: bytes, *, content_type: str = BINARY) -> Stored:
        """Store other bytes in the place of one object, if it is still the one that is meant.

        Idempotent as `create` is. Raises: ObjectChanged when another is there, or none; ObjectDamaged.
        """
        try:
            return await self._put(
                meant.key, body, {"IfMatch": quoted(meant.etag)}, content_type, retain_until=None
            )
        except (ObjectExists, ObjectNotFound):
            raise ObjectChanged(meant.key) from None

    async def upload(
        self,
        key: str,
        open_body: OpenBody,
        *,
        content_type: str = BINARY,
        retain_until: datetime | None = None,
    ) -> Stored:
        """Store what is too large for one request, in parts, holding one part in memory.

        open_body: gives the body's chunks from the start, each time it is called; a part is repeated from
                   memory, the whole only when S3 says that somebody else interfered.
        retain_until: as of `create`.

        As `create`, but not idempotent: another upload of the same bytes is ObjectExists. When it fails or is
        cancelled, the parts are removed; those of a killed process are found with `uploads`.
        Raises: ObjectExists, ObjectDamaged; whatever open_body raises.
        """
        return await self._parts.upload(key, open_body, content_type=content_type, retain_until=retain_until)

    async def head(self, key: str, *, version_id: str = "") -> Stored:
        """What is there now, or what this version is.

        Raises: ObjectNotFound.
        """

        async def attempt(_: S3Error | None) -> Stored:
            return await self.look(key, version_id)

        return await self._calls.make("head", key, attempt)

    async def read(self, meant: Stored, *, first_byte: int = 0, size_bytes: int | None = None) -> bytes:
        """Bytes of exactly this version: all of it, or a range that lies within.

        meant:      from `head`, a write, or a record of it; its etag, size and version are what is meant.
        size_bytes: PUT_BYTES_MAX at most.

        Raises: ObjectChanged when another object has the key; ObjectNotFound; ObjectCold.
        """
        size = meant.size_bytes - first_byte if size_bytes is None else size_bytes
        if first_byte < 0 or size < 0 or first_byte + size > meant.size_bytes:
            raise ValueError(f"{meant.key}: {size} bytes from {first_byte} are not within {meant.size_bytes}")
        if size > PUT_BYTES_MAX:
            raise ValueError(f"{meant.key}: {size} bytes at once are more than {PUT_BYTES_MAX}")
        if size == 0:
            return b""  # There is no range without bytes.

        async def attempt(_: S3Error | None) -> bytes:
            return await self._read_once(meant, first_byte, size)

        return await self._calls.make("read", meant.key, attempt, size_bytes=size)

    async def list(self, prefix: str, *, after: str = "", limit: int = PAGE_MAX) -> Listing:
        """Objects whose keys begin with the prefix, by key, from after a key; for looking around.

        A list may be late: what it shows may be gone, what it does not show may be there.
        after: the last key of the page before; SeaweedFS skips a whole directory when it is named instead.
        limit: 1 to PAGE_MAX.
        """
        if not 1 <= limit <= PAGE_MAX:
            raise ValueError(f"a page has 1 to {PAGE_MAX} objects, not {limit}")
        start = {"StartAfter": after} if after else {}

        async def attempt(_: S3Error | None) -> Listing:
            answer = await self._client.list_objects_v2(
                Bucket=self._settings.bucket, Prefix=prefix, MaxKeys=limit, **start
            )
            found = (
                Found(each["Key"], int(each["Size"]), unquoted(each["ETag"]), utc(each["LastModified"]))
                for each in answer.get("Contents", ())
            )
            return Listing(tuple(found), bool(answer["IsTruncated"]))

        return await self._calls.make("list", prefix, attempt)

    async def delete(self, meant: Stored, *, bypass_lock: bool = False) -> None:
        """Remove exactly this object; where there are versions, this version for good.

        bypass_lock: also when it is locked, for who may (s3:BypassGovernanceRetention).

        Idempotent: one that is gone is a success. If cancelled here: it may be gone.
        Raises: ObjectChanged when another object has the key; ObjectLocked.
        """
        which: dict[str, Any] = (
            {"VersionId": meant.version_id} if meant.version_id else {"IfMatch": quoted(meant.etag)}
        )
        if bypass_lock:
            which["BypassGovernanceRetention"] = True

        async def attempt(_: S3Error | None) -> None:
            there = await self.look(meant.key, meant.version_id)
            if (there.etag, there.size_bytes) != (meant.etag, meant.size_bytes):
                raise ObjectChanged(meant.key)
            await self._client.delete_object(Bucket=self._settings.bucket, Key=meant.key, **which)
            await faults.point(AFTER_DELETE)

        try:
            await self._calls.make("delete", meant.key, attempt)
        except ObjectNotFound:
            return
        except S3Refused as refused:
            if refused.code == "AccessDenied":
                raise ObjectLocked(meant.key) from refused
            raise

    async def link(self, meant: Stored, *, valid_s: int, filename: str, content_type: str = BINARY) -> str:
        """An address from which whoever has it may fetch this object until it ends, at the public endpoint
        when there is one. Nothing is asked of S3.

        valid_s:  1 to LINK_S_MAX.
        filename: under which a browser saves it; ASCII letters, digits and `._-`.
        """
        if not 1 <= valid_s <= LINK_S_MAX:
            raise ValueError(f"a link is valid for 1 to {LINK_S_MAX} s, not {valid_s}")
        if not _FILENAME.fullmatch(filename):
            raise ValueError(f"{filename!r} cannot be the name of a file")
        what = {
            **self._place(meant.key, meant.version_id),
            "ResponseContentDisposition": f'attachment; filename="{filename}"',
            "ResponseContentType": content_type,
        }
        address: str = await self._links.generate_presigned_url("get_object", Params=what, ExpiresIn=valid_s)
        return address

    async def uploads(self, prefix: str, *, after: str = "", limit: int = PAGE_MAX) -> Uploads:
        """Uploads in parts that somebody began and nobody ended; a killed process leaves its own.

        after: what a page said of where to go on, also when its uploads are gone since.
        limit: 1 to PAGE_MAX.
        """
        if not 1 <= limit <= PAGE_MAX:
            raise ValueError(f"a page has 1 to {PAGE_MAX} uploads, not {limit}")

        key, _, upload_id = after.rpartition("\n")
        # Not every server orders them by key: one goes on as it said.
        markers = {"KeyMarker": key, "UploadIdMarker": upload_id}

        async def attempt(_: S3Error | None) -> Uploads:
            answer = await self._client.list_multipart_uploads(
                Bucket=self._settings.bucket,
                Prefix=prefix,
                MaxUploads=limit,
                **{name: marker for name, marker in markers.items() if marker},
            )
            found = (
                Upload(each["Key"], each["UploadId"], utc(each["Initiated"]))
                for each in answer.get("Uploads", ())
            )
            goes_on = f"{answer.get('NextKeyMarker', '')}\n{answer.get('NextUploadIdMarker', '')}"
            is_new = answer["IsTruncated"] and goes_on not in ("\n", after)
            return Uploads(tuple(found), goes_on if is_new else "")

        return await self._calls.make("uploads", prefix, attempt)

    async def abort(self, upload: Upload) -> None:
        """Give an upload up and remove its parts. Idempotent; one that was completed stays an object."""
        await self._parts.abort(upload.key, upload.upload_id)

    async def close(self) -> None:
        """Wait, in bounds, for what is still being cleaned up."""
        await self._parts.close()

    async def look(self, key: str, version_id: str = "") -> Stored:
        """One HEAD, as a part of another call: without tries of its own.

        Raises: S3Error, and what the driver raises without an answer.
        """
        try:
            answer = await self._client.head_object(**self._place(key, version_id), ChecksumMode="ENABLED")
        except ClientError as refused:
            raise typed(refused, key) from refused
        return stored(key, answer)

    def write_options(self, content_type: str, retain_until: datetime | None = None) -> dict[str, Any]:
        """What every new object is told by the settings."""
        settings = self._settings
        options: dict[str, Any] = {"ContentType": content_type}
        if settings.encryption:
            options["ServerSideEncryption"] = settings.encryption
        if settings.encryption == "aws:kms":
            options["BucketKeyEnabled"] = True
            if settings.kms_key_id:
                options["SSEKMSKeyId"] = settings.kms_key_id
        if settings.object_lock and retain_until is not None:
            options |= {"ObjectLockMode": "GOVERNANCE", "ObjectLockRetainUntilDate": retain_until}
        return options

    async def _put(
        self,
        key: str,
        body: bytes,
        condition: dict[str, str],
        content_type: str,
        retain_until: datetime | None,
    ) -> Stored:
        if len(body) > PUT_BYTES_MAX:
            raise ValueError(f"{key}: {len(body)} bytes are too many for one request; use upload()")
        sha256 = await asyncio.to_thread(_sha256, body)
        request = {
            **self._place(key),
            **condition,
            **self.write_options(content_type, retain_until),
            "ChecksumSHA256": base64_of(sha256),
            "Metadata": {SHA256: sha256},
        }

        async def attempt(before: S3Error | None) -> Stored:
            if isinstance(before, S3Unavailable) and before.doubtful:
                ours = await self._ours(key, sha256, len(body))
                if ours is not None:
                    return ours
            await faults.point(BEFORE_PUT)
            answer = await self._client.put_object(**request, Body=io.BytesIO(body))
            await faults.point(AFTER_PUT)
            BYTES.labels("sent").inc(len(body))
            return Stored(
                key,
                len(body),
                unquoted(answer["ETag"]),
                version(answer),
                sha256,
                locked_until=request.get("ObjectLockRetainUntilDate"),
            )

        try:
            return await self._calls.make("put", key, attempt, size_bytes=len(body))
        except ObjectChanged:
            ours = await self._after_refusal(key, sha256, len(body))
            if ours is None:
                raise ObjectExists(key) from None
            return ours

    async def _after_refusal(self, key: str, sha256: str, size_bytes: int) -> Stored | None:
        """The object that stands where ours was refused, if it is ours after all."""

        async def attempt(_: S3Error | None) -> Stored | None:
            return await self._ours(key, sha256, size_bytes)

        return await self._calls.make("head", key, attempt)

    async def _ours(self, key: str, sha256: str, size_bytes: int) -> Stored | None:
        """What has the key, when it holds the very bytes that were sent."""
        try:
            there = await self.look(key)
        except ObjectNotFound:
            return None
        return there if (there.sha256, there.size_bytes) == (sha256, size_bytes) else None

    async def _read_once(self, meant: Stored, first_byte: int, size_bytes: int) -> bytes:
        answer = await self._client.get_object(
            **self._place(meant.key, meant.version_id),
            IfMatch=quoted(meant.etag),
            Range=f"bytes={first_byte}-{first_byte + size_bytes - 1}",
        )
        async with answer["Body"] as body:
            if int(answer["ContentLength"]) != size_bytes:
                raise ObjectChanged(meant.key, "it has another size")
            read: bytes = await body.read()
        if len(read) != size_bytes:
            raise S3Unavailable(f"{len(read)} bytes came of {size_bytes}")
        BYTES.labels("read").inc(size_bytes)
        return read

    def _place(self, key: str, version_id: str = "") -> dict[str, str]:
        place = {"Bucket": self._settings.bucket, "Key": key}
        return {**place, "VersionId": version_id} if version_id else place


@asynccontextmanager
async def open_store(
    settings: S3Settings, *, clock: Clock = SYSTEM_CLOCK, jitter: Callable[[], float] = random.random
) -> AsyncIterator[ObjectStore]:
    """The bucket's objects while the context lives; one per process, since making a client takes a while.

    jitter: gives 0 to 1, by which each pause is multiplied.
    """
    config = AioConfig(
        signature_version="s3v4",
        s3={"addressing_style": settings.addressing},
        connect_timeout=settings.connect_s,
        read_timeout=settings.attempt_s,
        max_pool_connections=settings.connections,
        retries={"total_max_attempts": 1, "mode": "standard"},
        # Sums are made here, where they can be kept; not every server knows the driver's own.
        request_checksum_calculation="when_required",
        response_checksum_validation="when_required",
        # Its models are files of some MB: read in a thread, not on the loop.
        warm_up_loader_caches=True,
    )
    credentials = {}
    if settings.access_key:
        credentials = {
            "aws_access_key_id": settings.access_key,
            "aws_secret_access_key": settings.secret_key.get_secret_value(),
        }

    def client_at(endpoint: str) -> Any:
        return _session().create_client(
            "s3",
            region_name=settings.region,
            endpoint_url=endpoint or None,
            verify=str(settings.ca_file) if settings.ca_file else None,
            config=config,
            **credentials,
        )

    async with AsyncExitStack() as stack:
        client = await stack.enter_async_context(client_at(settings.endpoint))
        links = None
        if settings.public_endpoint:
            # The host is part of what a link's signature is of: this one signs and never calls.
            links = await stack.enter_async_context(client_at(settings.public_endpoint))
        store = ObjectStore(client, settings, Calls(settings, clock, jitter), links=links)
        try:
            yield store
        finally:
            await store.close()


@cache
def _session() -> AioSession:
    """The driver's, with the models that it read; one per process."""
    return get_session()


def _sha256(body: bytes) -> str:
    return hashlib.sha256(body).hexdigest()
