"""Buckets for tests, on either S3: where it is, who we are there, and stores that open in a test."""

from __future__ import annotations

from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from typing import Any, Self
from uuid import uuid4

from chassis.s3 import ObjectStore, S3Settings, open_store
from ops.seaweedfs import SeaweedServer
from tests import inprocess_s3

PART_BYTES = 5 * 1024 * 1024


@dataclass(frozen=True)
class Place:
    """One S3."""

    endpoint: str
    access_key: str
    secret_key: str

    @classmethod
    def of(cls, server: SeaweedServer | inprocess_s3.InProcessS3) -> Self:
        if isinstance(server, SeaweedServer):
            return cls(server.url, server.access_key, server.secret_key)
        return cls(server.url, inprocess_s3.ACCESS_KEY, inprocess_s3.SECRET_KEY)

    def settings(self, bucket: str = "", **changes: Any) -> S3Settings:
        """One bucket, with pauses that nobody notices."""
        chosen = {
            "bucket": bucket or f"test-{uuid4().hex}",
            "endpoint": self.endpoint,
            "access_key": self.access_key,
            "secret_key": self.secret_key,
            "pause_s": 0.001,
            "part_bytes": PART_BYTES,
        }
        return S3Settings.model_validate(chosen | changes)

    def store(self, bucket: str = "", **changes: Any) -> AbstractAsyncContextManager[ObjectStore]:
        return open_store(self.settings(bucket, **changes))
