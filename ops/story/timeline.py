"""One timeline of what is known about an order, from several places. Pure."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Mapping, Sequence

DEPTH_MAX = 12
_SHOWN_APART = frozenset(
    {
        *("@timestamp", "log.level", "message", "event.action", "ecs.version", "service.name"),
        *("service.version", "service.node.name", "trace.id", "span.id", "order_id", "shard", "user.hash"),
        *(
            "event.outcome",
            "event.duration",
            "http.request.id",
            "error.stack_trace",
            "log.offset",
            "rpc.method",
        ),
    }
)
_CALL_ENDS = frozenset({"rpc_finished", "request"})
"""Lines that say what their span says."""


@dataclass(frozen=True, slots=True)
class Entry:
    """One thing that happened.

    at_ns: since 1970. source: `journal`, `span` or `line`. where: the process. depth: below the span it
    belongs to. took_ns: of a span; -1 where nothing took time. is_linked: it is of a trace beside the order's
    own. raw: all that is known.
    """

    at_ns: int
    source: str
    where: str
    what: str
    depth: int = 0
    took_ns: int = -1
    is_linked: bool = False
    is_wrong: bool = False
    trace: str = ""
    raw: Mapping[str, Any] = field(default_factory=dict)


def nanos(text: str) -> int:
    """An RFC 3339 instant in UTC, to the nanosecond. Raises: ValueError."""
    whole, _, fraction = text.removesuffix("Z").partition(".")
    seconds = int(datetime.fromisoformat(whole).replace(tzinfo=UTC).timestamp())
    return seconds * 1_000_000_000 + int((fraction + "000000000")[:9] or 0)


def instant(at_ns: int) -> str:
    """An instant as RFC 3339, in microseconds."""
    seconds, rest = divmod(at_ns, 1_000_000_000)
    return f"{datetime.fromtimestamp(seconds, UTC):%Y-%m-%dT%H:%M:%S}.{rest // 1000:06d}Z"


def depths(spans: Iterable[Mapping[str, Any]]) -> dict[str, int]:
    """How deep each span is below the first of its trace that is known, by span id."""
    parents = {span["span.id"]: span.get("parent.id", "") for span in spans}
    found: dict[str, int] = {}
    for span_id in parents:
        depth, above = 0, parents[span_id]
        while above in parents and depth < DEPTH_MAX:
            depth, above = depth + 1, parents[above]
        found[span_id] = depth
    return found


def of_spans(spans: Sequence[Mapping[str, Any]], own: Collection[str]) -> list[Entry]:
    """Entries of spans; own: the traces of the order itself, all others are linked."""
    below = depths(spans)
    return [
        Entry(
            at_ns=nanos(span["@timestamp"]),
            source="span",
            where=_where(span),
            what=_called(span),
            depth=below[span["span.id"]],
            took_ns=int(span.get("event.duration", 0)),
            is_linked=span["trace.id"] not in own,
            is_wrong=span.get("event.outcome") == "failure",
            trace=span["trace.id"],
            raw=span,
        )
        for span in spans
    ]


def of_lines(
    lines: Iterable[Mapping[str, Any]],
    spans: Iterable[Mapping[str, Any]] = (),
    own: Collection[str] | None = None,
) -> list[Entry]:
    """Entries of lines, below the span that was running."""
    below = depths(list(spans))
    return [
        Entry(
            at_ns=nanos(line["@timestamp"]),
            source="line",
            where=_where(line),
            what=_said(line),
            depth=below.get(line.get("span.id", ""), -1) + 1,
            is_linked=own is not None and line.get("trace.id", "") not in own,
            is_wrong=line.get("log.level") in ("warning", "error", "critical"),
            trace=line.get("trace.id", ""),
            raw=line,
        )
        for line in lines
    ]


def merged(*parts: Iterable[Entry]) -> list[Entry]:
    """All of them by time; at one instant the journal first, and a span before what is said in it."""
    order = {"journal": 0, "span": 1, "line": 2}
    every = [entry for part in parts for entry in part]
    return sorted(every, key=lambda entry: (entry.at_ns, order[entry.source], entry.depth))


def without_echoes(entries: Iterable[Entry]) -> list[Entry]:
    """Leave out lines that only say that a call ended, where its span is there too."""
    every = list(entries)
    spans = {entry.raw["span.id"] for entry in every if entry.source == "span"}
    return [entry for entry in every if not (_is_call_end(entry) and entry.raw.get("span.id") in spans)]


def _is_call_end(entry: Entry) -> bool:
    return entry.source == "line" and entry.raw.get("event.action") in _CALL_ENDS


def _where(found: Mapping[str, Any]) -> str:
    name, shard = str(found.get("service.name", "?")), found.get("shard", "")
    return f"{name}.{shard}" if shard and name == "order_svc" else name


def _called(span: Mapping[str, Any]) -> str:
    """A span's name without the package, and what tells it from its like."""
    name = str(span.get("span.name", "?"))
    package, slash, method = name.rpartition("/")
    if slash and "." in package:
        name = f"{package.rpartition('.')[2]}/{method}"
    facts = [
        str(span[key]) for key in ("upstream", "span.status") if key in span and str(span[key]) not in name
    ]
    attributes = span.get("attributes", {})
    facts += [str(attributes[key]) for key in ("http.response.status_code",) if key in attributes]
    return " ".join([name, *facts])


def _said(line: Mapping[str, Any]) -> str:
    """A line's event and its facts, such as `order_changed kind=SETTLED`."""
    facts = [f"{name}={_short(value)}" for name, value in line.items() if name not in _SHOWN_APART]
    method = str(line.get("rpc.method") or line.get("http.request.method") or "").rpartition("/")[2]
    return " ".join(part for part in (str(line.get("message", "?")), method, *facts) if part)


def _short(value: object) -> str:
    text = value if isinstance(value, str) else str(value)
    return text if len(text) <= 80 else f"{text[:79]}…"
