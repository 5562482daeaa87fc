"""Stack traces for lines: where it happened and what was raised, but nothing of what people sent.

What an exception says may quote it: Postgres quotes rows and parameters, pydantic the input, mail servers
recipients, `int` what is no number. So the text of our own exceptions is told, of others the parts that are
known to quote nobody, such as the SQLSTATE, the gRPC code or the errno; of all the rest the type alone.
"""

from __future__ import annotations

import os
import re
import traceback
from typing import TYPE_CHECKING

import grpc

if TYPE_CHECKING:
    from collections.abc import Iterator

CHAIN_MAX = 8
"""Exceptions of one chain, causes and members of groups together."""
FRAMES_MAX = 40
OURS = frozenset(
    {
        *("chassis", "gateway", "shard_proxy", "order_svc", "history_svc", "recovery_svc", "archive_svc"),
        *("ops", "telemetry", "ordermesh"),
    }
)
"""Packages whose exceptions say what we wrote."""
HARMLESS = frozenset(
    {
        *("builtins.RecursionError", "builtins.MemoryError", "builtins.NotImplementedError"),
        *("asyncio.exceptions.CancelledError", "asyncio.exceptions.InvalidStateError"),
        "asyncpg.exceptions._base.InterfaceError",
        *("aiokafka.errors.KafkaError", "aiokafka.errors.KafkaConnectionError"),
        *("aiokafka.errors.KafkaTimeoutError", "aiokafka.errors.RequestTimedOutError"),
        *("aiokafka.errors.NodeNotReadyError", "aiokafka.errors.ProducerFenced"),
        *("aiokafka.errors.UnknownTopicOrPartitionError", "aiokafka.errors.NotLeaderForPartitionError"),
    }
)
"""Exceptions of others whose text is about connections and states, and quotes nobody."""
QUOTING = frozenset({"chassis.mail.NotSent"})
"""Exceptions of ours that repeat what a server said, which repeats what it was told."""
_OF_THE_SYSTEM = ("builtins", "socket", "ssl")
_ADDRESS = re.compile(r"(?<![^\s<>()'\"])[^\s<>()'\"@]+@[^\s<>()'\"]+")


def stack_trace(error: BaseException) -> str:
    """The trace of an exception and of those behind it, the first cause first."""
    return "\n".join(part for link in reversed(list(_chain(error))) for part in _told(link))


def _chain(error: BaseException) -> Iterator[BaseException]:
    waiting, seen = [error], set[int]()
    while waiting and len(seen) < CHAIN_MAX:
        current = waiting.pop(0)
        if id(current) in seen:
            continue
        seen.add(id(current))
        yield current
        behind = current.__cause__ or (None if current.__suppress_context__ else current.__context__)
        members = current.exceptions if isinstance(current, BaseExceptionGroup) else ()
        waiting += [each for each in (*members, behind) if each is not None]


def _told(error: BaseException) -> Iterator[str]:
    frames = traceback.extract_tb(error.__traceback__, limit=-FRAMES_MAX)
    for frame in frames:
        yield f'  File "{frame.filename}", line {frame.lineno}, in {frame.name}'
    text = said(error)
    yield (_named(type(error)) + (f": {text}" if text else "")).removeprefix("builtins.")


def said(error: BaseException) -> str:
    """What an exception says, as far as a log may have it; empty when nothing of it may be told."""
    if getattr(error, "sqlstate", None) is not None:
        return _said_by_postgres(error)
    kind = type(error)
    is_ours = kind.__module__.partition(".")[0] in OURS and _named(kind) not in QUOTING
    if is_ours or _named(kind) in HARMLESS:
        return without_people(str(error))
    if isinstance(error, OSError) and kind.__module__ in _OF_THE_SYSTEM:
        return _said_by_the_system(error)
    if isinstance(error, AttributeError | NameError | ImportError):
        return f"name={error.name}" if error.name else ""
    return _code(error)


def _code(error: BaseException) -> str:
    """Of gRPC and of servers of mail and the web: a name or a number, never their words."""
    code = getattr(error, "code", None)
    code = code() if isinstance(error, grpc.RpcError) and callable(code) else code
    if isinstance(code, grpc.StatusCode):
        return code.name
    return f"code={code}" if isinstance(code, int) else ""


def without_people(text: str) -> str:
    """A text without mail addresses, and without passwords before a host."""
    return _ADDRESS.sub("(address)", text)


def _named(kind: type[BaseException]) -> str:
    return f"{kind.__module__}.{kind.__qualname__}"


def _said_by_postgres(error: BaseException) -> str:
    names = {
        "sqlstate": getattr(error, "sqlstate", None),
        "table": getattr(error, "table_name", None),
        "column": getattr(error, "column_name", None),
        "constraint": getattr(error, "constraint_name", None),
    }
    # Class 42 is about what a statement says, never about what it was given.
    text = str(getattr(error, "message", "") or "") if str(names["sqlstate"]).startswith("42") else ""
    return " ".join([*(f"{name}={value}" for name, value in names.items() if value), text]).strip()


def _said_by_the_system(error: OSError) -> str:
    """The number and its meaning; a server that could not be reached, but no name of a file."""
    if error.errno is None:
        return ""
    text = error.strerror or (os.strerror(error.errno) if error.errno > 0 else "")
    return f"[Errno {error.errno}] {without_people(str(text))}"
