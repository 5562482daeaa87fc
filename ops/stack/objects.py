"""The stack's bucket in its S3: how processes find it, made at the first start, looked at by the doctor."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ops.errors import OpsError
from ops.stack import layout
from ops.stack.endpoints import S3

if TYPE_CHECKING:
    from ops.seaweedfs import SeaweedServer

LOOK_S = 5.0


def endpoint(server: SeaweedServer) -> S3:
    """Where the bucket is, and the keys to it."""
    return S3(
        url=server.url,
        bucket=layout.S3_BUCKET,
        access_key=server.access_key,
        secret_key=server.secret_key,
    )


async def prepare_bucket(where: S3) -> None:
    """Make the bucket, with versions, when it is not there.

    Raises: OpsError when S3 does not do it.
    """
    # Imported here: the driver takes 0.3 s, which no other command should wait for.
    from chassis.s3 import S3Error, open_store

    try:
        async with open_store(where.settings()) as store:
            await store.make_bucket()
    except S3Error as failed:
        raise OpsError(f"S3 at {where.url} does not make the bucket {where.bucket}: {failed}") from failed


async def why_not(where: S3) -> str:
    """What is wrong with the bucket, in a few seconds; empty when nothing is."""
    from chassis.s3 import S3Error, open_store

    try:
        async with open_store(where.settings(call_s=LOOK_S, attempt_s=LOOK_S, tries_max=2)) as store:
            await store.ping()
    except S3Error as failed:
        return str(failed)
    return ""
