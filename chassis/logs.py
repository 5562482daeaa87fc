"""What a process says: one ECS JSON object a line on standard output, whoever says it, a library too.

Nothing that a caller sends can make two lines of one, move a terminal's cursor or fill a disk: values are
cut, and what is not text is written out. Nothing that is a person's leaves the process: a user id becomes a
keyed hash, the same in every service, and known fields with more than that are left out.

    log = structlog.get_logger("driver")
    log.warning("verdict_not_written", order_id=str(order_id), reason=reason)

The event's name is both `message` and `event.action`, and never changes: searches are built on it.
"""

from __future__ import annotations

import hashlib
import hmac
import logging
import re
import socket
import sys
from contextlib import suppress
from datetime import date, datetime, timezone
from enum import Enum
from importlib.metadata import version
from pathlib import PurePath
from typing import TYPE_CHECKING, Any, cast
from uuid import UUID

import orjson
import structlog
from opentelemetry import trace

from chassis.output import Output
from chassis.tracebacks import stack_trace, without_people

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, MutableMapping
    from pathlib import Path

ECS_VERSION = "8.11.0"
VALUE_CHARS_MAX = 1024
STACK_CHARS_MAX = 16_384
LINE_BYTES_MAX = 65_536
"""A longer line keeps who said what when, and a stack trace; its facts are left out."""
FIELDS_MAX = 48
NAME_CHARS_MAX = 64
ITEMS_MAX = 32
DEPTH_MAX = 3
LIBRARY_SAID = "library_said"
"""The action of lines that a library says through `logging`; what it says them with is the message."""
TALKS_OF_NOBODY = frozenset({"aiokafka", "grpc", "opentelemetry", "py", "urllib3", "uvicorn"})
"""Libraries, by the first word of their loggers, that speak of connections and of code: all they say is
written. Of others only the first line of the form is, without what is filled in, which may be anybody's.
"""
_QUOTED = re.compile(r"(?<!\w)'[^']*'|\"[^\"]*\"|<[^>]*>")
HASHED = frozenset({"user_id", "user.id", "user"})
"""Fields that name a user; only `user.hash` is written."""
DROPPED = frozenset(
    {
        *("address", "addresses", "email", "mail", "recipient", "sender", "to"),
        *("args", "body", "labels", "params", "parameters", "payload", "query", "request", "response", "sql"),
        *("authorization", "cookie", "dsn", "key_id", "metadata", "password", "secret", "token"),
        *("description", "evidence", "message_text", "subject"),
    }
)
"""Fields that are never written, whoever adds them; a line says which it lost."""
OBJECTS = frozenset(
    {
        *("ecs", "error", "event", "host", "http", "log", "process", "rpc", "service", "span", "trace"),
        *("url", "user"),
    }
)
"""Objects of ECS: a plain value under such a name would not fit where lines are kept."""
_RENAMED = {"error": "error.type"}
_RUBBISH = re.compile(
    "[\x00-\x1f\x7f-\x9f\u200b-\u200f\u2028-\u202e\u2060-\u2069\ufeff\ufff0-\uffff\ud800-\udfff\U000e0000-\U000e0fff]"
)
"""Controls, what turns the direction of writing or is not seen, and halves of characters."""
_INT_MAX = 2**63
_LOCAL_HASH_KEY = b"users of a laptop are nobody's secret"


class Lines:
    """Makes a line of an event; the last processor of structlog.

    static: what every line says unless the event says otherwise. hash_key: of users' hashes; None for none.
    """

    def __init__(self, static: Mapping[str, str], hash_key: bytes | None) -> None:
        self._static = dict(static)
        self._hash_key = hash_key

    def __call__(self, _: object, level: str, event: MutableMapping[str, Any]) -> bytes:
        """Render one event."""
        action = _clean(str(event.pop("event", "")), VALUE_CHARS_MAX)
        line: dict[str, Any] = {
            "@timestamp": datetime.now(timezone.utc),  # noqa: UP017 - twice as fast as through the alias
            "log.level": _LEVELS.get(level, level),
            "message": action,
            "ecs.version": ECS_VERSION,
            "event.action": event.pop("event.action", action),
            **self._static,
        }
        context = trace.get_current_span().get_span_context()
        if context.is_valid:
            line["trace.id"] = f"{context.trace_id:032x}"
            line["span.id"] = f"{context.span_id:016x}"
        failed = event.pop("exc_info", None)
        if failed:
            _put_error(line, failed)
        core = len(line)
        self._put_fields(line, event)
        rendered = orjson.dumps(line, default=_named, option=orjson.OPT_UTC_Z)
        if len(rendered) > LINE_BYTES_MAX:
            few = {name: line[name] for name in list(line)[:core]} | {"log.lost": ["(too long)"]}
            rendered = orjson.dumps(few, default=_named, option=orjson.OPT_UTC_Z)
        return rendered

    def _put_fields(self, line: dict[str, Any], event: Mapping[str, Any]) -> None:
        lost = []
        for count, (name, value) in enumerate(event.items()):
            if name in HASHED:
                self._put_user(line, value)
            elif name in DROPPED or count >= FIELDS_MAX:
                lost.append(_name(name))
            elif type(value) is str:
                line[_name(name)] = _clean(value, VALUE_CHARS_MAX)
            else:
                line[_name(name)] = self._plain(value, DEPTH_MAX)
        if lost:
            line["log.lost"] = lost[:ITEMS_MAX]

    def _put_user(self, line: dict[str, Any], value: object) -> None:
        if self._hash_key is not None and value:
            line["user.hash"] = user_hash(self._hash_key, str(value))

    def _plain(self, value: object, depth: int) -> Any:
        """A value as JSON has it, bounded. What is unknown is named by its type: it may hold anything."""
        if value is None or isinstance(value, bool | float):
            return value
        if isinstance(value, int) and not isinstance(value, Enum):
            return value if -_INT_MAX <= value < _INT_MAX else "(a huge number)"
        if isinstance(value, Enum):
            return self._plain(value.value, depth)
        if isinstance(value, str | UUID | date | PurePath):
            return _clean(str(value), VALUE_CHARS_MAX)
        if depth and isinstance(value, dict):
            return self._plain_dict(value, depth)
        if depth and isinstance(value, list | tuple | set | frozenset):
            return [self._plain(item, depth - 1) for item, _ in zip(value, range(ITEMS_MAX), strict=False)]
        return _named(value)

    def _plain_dict(self, value: Mapping[object, object], depth: int) -> dict[str, Any]:
        plain: dict[str, Any] = {}
        for (key, item), _ in zip(value.items(), range(ITEMS_MAX), strict=False):
            name = _clean(str(key), NAME_CHARS_MAX)
            if name in HASHED:
                self._put_user(plain, item)
            elif name not in DROPPED:
                plain[name] = self._plain(item, depth - 1)
        return plain


_LEVELS = {"warn": "warning", "exception": "error", "msg": "info"}


class LibraryHandler(logging.Handler):
    """Gives what libraries say through `logging` the form of our own lines."""

    def __init__(self, lines: Lines, write: Callable[[bytes], object]) -> None:
        super().__init__()
        self._lines = lines
        self._write = write

    def emit(self, record: logging.LogRecord) -> None:
        """Write one record; a broken one is told and not raised, as `logging` wants it."""
        event = {
            "event": _said_by(record),
            "event.action": LIBRARY_SAID,
            "log.logger": record.name,
            "exc_info": record.exc_info[1] if record.exc_info else None,
        }
        try:
            self._write(self._lines(None, record.levelname.lower(), event))
        except Exception:  # noqa: BLE001 - as above
            self.handleError(record)


def configure(
    service: str,
    *,
    level: str = "info",
    facts: Mapping[str, str] | None = None,
    hash_key: bytes | None = None,
    file: Path | None = None,
) -> None:
    """Set up the lines of this process, once, at start.

    facts: what every line says, such as the shard. hash_key: for users' hashes, the same in every process;
    None leaves users out of the lines. file: what standard output is, to be moved aside when it is long.
    """
    static = {
        "service.name": service,
        "service.version": version("ordermesh"),
        "service.node.name": socket.gethostname(),
        **(facts or {}),
    }
    lines, output = Lines(static, hash_key), Output(file)
    structlog.configure(
        processors=[
            structlog.contextvars.merge_contextvars,
            cast("structlog.types.Processor", lines),
        ],
        wrapper_class=structlog.make_filtering_bound_logger(getattr(logging, level.upper())),
        logger_factory=lambda *_: output,
        cache_logger_on_first_use=True,
    )
    root = logging.getLogger()
    root.handlers[:] = [LibraryHandler(lines, output.line)]
    root.setLevel(logging.WARNING)
    logging.captureWarnings(capture=True)


def of_our_file(error: BaseException, path: Path | None = None) -> dict[str, object]:
    """What a line says of a file that settings name and that could not be read or written: which, and why.

    path: the file, where the error itself does not know it. Not for files that are named after anything that
    was sent: of those a line has the type of the error alone.
    """
    facts = {
        "errno": getattr(error, "errno", None),
        "file": path or getattr(error, "filename", None),
    }
    return {"error": type(error).__name__} | {name: fact for name, fact in facts.items() if fact is not None}


def hash_key_of(given: str, *, is_local: bool) -> bytes | None:
    """The key of users' hashes: what the settings say; on a laptop without them one that everybody knows."""
    if given:
        return given.encode()
    return _LOCAL_HASH_KEY if is_local else None


def user_hash(key: bytes, user_id: str) -> str:
    """What lines say instead of a user id: 16 hex digits of HMAC-SHA256. Also for people who search."""
    return hmac.digest(key, user_id.encode(errors="replace"), hashlib.sha256)[:8].hex()


def bind(**facts: object) -> None:
    """Say these facts on every following line of this call or task."""
    structlog.contextvars.bind_contextvars(**facts)


def forget() -> None:
    """Say none of the facts that were bound before; a call begins with it."""
    structlog.contextvars.clear_contextvars()


def _said_by(record: logging.LogRecord) -> str:
    """What a library says, as far as a log may have it."""
    if record.name.partition(".")[0] in TALKS_OF_NOBODY:
        with suppress(Exception):  # a library's mistake in its own message
            return without_people(record.getMessage())
    if not isinstance(record.msg, str):
        return _named(record.msg)
    return _QUOTED.sub("(...)", without_people(record.msg.strip().partition("\n")[0]))


def _put_error(line: dict[str, Any], failed: object) -> None:
    error = failed[1] if isinstance(failed, tuple) else sys.exception() if failed is True else failed
    if isinstance(error, BaseException):
        line["error.type"] = type(error).__name__
        text = stack_trace(error)
        line["error.stack_trace"] = "\n".join(
            _clean(part, VALUE_CHARS_MAX) for part in text[:STACK_CHARS_MAX].split("\n")
        )


def _name(name: str) -> str:
    if name in OBJECTS:
        return _RENAMED.get(name, f"{name}.text")
    return _clean(name, NAME_CHARS_MAX)


def _clean(text: str, chars_max: int) -> str:
    if len(text) > chars_max:
        text = f"{text[:chars_max]}... ({len(text)} characters)"
    if text.isascii() and text.isprintable():
        return text
    return _RUBBISH.sub(_escaped, text)


def _escaped(found: re.Match[str]) -> str:
    return f"\\u{ord(found[0]):04x}"


def _named(value: object) -> str:
    return f"<{type(value).__name__}>"
