"""A whole object piece by piece, proven at its end."""

from __future__ import annotations

import asyncio
import hashlib
from typing import TYPE_CHECKING

from chassis.s3.errors import ObjectDamaged
from chassis.s3.settings import MIB

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from chassis.s3.objects import Stored
    from chassis.s3.store import ObjectStore

PIECE_BYTES = 8 * MIB


async def stream(
    store: ObjectStore, meant: Stored, *, piece_bytes: int = PIECE_BYTES
) -> AsyncIterator[bytes]:
    """Give the bytes of exactly this version in order; one piece is in memory, each has its own deadline.

    Nobody may believe the pieces before the iterator has ended: only then were they compared with the SHA-256
    of `meant`, where it has one.
    Raises: ObjectDamaged after the last piece when they are other bytes; what ObjectStore.read raises.
    """
    seen = hashlib.sha256()
    for first_byte in range(0, meant.size_bytes, piece_bytes):
        size = min(piece_bytes, meant.size_bytes - first_byte)
        piece = await store.read(meant, first_byte=first_byte, size_bytes=size)
        if meant.sha256:
            await asyncio.to_thread(seen.update, piece)
        yield piece
    if meant.sha256 and seen.hexdigest() != meant.sha256:
        raise ObjectDamaged(meant.key, f"its SHA-256 is {seen.hexdigest()}, not {meant.sha256}")
