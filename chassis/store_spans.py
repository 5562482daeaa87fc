"""One span for each question or change that a store asks of its database; none for a row, a BEGIN or a pool.

    @traced
    class OrderStore:
        async def create(self, change): ...     # the span `OrderStore.create`, within a call that is recorded

What the database was asked is said by a summary such as `INSERT orders`, taken from the statement's own text
and never from what it was given. Where nothing is recorded, a method runs as it stands in the class.
"""

from __future__ import annotations

import inspect
import re
from functools import lru_cache, wraps
from typing import TYPE_CHECKING, Any, TypeVar

from opentelemetry import trace

from chassis import traces

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine

T = TypeVar("T")
SUMMARY = "db.query.summary"
NAMESPACE = "db.namespace"
STATEMENTS_MAX = 2048
"""Texts that are remembered; a few are put together, for partitions."""
_SYSTEM = {"db.system.name": "postgresql"}
_COMMENT = re.compile(r"--[^\n]*")
_CHANGE = re.compile(
    r"(?<!FOR )(?<!KEY )(?<!DO )\b(INSERT INTO|UPDATE|DELETE FROM)\s+(?:ONLY\s+)?([a-z_][a-z0-9_.]*)"
)
_READ = re.compile(r"\bFROM\s+(?:ONLY\s+)?([a-z_][a-z0-9_.]*)")


def traced(store: type[T]) -> type[T]:
    """Give every public coroutine method of a store a span, named like the method."""
    for name, method in list(vars(store).items()):
        if not name.startswith("_") and inspect.iscoroutinefunction(method):
            setattr(store, name, _with_span(f"{store.__name__}.{name}", method))
    return store


def names_of(store: type[object]) -> list[str]:
    """The spans of a traced store."""
    return [method.span_name for method in vars(store).values() if hasattr(method, "span_name")]


def _with_span(
    name: str, method: Callable[..., Coroutine[Any, Any, Any]]
) -> Callable[..., Coroutine[Any, Any, Any]]:
    async def spanned(store: Any, *args: Any, **named: Any) -> Any:
        with traces.client_span(name, {**_SYSTEM, **_shard_of(store)}):
            return await method(store, *args, **named)

    @wraps(method)
    def asked(store: Any, *args: Any, **named: Any) -> Coroutine[Any, Any, Any]:
        if trace.get_current_span().is_recording():
            return spanned(store, *args, **named)
        return method(store, *args, **named)

    asked.span_name = name  # type: ignore[attr-defined]  # for whoever lists spans
    return asked


def _shard_of(store: Any) -> dict[str, str]:
    """The shard, where a process has stores of several; else all its spans say it."""
    shard = getattr(store, "shard", None)
    return {"shard": shard} if isinstance(shard, str) else {}


def tell(sql: str, namespace: str) -> None:
    """Say on the store's span, if one is recorded, which statement runs in which database: the first one."""
    span = trace.get_current_span()
    if not span.is_recording():
        return
    said = getattr(span, "attributes", None) or {}
    if "db.system.name" in said and SUMMARY not in said:
        span.set_attributes({SUMMARY: summary_of(sql), NAMESPACE: namespace})


@lru_cache(STATEMENTS_MAX)
def summary_of(sql: str) -> str:
    """What a statement does, in two words: what it changes first, else what it reads first."""
    bare = _COMMENT.sub("", sql)
    changed = _CHANGE.search(bare)
    if changed is not None:
        return f"{changed[1].split()[0]} {changed[2]}"
    read = _READ.search(bare)
    return f"SELECT {read[1]}" if read is not None else "".join(bare.split()[:1]).upper()[:16]
