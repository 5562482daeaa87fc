"""What S3 says of objects, as values."""

from __future__ import annotations

import base64
import binascii
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping

SHA256 = "sha256"
"""Metadata with the SHA-256 of the whole object in hex; S3 checked it when it took the body."""
WRITE = "write"
"""Metadata that names the write which made an object of parts, by which it is recognised."""


@dataclass(frozen=True, slots=True)
class Stored:
    """One object as S3 keeps it, and how to mean exactly this one.

    etag:       changes with the content; quotes removed.
    version_id: empty in a bucket without versions.
    sha256:     of the whole object, in hex; empty when it was written in parts and nobody here knows it.
    crc32:      of the whole object, in hex, when it was written in parts; else empty.
    write:      token of the write that made it in parts; else empty.
    stored_at:  aware; seconds.
    locked_until: until then nobody deletes it without bypassing its lock; None when it has none.
    """

    key: str
    size_bytes: int
    etag: str
    version_id: str = ""
    sha256: str = ""
    crc32: str = ""
    write: str = ""
    stored_at: datetime | None = None
    locked_until: datetime | None = None


@dataclass(frozen=True, slots=True)
class Found:
    """One line of a list."""

    key: str
    size_bytes: int
    etag: str
    stored_at: datetime


@dataclass(frozen=True, slots=True)
class Listing:
    """A page of a list, by key; `more` says that there are others after the last."""

    objects: tuple[Found, ...]
    more: bool


@dataclass(frozen=True, slots=True)
class Upload:
    """An upload in parts that was begun and neither completed nor aborted."""

    key: str
    upload_id: str
    begun_at: datetime


@dataclass(frozen=True, slots=True)
class Uploads:
    """A page of uploads that were begun. next: from where to go on; empty when there are no others."""

    uploads: tuple[Upload, ...]
    next: str


def stored(key: str, answer: Mapping[str, Any]) -> Stored:
    """The object that the answer to a HEAD describes."""
    metadata = answer.get("Metadata", {})
    in_parts = answer.get("ChecksumType") == "COMPOSITE" or "-" in str(answer.get("ETag", ""))
    sha256 = "" if in_parts else _hex(answer.get("ChecksumSHA256")) or metadata.get(SHA256, "")
    return Stored(
        key=key,
        size_bytes=int(answer["ContentLength"]),
        etag=unquoted(answer["ETag"]),
        version_id=version(answer),
        sha256=sha256,
        crc32=_hex(answer.get("ChecksumCRC32")) if answer.get("ChecksumType") == "FULL_OBJECT" else "",
        write=metadata.get(WRITE, ""),
        stored_at=utc(answer["LastModified"]),
        locked_until=utc(until) if (until := answer.get("ObjectLockRetainUntilDate")) else None,
    )


def version(answer: Mapping[str, Any]) -> str:
    """The version in an answer; empty in a bucket without versions, also where they were once."""
    found = str(answer.get("VersionId") or "")
    return "" if found == "null" else found


def unquoted(etag: str) -> str:
    """An etag without its quotes."""
    return etag.strip('"')


def utc(at: datetime) -> datetime:
    """An instant of the driver, whose zone is the machine's or one of a library's own."""
    return at.astimezone(UTC)


def quoted(etag: str) -> str:
    """An etag as headers carry it."""
    return f'"{etag}"'


def base64_of(hexadecimal: str) -> str:
    """A checksum in hex as S3 writes it."""
    return base64.b64encode(bytes.fromhex(hexadecimal)).decode()


def _hex(checksum: str | None) -> str:
    """A checksum of S3 in hex; empty when there is none, or it is one of parts (`...-3`)."""
    try:
        return base64.b64decode(checksum or "", validate=True).hex()
    except binascii.Error:
        return ""
