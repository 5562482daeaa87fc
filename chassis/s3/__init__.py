"""S3 as one bucket of objects that are proven when written and pinned when read.

Owns every call of S3: services get an `ObjectStore` and never see the driver. What it promises, on AWS and on
servers that speak like it:

- an object is written under SHA-256 (CRC-32 for one of several parts), so that what the server keeps is what
  was sent; it is created once (`create`) or replaced knowingly (`replace`), never overwritten by chance;
- an answer that was lost is settled by looking at what is there, not by hoping; a write that repeats itself
  is recognised as one's own;
- a read names the version or the etag that it means, and another object is ObjectChanged, never other bytes;
- every call ends: a deadline over all its tries, a bounded number of them, full jitter between them;
- no body is larger in memory than PUT_BYTES_MAX, and a stream holds one part.

Lists are for looking around and may be late; nothing here decides by one. Fails with the errors of
`chassis.s3.errors`.
"""

from chassis.s3.errors import (
    ObjectChanged,
    ObjectCold,
    ObjectDamaged,
    ObjectExists,
    ObjectLocked,
    ObjectNotFound,
    S3Error,
    S3Refused,
    S3Unavailable,
)
from chassis.s3.objects import Found, Listing, Stored, Upload, Uploads
from chassis.s3.settings import S3Settings
from chassis.s3.store import LINK_S_MAX, PUT_BYTES_MAX, ObjectStore, open_store
from chassis.s3.whole import stream

__all__ = [
    "LINK_S_MAX",
    "PUT_BYTES_MAX",
    "Found",
    "Listing",
    "ObjectChanged",
    "ObjectCold",
    "ObjectDamaged",
    "ObjectExists",
    "ObjectLocked",
    "ObjectNotFound",
    "ObjectStore",
    "S3Error",
    "S3Refused",
    "S3Settings",
    "S3Unavailable",
    "Stored",
    "Upload",
    "Uploads",
    "open_store",
    "stream",
]
