"""Stack traces for lines: where it happened and what was raised, but no row of a database.

Postgres quotes rows and parameters in its errors; of those only the SQLSTATE and the names of table and
constraint are told.
"""

from __future__ import annotations

import traceback
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

CHAIN_MAX = 8
"""Exceptions of one chain, causes and members of groups together."""
FRAMES_MAX = 40


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
    yield f"{type(error).__module__}.{type(error).__qualname__}: {said(error)}".removeprefix("builtins.")


def said(error: BaseException) -> str:
    """What an exception says, as far as a log may have it."""
    sqlstate = getattr(error, "sqlstate", None)
    if sqlstate is None:
        return str(error)
    names = {
        "sqlstate": sqlstate,
        "table": getattr(error, "table_name", None),
        "column": getattr(error, "column_name", None),
        "constraint": getattr(error, "constraint_name", None),
    }
    # Class 42 is about what a statement says, never about what it was given.
    text = str(getattr(error, "message", "") or "") if str(sqlstate).startswith("42") else ""
    return " ".join([*(f"{name}={value}" for name, value in names.items() if value), text]).strip()
