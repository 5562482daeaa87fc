"""Where errors end: each expected one becomes a line on stderr and an exit code.

With `-o json` the line is a JSON object. What is not expected passes through and shows as a traceback,
because it is a defect of ours.
"""

from __future__ import annotations

import json
import sys
from dataclasses import asdict, dataclass, field
from enum import IntEnum
from typing import TYPE_CHECKING, Any

from ops.cli.options import FORMAT_KEY, REQUEST_ID_KEY, Format
from ops.errors import OpsError

if TYPE_CHECKING:
    from collections.abc import Mapping

_REPEATABLE = frozenset({"UNAVAILABLE", "DEADLINE_EXCEEDED", "ABORTED", "CANCELLED", "UNKNOWN", "INTERNAL"})
"""After these nobody knows whether it happened; the same request id finds out."""
_UNREACHABLE = frozenset({"UNAVAILABLE", "DEADLINE_EXCEEDED", "CANCELLED"})


class ExitCode(IntEnum):
    """What a script learns from us; listed in `ordermesh --help`."""

    OK = 0
    NO = 1
    USAGE = 2
    UNREACHABLE = 3
    REFUSED = 4
    VOID = 5


@dataclass(frozen=True, slots=True)
class Told:
    """An error as a person or a program reads it.

    reason: from the catalogue of docs/ERRORS when the mesh refused; empty when it was this machine.
    """

    exit_code: ExitCode
    message: str
    reason: str = ""
    code: str = ""
    violations: tuple[tuple[str, str], ...] = ()
    metadata: Mapping[str, str] = field(default_factory=dict)
    retry_after_s: float | None = None
    trace_id: str = ""


def told(failed: Exception) -> Told | None:
    """The error as it is told; none when it was not expected."""
    if isinstance(failed, OpsError):
        down = type(failed).__name__ == "StackDown"
        return Told(ExitCode.UNREACHABLE if down else ExitCode.NO, str(failed))
    if isinstance(failed, BrokenPipeError):
        return None
    if isinstance(failed, OSError):
        where = f"{failed.filename}: " if failed.filename else ""
        return Told(ExitCode.NO, f"{where}{failed.strerror or failed}")
    # Whoever raises one of these has imported its module; an error must not cost a second of imports.
    grpc_aio, chassis_errors = sys.modules.get("grpc.aio"), sys.modules.get("chassis.errors")
    if grpc_aio is not None and isinstance(failed, grpc_aio.AioRpcError):
        return _of_call(failed)
    if chassis_errors is not None and isinstance(failed, chassis_errors.OrdermeshError):
        return _of_typed(failed)
    return None


def tell(error: Told, meta: Mapping[str, Any]) -> None:
    """Write the error to stderr in the format that was asked for."""
    request_id = str(meta.get(REQUEST_ID_KEY, "")) if error.code in _REPEATABLE else ""
    as_json = meta.get(FORMAT_KEY) == Format.JSON
    sys.stderr.write(_json(error, request_id) if as_json else _lines(error, request_id))


def _of_call(failed: Any) -> Told:
    from chassis import rpc

    remote = rpc.error_of(failed)
    code = remote.code.name
    if not remote.reason:
        return _untyped(code, remote.message)
    return Told(
        ExitCode.REFUSED,
        remote.message,
        reason=remote.reason,
        code=code,
        violations=tuple((v.field, v.description) for v in remote.violations),
        metadata=dict(remote.metadata),
        retry_after_s=remote.retry_after_s,
        trace_id=remote.metadata.get("trace_id", ""),
    )


def _untyped(code: str, message: str) -> Told:
    """A status without our details: nothing of ours answered, or something of ours is broken."""
    if code in _UNREACHABLE:
        sentence = "the stack does not answer; `ordermesh doctor` says what is wrong"
        return Told(ExitCode.UNREACHABLE, f"{sentence} ({message})" if message else sentence, code=code)
    return Told(ExitCode.REFUSED, message or "the mesh refused without saying why", reason=code, code=code)


def _of_typed(failed: Any) -> Told:
    """Our own typed error, raised on this side of the wire."""
    return Told(
        ExitCode.REFUSED,
        failed.sentence(),
        reason=failed.reason.value,
        code=failed.code.name,
        violations=tuple((v.field, v.description) for v in failed.violations),
        metadata=failed.facts,
        retry_after_s=failed.retry_after_s,
    )


def _lines(error: Told, request_id: str) -> str:
    lines = [f"error: {error.reason}: {error.message}" if error.reason else f"error: {error.message}"]
    lines += [f"  {name}: {description}" for name, description in error.violations]
    hidden = {"trace_id", "fields"}
    lines += [f"  {key}: {value}" for key, value in sorted(error.metadata.items()) if key not in hidden]
    if error.retry_after_s is not None:
        lines.append(f"  retry after {error.retry_after_s:g} s")
    if error.trace_id:
        lines.append(f"  trace {error.trace_id}")
    if request_id:
        lines.append(f"  it may have happened; repeat it safely with --request-id {request_id}")
    return "\n".join(lines) + "\n"


def _json(error: Told, request_id: str) -> str:
    facts = asdict(error)
    body = {
        "reason": error.reason,
        "code": error.code,
        "message": error.message,
        "violations": [{"field": name, "description": text} for name, text in error.violations],
        "metadata": facts["metadata"],
        "retryAfterS": error.retry_after_s,
        "traceId": error.trace_id,
        "requestId": request_id,
        "exitCode": int(error.exit_code),
    }
    return json.dumps({"error": body}, ensure_ascii=False) + "\n"
