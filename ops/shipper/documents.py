"""Lines as documents. Pure."""

from __future__ import annotations

import re
from datetime import UTC, datetime
from typing import TYPE_CHECKING

import orjson

if TYPE_CHECKING:
    from ops.shipper.tail import Line

UNSTRUCTURED = "unstructured"
"""The action of lines that are no JSON: what a runtime writes before or beside our logs."""
_TEXT_BYTES_MAX = 1024
_TOLD = re.compile(
    r'Traceback \(most recent call last\):|  File "[^"\n]{1,512}", line \d+, in [\w<>.]{1,128}'
)
"""Lines of a trace back that are shipped as they are."""
_RAISED = re.compile(
    r"((?:[a-z_]\w*\.)+[A-Z]\w{1,64}|[A-Z]\w{0,64}(?:Error|Exception|Warning|Interrupt|Exit|Group))(: .*)?"
)
"""The line of a trace back that says what was raised: its type is shipped, and not its words."""
_AT = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d{1,9})?Z")


class LineDocuments:
    """Makes documents of log lines; those that are no ECS line get the time of the line before them."""

    def __init__(self) -> None:
        self._latest: dict[str, str] = {}

    def of(self, line: Line) -> tuple[str, bytes]:
        """The id and the body of a line's document."""
        at = _time_in(line.text)
        if at is not None:
            self._latest[line.file] = at
            if len(self._latest) > 1024:
                self._latest.pop(next(iter(self._latest)))
            return line.id, line.text
        return line.id, self._wrapped(line)

    def _wrapped(self, line: Line) -> bytes:
        name = line.name.partition(".log")[0]
        document = {
            "@timestamp": self._latest.get(line.file) or datetime.now(UTC).isoformat().replace("+00:00", "Z"),
            "log.level": "warning",
            "message": _told(line.text),
            "event.action": UNSTRUCTURED,
            "service.name": name.partition(".")[0],
            "log.offset": line.offset,
        }
        return orjson.dumps(document)


def _told(text: bytes) -> str:
    """What is shipped of a line that nobody made safe: it may quote anybody. The file has all of it."""
    said = text[:_TEXT_BYTES_MAX].decode(errors="replace")
    if _TOLD.fullmatch(said):
        return said
    raised = _RAISED.fullmatch(said)
    if raised is not None:
        return raised[1]
    return f"({len(text)} bytes that are in the file only)"


def span_of(line: Line) -> tuple[str, bytes]:
    """The id and the body of a spooled span: its trace's and its own, so that a repeat is seen as one."""
    found = orjson.loads(line.text)
    return f"{found['trace.id']}-{found['span.id']}", line.text


def _time_in(text: bytes) -> str | None:
    """When an ECS line was said; None for everything else."""
    if not text.startswith(b"{"):
        return None
    try:
        found = orjson.loads(text)
    except ValueError:
        return None
    at = found.get("@timestamp") if isinstance(found, dict) else None
    return at if isinstance(at, str) and _is_instant(at) else None


def _is_instant(text: str) -> bool:
    """Whether Elasticsearch will take it for one."""
    if not _AT.fullmatch(text):
        return False
    try:
        datetime.fromisoformat(text[:19])
    except ValueError:
        return False
    return True
