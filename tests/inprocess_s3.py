"""An S3 in this process, over real HTTP, that can be told to fail as a real one does once in a year.

    async with InProcessS3.serving() as s3:
        s3.fail("PutObject", 503, "SlowDown", times=2)    # refuse without doing anything
        s3.lose_answer("PutObject")                       # do it, then cut the connection
        s3.seen["PutObject"]                              # how often it was asked

It keeps what the port relies on: signatures, SHA-256 and CRC-32 of bodies, conditions, versions, ranges,
locks, uploads in parts. tests/contract/test_object_stores.py holds it and SeaweedFS to the same.
"""

from __future__ import annotations

import asyncio
import base64
import hashlib
import hmac
import zlib
from collections import Counter
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from typing import Self
from urllib.parse import parse_qsl, quote, unquote
from uuid import uuid4
from xml.etree import ElementTree
from xml.sax.saxutils import escape

from aiohttp import web

ACCESS_KEY, SECRET_KEY = "in-process", "a secret of the tests"
BODY_BYTES_MAX = 80 * 1024 * 1024
_TIME = "%Y%m%dT%H%M%SZ"


class Refusal(Exception):
    """An error as S3 writes it."""

    def __init__(self, status: int, code: str, message: str = "") -> None:
        super().__init__(code)
        self.status = status
        self.code = code
        self.message = message or code


@dataclass
class Version:
    """One version of an object."""

    body: bytearray
    etag: str
    content_type: str
    metadata: dict[str, str]
    checksums: dict[str, str]
    version_id: str
    retain_until: datetime | None = None
    at: datetime = field(default_factory=lambda: datetime.now(UTC))
    is_cold: bool = False
    """Whether it has to be restored before it can be read, as in GLACIER; a look at it does not say so."""


@dataclass
class InParts:
    """An upload that was begun."""

    key: str
    headers: Mapping[str, str]
    parts: dict[int, bytes] = field(default_factory=dict)
    at: datetime = field(default_factory=lambda: datetime.now(UTC))


@dataclass
class Bucket:
    versions: bool = False
    locks: bool = False
    objects: dict[str, list[Version]] = field(default_factory=dict)
    uploads: dict[str, InParts] = field(default_factory=dict)


@dataclass
class Fault:
    """What goes wrong the next `times` times that an operation is asked for."""

    kind: str
    operation: str
    times: int
    refusal: Refusal | None = None


@dataclass
class Asked:
    """One request, taken apart."""

    operation: str
    bucket: str
    key: str
    query: Mapping[str, str]
    headers: Mapping[str, str]
    body: bytes


class InProcessS3:
    """The server and everything it keeps; made by `serving`."""

    def __init__(self) -> None:
        self.buckets: dict[str, Bucket] = {}
        self.seen: Counter[str] = Counter()
        self.port = 0
        self._faults: list[Fault] = []
        self.forget_parts = False
        """Whether parts are checked and thrown away, for tests of memory; nothing can be completed then."""
        self._released = asyncio.Event()
        self._old_list: dict[str, list[tuple[str, Version]]] | None = None
        self._runner = web.AppRunner(self._app(), access_log=None, shutdown_timeout=1.0)
        self._site: web.TCPSite | None = None

    @classmethod
    @asynccontextmanager
    async def serving(cls) -> AsyncIterator[Self]:
        """A server on a free port of loopback."""
        server = cls()
        await server._runner.setup()
        await server.come_up()
        try:
            yield server
        finally:
            server._released.set()
            await server._runner.cleanup()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    # What can go wrong.

    def fail(self, operation: str, status: int, code: str, *, times: int = 1) -> None:
        """Refuse without doing anything."""
        self._faults.append(Fault("fail", operation, times, Refusal(status, code)))

    def lose_answer(self, operation: str, *, times: int = 1) -> None:
        """Do it, then cut the connection instead of answering."""
        self._faults.append(Fault("lose_answer", operation, times))

    def cut(self, operation: str, *, times: int = 1) -> None:
        """Cut the connection without doing anything."""
        self._faults.append(Fault("cut", operation, times))

    def truncate(self, *, times: int = 1) -> None:
        """Send half of what was read, then cut the connection."""
        self._faults.append(Fault("truncate", "GetObject", times))

    def flip_on_the_way_out(self, *, times: int = 1) -> None:
        """Send another bit in the middle of what was read."""
        self._faults.append(Fault("flip_out", "GetObject", times))

    def flip_on_the_way_in(self, operation: str = "PutObject", *, times: int = 1) -> None:
        """Receive another bit in the middle of a body."""
        self._faults.append(Fault("flip_in", operation, times))

    def flip_at_rest(self, bucket: str, key: str) -> None:
        """Change one bit of what is kept, and none of what is said of it."""
        body = self.buckets[bucket].objects[key][-1].body
        body[len(body) // 2] ^= 1

    def stall(self, operation: str, *, times: int = 1) -> None:
        """Do nothing and say nothing until the server closes."""
        self._faults.append(Fault("stall", operation, times))

    def hide_error_in_success(self, operation: str, *, times: int = 1) -> None:
        """Answer 200 with an error in the body, as S3 does after a long completion; nothing was done."""
        self._faults.append(Fault("hidden_error", operation, times))

    def forgive(self) -> None:
        """Let nothing go wrong any more."""
        self._faults.clear()

    def freeze_lists(self) -> None:
        """Show in lists what is there now, whatever happens later."""
        self._old_list = {name: _latest(bucket) for name, bucket in self.buckets.items()}

    async def go_down(self) -> None:
        """Listen no more, and end every connection."""
        assert self._site is not None
        await self._site.stop()
        assert self._runner.server is not None
        for connection in self._runner.server.connections:
            connection.force_close()
            if connection.transport is not None:
                connection.transport.abort()

    async def come_up(self) -> None:
        """Listen, on the same port as before."""
        self._site = web.TCPSite(self._runner, "127.0.0.1", self.port, reuse_address=True)
        await self._site.start()
        self.port = self._runner.addresses[0][1]

    # One request.

    def _app(self) -> web.Application:
        app = web.Application(client_max_size=BODY_BYTES_MAX)
        app.router.add_route("*", "/{path:.*}", self._serve)
        return app

    async def _serve(self, request: web.Request) -> web.StreamResponse:
        operation = _operation(request)
        self.seen[operation] += 1
        fault = self._next_fault(operation)
        try:
            body = await request.read()
        except ConnectionError:
            return web.Response(status=400)
        if fault == "stall":
            await self._released.wait()
        if fault in ("cut", "stall"):
            return _cut(request)
        if fault == "flip_in":
            body = _flipped(body)
        try:
            if isinstance(fault, Refusal):
                raise fault
            if fault == "hidden_error":
                return _xml(200, _error(Refusal(200, "InternalError", "We encountered an internal error.")))
            answer = self._answer(_asked(request, operation, body), request)
        except Refusal as refusal:
            return _refused(request, refusal)
        if fault == "lose_answer":
            return _cut(request)
        if fault == "flip_out" and isinstance(answer.body, bytes):
            answer.body = _flipped(answer.body)
        if fault == "truncate" and isinstance(answer.body, bytes):
            return await _half(request, answer)
        return answer

    def _next_fault(self, operation: str) -> str | Refusal | None:
        for fault in self._faults:
            if fault.operation == operation and fault.times:
                fault.times -= 1
                return fault.refusal or fault.kind
        return None

    def _answer(self, asked: Asked, request: web.Request) -> web.Response:
        _verify_signature(request, asked.body)
        if asked.operation == "CreateBucket":
            return self._create_bucket(asked)
        bucket = self.buckets.get(asked.bucket)
        if bucket is None:
            raise Refusal(404, "NoSuchBucket")
        return _OPERATIONS[asked.operation](self, bucket, asked)

    # Buckets.

    def _create_bucket(self, asked: Asked) -> web.Response:
        if asked.bucket in self.buckets:
            raise Refusal(409, "BucketAlreadyOwnedByYou")
        locks = asked.headers.get("x-amz-bucket-object-lock-enabled", "").lower() == "true"
        self.buckets[asked.bucket] = Bucket(versions=locks, locks=locks)
        return web.Response(headers={"Location": f"/{asked.bucket}"})

    def _head_bucket(self, bucket: Bucket, asked: Asked) -> web.Response:
        return web.Response()

    def _put_versioning(self, bucket: Bucket, asked: Asked) -> web.Response:
        bucket.versions = b"<Status>Enabled</Status>" in asked.body
        return web.Response()

    def _list(self, bucket: Bucket, asked: Asked) -> web.Response:
        everything = _latest(bucket) if self._old_list is None else self._old_list[asked.bucket]
        prefix, after = asked.query.get("prefix", ""), asked.query.get("start-after", "")
        limit = int(asked.query.get("max-keys", "1000"))
        found = [(key, it) for key, it in everything if key.startswith(prefix) and key > after]
        lines = "".join(
            f"<Contents><Key>{escape(quote(key))}</Key><LastModified>{_iso(it.at)}</LastModified>"
            f"<ETag>&quot;{it.etag}&quot;</ETag><Size>{len(it.body)}</Size></Contents>"
            for key, it in found[:limit]
        )
        more = str(len(found) > limit).lower()
        return _xml(
            200,
            f"<ListBucketResult><EncodingType>url</EncodingType><IsTruncated>{more}</IsTruncated>"
            f"{lines}</ListBucketResult>",
        )

    def _list_uploads(self, bucket: Bucket, asked: Asked) -> web.Response:
        prefix, limit = asked.query.get("prefix", ""), int(asked.query.get("max-uploads", "1000"))
        key, id_ = asked.query.get("key-marker", ""), asked.query.get("upload-id-marker", "")
        found = sorted(
            (
                (each_id, up)
                for each_id, up in bucket.uploads.items()
                if up.key.startswith(prefix) and (up.key > key or (up.key == key and each_id > id_ > ""))
            ),
            key=lambda each: (each[1].key, each[0]),
        )
        lines = "".join(
            f"<Upload><Key>{escape(up.key)}</Key><UploadId>{id_}</UploadId><Initiated>{_iso(up.at)}</Initiated>"
            "</Upload>"
            for id_, up in found[:limit]
        )
        more, markers = str(len(found) > limit).lower(), ""
        if len(found) > limit:
            last_id, last = found[limit - 1]
            markers = (
                f"<NextKeyMarker>{escape(last.key)}</NextKeyMarker>"
                f"<NextUploadIdMarker>{last_id}</NextUploadIdMarker>"
            )
        return _xml(
            200,
            f"<ListMultipartUploadsResult><IsTruncated>{more}</IsTruncated>{markers}{lines}"
            "</ListMultipartUploadsResult>",
        )

    # Objects.

    def _put(self, bucket: Bucket, asked: Asked) -> web.Response:
        checksums = _checked(asked)
        _check_write_conditions(bucket, asked)
        made = self._keep(
            bucket, asked.key, asked.body, hashlib.md5(asked.body).hexdigest(), asked.headers, checksums
        )
        return web.Response(headers={**_names(made), **checksums})

    def _keep(
        self,
        bucket: Bucket,
        key: str,
        body: bytes,
        etag: str,
        headers: Mapping[str, str],
        checksums: dict[str, str],
    ) -> Version:
        until = headers.get("x-amz-object-lock-retain-until-date")
        if until and not bucket.locks:
            raise Refusal(400, "InvalidRequest", "Bucket is missing Object Lock Configuration")
        made = Version(
            bytearray(body),
            etag,
            headers.get("content-type", "binary/octet-stream"),
            {n.removeprefix("x-amz-meta-"): v for n, v in headers.items() if n.startswith("x-amz-meta-")},
            checksums,
            uuid4().hex if bucket.versions else "",
            datetime.fromisoformat(until) if until else None,
        )
        before = bucket.objects.get(key, []) if bucket.versions else []
        bucket.objects[key] = [*before, made]
        return made

    def _get(self, bucket: Bucket, asked: Asked) -> web.Response:
        found = _find(bucket, asked)
        headers = {
            **_names(found),
            "Last-Modified": format_datetime(found.at, usegmt=True),
            "Accept-Ranges": "bytes",
            "Content-Type": asked.query.get("response-content-type", found.content_type),
            **{f"x-amz-meta-{name}": value for name, value in found.metadata.items()},
        }
        if found.retain_until:
            headers["x-amz-object-lock-mode"] = "GOVERNANCE"
            headers["x-amz-object-lock-retain-until-date"] = _iso(found.retain_until)
        if asked.headers.get("x-amz-checksum-mode") == "ENABLED":
            headers |= found.checksums
        if "response-content-disposition" in asked.query:
            headers["Content-Disposition"] = asked.query["response-content-disposition"]
        if found.is_cold and asked.operation == "GetObject":
            raise Refusal(403, "InvalidObjectState")
        body, status = bytes(found.body), 200
        wanted = asked.headers.get("range")
        if wanted:
            first, _, last = wanted.removeprefix("bytes=").partition("-")
            if int(first) >= len(body):
                raise Refusal(416, "InvalidRange")
            part = body[int(first) : int(last) + 1]
            headers["Content-Range"] = f"bytes {first}-{int(first) + len(part) - 1}/{len(body)}"
            body, status = part, 206
        if asked.operation == "HeadObject":
            return web.Response(headers={**headers, "Content-Length": str(len(body))})
        return web.Response(status=status, body=body, headers=headers)

    def _delete(self, bucket: Bucket, asked: Asked) -> web.Response:
        versions = bucket.objects.get(asked.key, [])
        wanted, meant = asked.query.get("versionId"), asked.headers.get("if-match")
        if meant and versions and meant.strip('"') != versions[-1].etag:
            raise Refusal(412, "PreconditionFailed")
        if bucket.versions and not wanted:
            raise Refusal(501, "NotImplemented", "a delete marker is nothing that the port makes")
        gone = [it for it in versions if it.version_id == wanted] if wanted else versions
        is_bypassed = asked.headers.get("x-amz-bypass-governance-retention", "").lower() == "true"
        if not is_bypassed and any(it.retain_until and it.retain_until > datetime.now(UTC) for it in gone):
            raise Refusal(403, "AccessDenied")
        left = [it for it in versions if it not in gone]
        bucket.objects.pop(asked.key, None)
        if left:
            bucket.objects[asked.key] = left
        return web.Response(status=204)

    # Uploads in parts.

    def _begin(self, bucket: Bucket, asked: Asked) -> web.Response:
        upload_id = uuid4().hex
        bucket.uploads[upload_id] = InParts(asked.key, asked.headers)
        return _xml(
            200,
            f"<InitiateMultipartUploadResult><Bucket>{asked.bucket}</Bucket><Key>{escape(asked.key)}</Key>"
            f"<UploadId>{upload_id}</UploadId></InitiateMultipartUploadResult>",
        )

    def _part(self, bucket: Bucket, asked: Asked) -> web.Response:
        checksums = _checked(asked)
        upload = _upload(bucket, asked)
        upload.parts[int(asked.query["partNumber"])] = b"" if self.forget_parts else asked.body
        return web.Response(headers={"ETag": f'"{hashlib.md5(asked.body).hexdigest()}"', **checksums})

    def _complete(self, bucket: Bucket, asked: Asked) -> web.Response:
        _check_write_conditions(bucket, asked)
        upload = _upload(bucket, asked)
        named = [
            (int(_text(part, "PartNumber")), _text(part, "ETag").strip('"'))
            for part in ElementTree.fromstring(asked.body)
        ]
        bodies = [upload.parts.get(number, b"") for number, _ in named]
        sums = [hashlib.md5(body) for body in bodies]
        if not named or [each.hexdigest() for each in sums] != [etag for _, etag in named]:
            raise Refusal(400, "InvalidPart")
        if any(len(body) < 5 * 1024 * 1024 for body in bodies[:-1]):
            raise Refusal(400, "EntityTooSmall")
        body = b"".join(bodies)
        crc32 = base64.b64encode(zlib.crc32(body).to_bytes(4, "big")).decode()
        if asked.headers.get("x-amz-checksum-crc32", crc32) != crc32:
            raise Refusal(400, "BadDigest")
        if int(asked.headers.get("x-amz-mp-object-size", len(body))) != len(body):
            raise Refusal(400, "InvalidRequest", "The provided 'x-amz-mp-object-size' is wrong")
        etag = f"{hashlib.md5(b''.join(each.digest() for each in sums)).hexdigest()}-{len(sums)}"
        checksums = {"x-amz-checksum-crc32": crc32, "x-amz-checksum-type": "FULL_OBJECT"}
        made = self._keep(bucket, asked.key, body, etag, upload.headers, checksums)
        del bucket.uploads[asked.query["uploadId"]]
        answer = _xml(
            200,
            f"<CompleteMultipartUploadResult><Bucket>{asked.bucket}</Bucket><Key>{escape(asked.key)}</Key>"
            f"<ETag>&quot;{etag}&quot;</ETag></CompleteMultipartUploadResult>",
        )
        answer.headers.update({n: v for n, v in _names(made).items() if n != "ETag"})
        return answer

    def _abort(self, bucket: Bucket, asked: Asked) -> web.Response:
        if bucket.uploads.pop(asked.query["uploadId"], None) is None:
            raise Refusal(404, "NoSuchUpload")
        return web.Response(status=204)


_OPERATIONS: dict[str, Callable[[InProcessS3, Bucket, Asked], web.Response]] = {
    "HeadBucket": InProcessS3._head_bucket,
    "PutBucketVersioning": InProcessS3._put_versioning,
    "ListObjectsV2": InProcessS3._list,
    "ListMultipartUploads": InProcessS3._list_uploads,
    "PutObject": InProcessS3._put,
    "GetObject": InProcessS3._get,
    "HeadObject": InProcessS3._get,
    "DeleteObject": InProcessS3._delete,
    "CreateMultipartUpload": InProcessS3._begin,
    "UploadPart": InProcessS3._part,
    "CompleteMultipartUpload": InProcessS3._complete,
    "AbortMultipartUpload": InProcessS3._abort,
}


def _operation(request: web.Request) -> str:
    """The operation by the name that S3's documentation gives it."""
    method, query = request.method, request.query
    _, _, key = request.raw_path.partition("?")[0].lstrip("/").partition("/")
    if not key:
        by_query = {"versioning": "PutBucketVersioning", "uploads": "ListMultipartUploads"}
        for name, operation in by_query.items():
            if name in query:
                return operation
        return {"PUT": "CreateBucket", "HEAD": "HeadBucket"}.get(method, "ListObjectsV2")
    if "uploads" in query:
        return "CreateMultipartUpload"
    if "uploadId" in query:
        return {"PUT": "UploadPart", "POST": "CompleteMultipartUpload"}.get(method, "AbortMultipartUpload")
    return {"PUT": "PutObject", "HEAD": "HeadObject", "DELETE": "DeleteObject"}.get(method, "GetObject")


def _asked(request: web.Request, operation: str, body: bytes) -> Asked:
    bucket, _, key = request.raw_path.partition("?")[0].lstrip("/").partition("/")
    headers = {name.lower(): value for name, value in request.headers.items()}
    query = {name.lower() if name.startswith("response-") else name: v for name, v in request.query.items()}
    return Asked(operation, bucket, unquote(key), query, headers, body)


def _checked(asked: Asked) -> dict[str, str]:
    """The sums that the client gave, which have to be right."""
    own = {
        "x-amz-checksum-sha256": lambda body: hashlib.sha256(body).digest(),
        "x-amz-checksum-crc32": lambda body: zlib.crc32(body).to_bytes(4, "big"),
    }
    given = {name: asked.headers[name] for name in own if name in asked.headers}
    for name, value in given.items():
        if base64.b64encode(own[name](asked.body)).decode() != value:
            raise Refusal(400, "BadDigest")
    return given


def _check_write_conditions(bucket: Bucket, asked: Asked) -> None:
    there = bucket.objects.get(asked.key)
    if asked.headers.get("if-none-match") == "*" and there:
        raise Refusal(412, "PreconditionFailed")
    meant = asked.headers.get("if-match")
    if meant and not there:
        raise Refusal(404, "NoSuchKey")
    if meant and there and meant.strip('"') != there[-1].etag:
        raise Refusal(412, "PreconditionFailed")


def _find(bucket: Bucket, asked: Asked) -> Version:
    versions = bucket.objects.get(asked.key, [])
    wanted = asked.query.get("versionId")
    found = [it for it in versions if it.version_id == wanted] if wanted else versions[-1:]
    if not found:
        raise Refusal(404, "NoSuchVersion" if wanted else "NoSuchKey")
    if asked.headers.get("if-match", f'"{found[0].etag}"').strip('"') != found[0].etag:
        raise Refusal(412, "PreconditionFailed")
    return found[0]


def _latest(bucket: Bucket) -> list[tuple[str, Version]]:
    return [(key, versions[-1]) for key, versions in sorted(bucket.objects.items())]


def _upload(bucket: Bucket, asked: Asked) -> InParts:
    upload = bucket.uploads.get(asked.query["uploadId"])
    if upload is None or upload.key != asked.key:
        raise Refusal(404, "NoSuchUpload")
    return upload


def _names(version: Version) -> dict[str, str]:
    names = {"ETag": f'"{version.etag}"'}
    return {**names, "x-amz-version-id": version.version_id} if version.version_id else names


def _text(part: ElementTree.Element, name: str) -> str:
    return next(child.text or "" for child in part if child.tag.rpartition("}")[2] == name)


def _flipped(body: bytes) -> bytes:
    changed = bytearray(body)
    changed[len(changed) // 2] ^= 1
    return bytes(changed)


def _iso(at: datetime) -> str:
    return at.strftime("%Y-%m-%dT%H:%M:%S.000Z")


def _xml(status: int, text: str) -> web.Response:
    return web.Response(status=status, text=f'<?xml version="1.0"?>{text}', content_type="application/xml")


def _error(refusal: Refusal) -> str:
    return f"<Error><Code>{refusal.code}</Code><Message>{escape(refusal.message)}</Message></Error>"


def _refused(request: web.Request, refusal: Refusal) -> web.Response:
    if request.method == "HEAD":
        return web.Response(status=refusal.status)
    return _xml(refusal.status, _error(refusal))


def _cut(request: web.Request) -> web.Response:
    if request.transport is not None:
        request.transport.abort()
    return web.Response()


async def _half(request: web.Request, answer: web.Response) -> web.StreamResponse:
    assert isinstance(answer.body, bytes)
    headers = {**answer.headers, "Content-Length": str(len(answer.body))}
    begun = web.StreamResponse(status=answer.status, headers=headers)
    await begun.prepare(request)
    await begun.write(answer.body[: len(answer.body) // 2])
    if request.transport is not None:
        request.transport.close()
    return begun


# Signatures, version 4.


def _verify_signature(request: web.Request, body: bytes) -> None:
    query = parse_qsl(request.raw_path.partition("?")[2], keep_blank_values=True)
    given = dict(query)
    if "X-Amz-Signature" in given:
        query = [(name, value) for name, value in query if name != "X-Amz-Signature"]
        at = datetime.strptime(given["X-Amz-Date"], _TIME).replace(tzinfo=UTC)
        if datetime.now(UTC) > at + timedelta(seconds=int(given["X-Amz-Expires"])):
            raise Refusal(403, "AccessDenied", "Request has expired")
        credential, names, signature, digest = (
            given["X-Amz-Credential"],
            given["X-Amz-SignedHeaders"],
            given["X-Amz-Signature"],
            "UNSIGNED-PAYLOAD",
        )
        moment = given["X-Amz-Date"]
    else:
        algorithm, _, rest = request.headers.get("Authorization", "").partition(" ")
        if algorithm != "AWS4-HMAC-SHA256":
            raise Refusal(403, "AccessDenied")
        fields = dict(each.strip().partition("=")[::2] for each in rest.split(","))
        credential, names, signature = fields["Credential"], fields["SignedHeaders"], fields["Signature"]
        digest, moment = request.headers["x-amz-content-sha256"], request.headers["x-amz-date"]
        if digest not in ("UNSIGNED-PAYLOAD", hashlib.sha256(body).hexdigest()):
            raise Refusal(400, "XAmzContentSHA256Mismatch")
    access_key, _, scope = credential.partition("/")
    if access_key != ACCESS_KEY:
        raise Refusal(403, "InvalidAccessKeyId")
    canonical = "\n".join(
        [
            request.method,
            request.raw_path.partition("?")[0],
            "&".join(
                sorted(f"{quote(name, safe='-_.~')}={quote(value, safe='-_.~')}" for name, value in query)
            ),
            *(f"{name}:{' '.join(request.headers[name].split())}" for name in names.split(";")),
            "",
            names,
            digest,
        ]
    )
    to_sign = "\n".join(["AWS4-HMAC-SHA256", moment, scope, hashlib.sha256(canonical.encode()).hexdigest()])
    key = f"AWS4{SECRET_KEY}".encode()
    for part in [*scope.split("/"), to_sign]:
        key = hmac.digest(key, part.encode(), "sha256")
    if not hmac.compare_digest(key.hex(), signature):
        raise Refusal(403, "SignatureDoesNotMatch")


def _encoded(text: str) -> str:
    return quote(text, safe="-_.~")
