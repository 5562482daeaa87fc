"""Objects in parts: begun, sent under CRC-32, completed in one step, or given up without a trace."""

from __future__ import annotations

import asyncio
import hashlib
import io
import zlib
from collections.abc import AsyncIterator, Callable
from contextlib import aclosing, suppress
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any
from uuid import uuid4

import structlog
from botocore.exceptions import ClientError

from chassis import faults
from chassis.s3.errors import ObjectChanged, ObjectExists, ObjectNotFound, S3Error, S3Unavailable
from chassis.s3.metrics import BYTES
from chassis.s3.objects import WRITE, Stored, base64_of, unquoted, version

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator
    from datetime import datetime

    from chassis.s3.calls import Calls
    from chassis.s3.settings import S3Settings
    from chassis.s3.store import ObjectStore

log = structlog.get_logger("s3")
OpenBody = Callable[[], AsyncIterator[bytes]]
PARTS_MAX = 10_000
"""S3's own bound."""
RESTARTS_MAX = 2
"""How often the whole is sent again when S3 says that a conflicting request came between."""
ABORT_S_MAX = 30.0
_FROM_THE_START = {"ConditionalRequestConflict", "NoSuchUpload"}

AFTER_BEGIN = faults.declare("s3.after_begin", "An upload in parts is begun and has none.")
AFTER_PART = faults.declare("s3.after_part", "An upload in parts has some; there is no object.")
BEFORE_COMPLETE = faults.declare("s3.before_complete", "All parts are there; there is no object.")
AFTER_COMPLETE = faults.declare("s3.after_complete", "The object is there; nobody was told.")


class Interfered(S3Error):
    """S3 wants the whole upload again from its beginning."""

    outcome = "conflict"


@dataclass(slots=True)
class _Sums:
    """Of everything sent so far."""

    sha256: Any = field(default_factory=hashlib.sha256)
    crc32: int = 0
    size_bytes: int = 0

    def add(self, part: bytes) -> str:
        """Take a part in; gives its own CRC-32 in hex."""
        self.sha256.update(part)
        self.crc32 = zlib.crc32(part, self.crc32)
        self.size_bytes += len(part)
        return f"{zlib.crc32(part):08x}"


class Parts:
    """Uploads in parts into one bucket."""

    def __init__(self, client: Any, settings: S3Settings, calls: Calls, store: ObjectStore) -> None:
        self._client = client
        self._settings = settings
        self._calls = calls
        self._store = store
        self._aborts: set[asyncio.Task[None]] = set()

    async def upload(
        self, key: str, open_body: OpenBody, *, content_type: str, retain_until: datetime | None
    ) -> Stored:
        """See ObjectStore.upload."""
        for _ in range(RESTARTS_MAX + 1):
            try:
                return await self._from_the_start(key, open_body, content_type, retain_until)
            except Interfered:
                log.warning("s3_upload_restarted", key=key)
        raise S3Unavailable(f"{key}: other requests came between, {RESTARTS_MAX + 1} times", doubtful=False)

    async def abort(self, key: str, upload_id: str) -> None:
        """See ObjectStore.abort."""

        async def attempt(_: S3Error | None) -> None:
            await self._client.abort_multipart_upload(**self._which(key, upload_id))

        with suppress(ObjectNotFound):
            await self._calls.make("abort", key, attempt)

    async def close(self) -> None:
        """Wait, in bounds, for uploads that are being given up."""
        if self._aborts:
            await asyncio.wait(self._aborts, timeout=ABORT_S_MAX)

    async def _from_the_start(
        self, key: str, open_body: OpenBody, content_type: str, retain_until: datetime | None
    ) -> Stored:
        async with aclosing(_regrouped(open_body(), self._settings.part_bytes)) as parts:
            first = await anext(parts, b"")
            if len(first) < self._settings.part_bytes:
                return await self._store.create(
                    key, first, content_type=content_type, retain_until=retain_until
                )
            write = uuid4().hex
            options = self._store.write_options(content_type, retain_until)
            upload_id = await self._begin(key, write, options)
            try:
                sums = _Sums()
                sent = [await self._send(key, upload_id, 1, first, sums)]
                del first
                async for part in parts:
                    sent.append(await self._send(key, upload_id, len(sent) + 1, part, sums))
                await faults.point(BEFORE_COMPLETE)
                made = await self._complete(key, upload_id, write, sent, sums)
                return replace(made, locked_until=options.get("ObjectLockRetainUntilDate"))
            except BaseException:
                await self._give_up(key, upload_id)
                raise

    async def _begin(self, key: str, write: str, options: dict[str, Any]) -> str:
        async def attempt(_: S3Error | None) -> str:
            answer = await self._client.create_multipart_upload(
                Bucket=self._settings.bucket,
                Key=key,
                ChecksumAlgorithm="CRC32",
                ChecksumType="FULL_OBJECT",
                Metadata={WRITE: write},
                **options,
            )
            return str(answer["UploadId"])

        upload_id = await self._calls.make("begin", key, attempt)
        await faults.point(AFTER_BEGIN)
        return upload_id

    async def _send(self, key: str, upload_id: str, number: int, part: bytes, sums: _Sums) -> dict[str, Any]:
        """Send one part; sending it again replaces it. Gives its line of the completion."""
        if number > PARTS_MAX:
            raise ValueError(f"{key}: more than {PARTS_MAX} parts of {self._settings.part_bytes} bytes")
        checksum = base64_of(await asyncio.to_thread(sums.add, part))

        async def attempt(_: S3Error | None) -> dict[str, Any]:
            answer = await self._client.upload_part(
                **self._which(key, upload_id),
                PartNumber=number,
                Body=io.BytesIO(part),
                ChecksumCRC32=checksum,
            )
            return {"PartNumber": number, "ETag": answer["ETag"], "ChecksumCRC32": checksum}

        try:
            line = await self._calls.make("part", key, attempt, size_bytes=len(part))
        except ObjectNotFound:
            raise Interfered(f"{key}: somebody gave the upload up") from None
        BYTES.labels("sent").inc(len(part))
        await faults.point(AFTER_PART)
        return line

    async def _complete(
        self, key: str, upload_id: str, write: str, sent: list[dict[str, Any]], sums: _Sums
    ) -> Stored:
        crc32, sha256 = f"{sums.crc32:08x}", sums.sha256.hexdigest()

        async def attempt(before: S3Error | None) -> Stored:
            if (
                isinstance(before, S3Unavailable)
                and before.doubtful
                and (ours := await self._ours(key, write))
            ):
                return ours
            try:
                answer = await self._client.complete_multipart_upload(
                    **self._which(key, upload_id),
                    MultipartUpload={"Parts": sent},
                    ChecksumCRC32=base64_of(crc32),
                    ChecksumType="FULL_OBJECT",
                    MpuObjectSize=sums.size_bytes,
                    IfNoneMatch="*",
                )
            except ClientError as refused:
                if refused.response["Error"]["Code"] in _FROM_THE_START:
                    raise Interfered(f"{key}: {refused.response['Error']['Code']}") from refused
                raise
            await faults.point(AFTER_COMPLETE)
            return Stored(key, sums.size_bytes, unquoted(answer["ETag"]), version(answer), write=write)

        try:
            made = await self._calls.make("complete", key, attempt)
        except (ObjectChanged, Interfered) as refused:
            there = await self._calls.make("head", key, lambda _: self._ours(key, write))
            if there is None and isinstance(refused, Interfered):
                raise
            if there is None:
                raise ObjectExists(key) from None
            made = there
        return replace(made, sha256=sha256, crc32=crc32)

    async def _ours(self, key: str, write: str) -> Stored | None:
        """What has the key, when this very write made it."""
        try:
            there = await self._store.look(key)
        except ObjectNotFound:
            return None
        return there if there.write == write else None

    async def _give_up(self, key: str, upload_id: str) -> None:
        """Remove the parts; goes on when the one who waits is cancelled a second time."""
        task = asyncio.create_task(self._quietly_abort(key, upload_id), name=f"s3-abort-{key}")
        self._aborts.add(task)
        task.add_done_callback(self._aborts.discard)
        await asyncio.shield(task)

    async def _quietly_abort(self, key: str, upload_id: str) -> None:
        """Abort in bounds: what is left is listed by `uploads`, and the caller has to hear another error."""
        try:
            async with asyncio.timeout(ABORT_S_MAX):
                await self.abort(key, upload_id)
        except (S3Error, TimeoutError) as failed:
            log.warning("s3_abort_failed", key=key, upload_id=upload_id, because=str(failed))

    def _which(self, key: str, upload_id: str) -> dict[str, str]:
        return {"Bucket": self._settings.bucket, "Key": key, "UploadId": upload_id}


async def _regrouped(chunks: AsyncIterator[bytes], part_bytes: int) -> AsyncGenerator[bytes, None]:
    """Chunks of any size as parts of one size; the last may be smaller, none is empty."""
    part = io.BytesIO()
    async for chunk in chunks:
        view = memoryview(chunk)
        while view:
            room = part_bytes - part.tell()
            part.write(view[:room])
            view = view[room:]
            if part.tell() == part_bytes:
                yield part.getvalue()
                part = io.BytesIO()
    if part.tell():
        yield part.getvalue()
