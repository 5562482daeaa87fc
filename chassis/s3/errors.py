"""What can be wrong with a call of S3, as types; each says whether asking again may help."""

from __future__ import annotations

from typing import ClassVar


class S3Error(Exception):
    """A call of S3 did not do what it was asked."""

    outcome: ClassVar[str] = "refused"
    """How metrics count it."""


class S3Unavailable(S3Error):
    """S3 did not answer in time, or said that it cannot now, as often as it was asked.

    What was asked may have happened all the same, unless `doubtful` is False: then S3 said that it did not.
    """

    outcome = "unavailable"

    def __init__(self, cause: str, *, doubtful: bool = True) -> None:
        super().__init__(cause)
        self.cause = cause
        self.doubtful = doubtful


class S3Refused(S3Error):
    """S3 refuses this request as it is: credentials, rights, a bucket that is not there."""

    def __init__(self, status: int, code: str, message: str) -> None:
        super().__init__(f"{status} {code}: {message}")
        self.status = status
        self.code = code


class ObjectError(S3Error):
    """Something about one object."""

    def __init__(self, key: str, why: str) -> None:
        super().__init__(f"{key}: {why}")
        self.key = key


class ObjectNotFound(ObjectError):
    """There is no such object, or not this version of it."""

    outcome = "not_found"

    def __init__(self, key: str) -> None:
        super().__init__(key, "there is no such object")


class ObjectExists(ObjectError):
    """Somebody else's object has this key; nothing was written."""

    outcome = "exists"

    def __init__(self, key: str) -> None:
        super().__init__(key, "another object has this key")


class ObjectChanged(ObjectError):
    """The object is not the one that was meant: another version, another size."""

    outcome = "changed"

    def __init__(self, key: str, why: str = "it is not the one that was meant") -> None:
        super().__init__(key, why)


class ObjectDamaged(ObjectError):
    """What came is not what was stored, or not what was sent, as often as it was tried."""

    outcome = "damaged"


class ObjectLocked(ObjectError):
    """The object may not be deleted yet, or not by us."""

    outcome = "locked"

    def __init__(self, key: str) -> None:
        super().__init__(key, "it may not be deleted, or not by us")


class ObjectCold(ObjectError):
    """The object lies in a storage class that has to be restored before it can be read."""

    outcome = "cold"

    def __init__(self, key: str) -> None:
        super().__init__(key, "it has to be restored from cold storage first")
