"""How results look: tables for people, proto JSON for programs.

JSON is the proto's own mapping: camelCase names, 64 bit integers as strings, times in RFC 3339, and every
field present that has no presence of its own, so that `jq .leg` finds a 0. A command prints one object or
one list, a stream one object per line.
"""

from __future__ import annotations

import json
import sys
from io import StringIO
from typing import TYPE_CHECKING, Any

from google.protobuf.json_format import MessageToDict
from rich.console import Console
from rich.table import Table
from rich.text import Text

from chassis.money import Money
from ops.cli.options import Format
from ordermesh.order.v1.order_pb2 import Order

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from google.protobuf.duration_pb2 import Duration
    from google.protobuf.message import Message
    from google.protobuf.timestamp_pb2 import Timestamp

    from ordermesh.money.v1.money_pb2 import Money as MoneyMessage

PIPE_WIDTH = 200
"""Columns when nobody looks: wide enough that no id is broken."""
CELL_CHARS_MAX = 80
_TOLD_ELSEWHERE = frozenset({"key", "amount_minor", "currency_code", "source"})
"""Evidence that the order shows as well; it comes last and may be cut."""
_STYLES = {
    "SUCCESS": "green",
    "FAILED": "red",
    "PENDING": "yellow",
    "PARKED": "magenta",
    "ok": "green",
    "warn": "yellow",
    "bad": "bold red",
}


def emit(form: Format, message: Message | Sequence[Message], table: Table) -> None:
    """Print a result: the table unless it is empty, or the message or messages as JSON."""
    if form is Format.TABLE:
        if table.row_count:
            show(table)
    elif isinstance(message, (list, tuple)):
        print_json([as_dict(each) for each in message])
    else:
        print_json(as_dict(message))  # type: ignore[arg-type]  # a sequence of messages went the other way


def as_dict(message: Message) -> dict[str, Any]:
    """A message in the proto's JSON mapping."""
    return MessageToDict(message, always_print_fields_with_no_presence=True)


def print_json(value: object) -> None:
    """Print one value, indented."""
    sys.stdout.write(json.dumps(value, indent=2, ensure_ascii=False) + "\n")


def print_json_line(message: Message) -> None:
    """Print one element of a stream, at once."""
    sys.stdout.write(json.dumps(as_dict(message), ensure_ascii=False) + "\n")
    sys.stdout.flush()


def show(what: Table | Text | str) -> None:
    """Print something for people; colours only on a terminal."""
    if sys.stdout.isatty():
        Console(highlight=False, markup=False).print(what)
        return
    drawn = StringIO()
    Console(file=drawn, width=PIPE_WIDTH, highlight=False, markup=False).print(what)
    sys.stdout.writelines(line.rstrip() + "\n" for line in drawn.getvalue().splitlines())
    sys.stdout.flush()


def note(sentence: str) -> None:
    """Say something beside the result, on stderr."""
    sys.stderr.write(sentence + "\n")


def table(*columns: str, rows: Iterable[Sequence[str]], title: str = "") -> Table:
    """A table whose first column is never broken; words of the glossary get their colours."""
    drawn = Table(box=None, title=title or None, title_justify="left", pad_edge=False, header_style="bold")
    for index, column in enumerate(columns):
        drawn.add_column(column, no_wrap=index == 0, overflow="fold")
    for row in rows:
        drawn.add_row(*(cell(value) for value in row))
    return drawn


def facts(*pairs: tuple[str, str]) -> Table:
    """Names with their values, one a line; pairs without a value are left out."""
    drawn = Table(box=None, show_header=False, pad_edge=False)
    drawn.add_column(style="bold", no_wrap=True)
    drawn.add_column(overflow="fold")
    for name, value in pairs:
        if value:
            drawn.add_row(name, cell(value))
    return drawn


def cell(value: str) -> Text:
    """One value; coloured when its last word is one that people look for."""
    words = value.replace("/", " ").split()
    return Text(value, style=_STYLES.get(words[-1], "") if words else "")


def when(at: Timestamp) -> str:
    """An instant in UTC with milliseconds; empty when it is not set."""
    if not at.seconds and not at.nanos:
        return ""
    return f"{at.ToDatetime():%Y-%m-%d %H:%M:%S}.{at.nanos // 1_000_000:03d}Z"


def how_long(span: Duration) -> str:
    """A duration in its most telling unit."""
    seconds = span.seconds + span.nanos / 1e9
    for unit, size in (("d", 86_400), ("h", 3600), ("min", 60)):
        if seconds >= size:
            return f"{seconds / size:.1f} {unit}"
    return f"{seconds:.1f} s"


def money(amount: MoneyMessage) -> str:
    """An amount as people write it."""
    return str(Money(amount.currency_code, amount.amount_minor))


def status(order: Order) -> str:
    """What callers see."""
    return Order.Status.Name(order.status)


def stage(order: Order) -> str:
    """Where it stands: the stage, and once it is settled the status."""
    return stage_name(order.stage, order.status)


def stage_name(stage_value: int, status_value: int) -> str:
    """A stage by name; DONE says how."""
    if stage_value == Order.DONE:
        return Order.Status.Name(status_value)  # type: ignore[arg-type]  # open enums are ints
    if stage_value == Order.STAGE_UNSPECIFIED:
        return "-"
    return Order.Stage.Name(stage_value)  # type: ignore[arg-type]


def leg(order: Order) -> str:
    """The leg that is worked on, with its upstream."""
    upstream = order.legs[order.leg] if order.leg < len(order.legs) else "?"
    return f"{order.leg} ({upstream})"


def evidence(text: str, chars_max: int = CELL_CHARS_MAX) -> str:
    """Evidence in one short line: `name=value` pairs, cut when it is long."""
    try:
        found = json.loads(text or "{}")
    except ValueError:
        return cut(text, chars_max)
    if not isinstance(found, dict):
        return cut(str(found), chars_max)
    told = sorted(found, key=lambda name: name in _TOLD_ELSEWHERE)
    return cut(" ".join(f"{name}={_plain(found[name])}" for name in told if found[name] != ""), chars_max)


def cut(text: str, chars_max: int = CELL_CHARS_MAX) -> str:
    """At most so many characters, on one line."""
    line = " ".join(text.split())
    return line if len(line) <= chars_max else line[: chars_max - 1] + "…"


def _plain(value: object) -> str:
    return value if isinstance(value, str) else json.dumps(value, separators=(",", ":"), ensure_ascii=False)


def mib(size_bytes: float) -> str:
    """A size for people."""
    return f"{size_bytes / 1024**2:,.1f} MiB"
