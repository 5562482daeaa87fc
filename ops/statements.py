"""Following statements until they are over, and fetching their files."""

from __future__ import annotations

import asyncio
import hashlib
import re
import time
from contextlib import suppress
from typing import TYPE_CHECKING

import httpx

from chassis.ids import USER_ID_PATTERN
from ops.errors import OpsError
from ops.mesh import TIMEOUT_S, CallFailed
from ordermesh.archive.v1 import statement_service_pb2 as pb

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from google.longrunning import operations_pb2

    from ops.mesh import Mesh

Statement = pb.Statement
LOOK_EVERY_S = 0.3
CHUNK_BYTES = 256 * 1024
_NAME = re.compile(rf"users/({USER_ID_PATTERN.pattern})/statements/([0-9a-f-]{{36}})", re.ASCII)


class NotFetched(OpsError):
    """What was fetched is not the file that the statement names, or nothing was."""


def named(name: str) -> tuple[str, str] | None:
    """Whose statement an operation's name means, and which; None when it is no such name."""
    found = _NAME.fullmatch(name)
    return (found[1], found[2]) if found else None


def told(operation: operations_pb2.Operation) -> Statement:
    """The statement that an operation is about."""
    said = Statement()
    operation.metadata.Unpack(said)
    return said


async def shown(mesh: Mesh, user_id: str, statement_id: str) -> operations_pb2.Operation:
    """A statement's operation as it is now.

    Raises: CallFailed.
    """
    request = pb.WaitStatementRequest(user_id=user_id, statement_id=statement_id)
    return await mesh.statements.WaitStatement(request, timeout=TIMEOUT_S)


async def followed(
    mesh: Mesh,
    operation: operations_pb2.Operation,
    *,
    wait_s: float,
    tell: Callable[[Statement], None],
) -> operations_pb2.Operation:
    """An operation once it is over, or as it is when the time is; told again and again.

    A mesh that does not answer meanwhile is asked again.
    """
    statement = told(operation)
    end = time.monotonic() + wait_s
    while not operation.done and time.monotonic() < end:
        await asyncio.sleep(min(LOOK_EVERY_S, max(0.0, end - time.monotonic())))
        try:
            operation = await shown(mesh, statement.user_id, statement.statement_id)
        except CallFailed:
            continue
        tell(told(operation))
    return operation


async def fetched(mesh: Mesh, user_id: str, statement_id: str, to: Path) -> tuple[Path, Statement]:
    """Fetch a statement's file, compare it with what the statement says of it, and keep it.

    to: a file, or a directory, in which it is called as the link says.
    Raises: CallFailed; NotFetched.
    """
    statement = told(await shown(mesh, user_id, statement_id))
    request = pb.LinkStatementRequest(user_id=user_id, statement_id=statement_id)
    link = await mesh.statements.LinkStatement(request, timeout=TIMEOUT_S)
    target = to / link.filename if to.is_dir() else to
    partial = target.with_name(f"{target.name}.partial")
    sha256 = hashlib.sha256()
    try:
        async with httpx.AsyncClient(timeout=TIMEOUT_S) as http, http.stream("GET", link.url) as answer:
            answer.raise_for_status()
            with partial.open("wb") as file:
                async for chunk in answer.aiter_bytes(CHUNK_BYTES):
                    sha256.update(chunk)
                    file.write(chunk)
        if sha256.hexdigest() != statement.sha256:
            raise NotFetched(f"what came is not the file of {statement_id}; nothing was kept")
        partial.replace(target)
    except (httpx.HTTPError, OSError) as failed:
        raise NotFetched(f"the file cannot be fetched to {target}: {type(failed).__name__}") from failed
    finally:
        # Where it could not be written to, there is none, and no word of that is to hide why.
        with suppress(OSError):
            partial.unlink()
    return target, statement
