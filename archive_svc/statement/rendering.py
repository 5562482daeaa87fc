"""Has a PDF written by a process of its own, which ends with whoever waits for it."""

from __future__ import annotations

import asyncio
import json
import sys
from typing import TYPE_CHECKING

import structlog

from chassis.errors import DeadlineExceeded, InternalError

if TYPE_CHECKING:
    from archive_svc.statement.paper import Paper

log = structlog.get_logger("rendering")
RENDER_S_MAX = 120.0
_COMMAND = ("-m", "archive_svc.statement.pdf_file")


async def pdf_of(said: Paper) -> bytes:
    """The PDF of a paper. If cancelled here: the process is gone.

    Raises: InternalError when it fails; DeadlineExceeded.
    """
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        *_COMMAND,
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        # A traceback may quote texts of users.
        stderr=asyncio.subprocess.DEVNULL,
    )
    try:
        async with asyncio.timeout(RENDER_S_MAX):
            written, _ = await process.communicate(json.dumps(said.as_json()).encode())
    except TimeoutError as late:
        raise DeadlineExceeded(limiter="pdf") from late
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    if process.returncode:
        log.error("pdf_failed", returncode=process.returncode)
        raise InternalError(what="pdf")
    return written
