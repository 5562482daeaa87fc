"""What became of each order as its caller knows it: one line each in a file of the state directory, kept in
memory for the check.

Appended as it happens and fsynced when the load ends, before anything is checked: what was promised stands
written down.
"""

from __future__ import annotations

import json
import os
from dataclasses import asdict, dataclass
from enum import StrEnum
from typing import TYPE_CHECKING, Self

if TYPE_CHECKING:
    from pathlib import Path
    from types import TracebackType

    from ops.load.asks import Ask
    from ops.load.senders import Acknowledgement


class Kind(StrEnum):
    """What became of a request, in Jepsen's words: `ok`, `info` (nobody knows), `fail`; or another `ok` of
    the same request.
    """

    OK = "ok"
    INFO = "info"
    FAIL = "fail"
    REPLAY = "replay"


@dataclass(frozen=True, slots=True)
class Entry:
    """One line. asked: what the caller wanted; order_id: what was promised, empty without an
    acknowledgement.
    """

    kind: Kind
    user_id: str
    request_id: str
    amount_minor: int
    currency_code: str
    order_id: str = ""
    said: str = ""
    """What the acknowledgement said about user, amount and currency when that was not what was asked for."""
    why: str = ""
    tries: int = 1
    transport: str = ""
    at_s: float = 0.0


class AckLog:
    """The log of one run, as a context manager that fsyncs when it ends."""

    def __init__(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self.path = path
        self.entries: list[Entry] = []
        self._file = path.open("w", encoding="utf-8")

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._file.flush()
        os.fsync(self._file.fileno())
        self._file.close()

    def append(self, entry: Entry) -> None:
        """Write one line."""
        self.entries.append(entry)
        self._file.write(json.dumps(asdict(entry)) + "\n")


def acknowledged(kind: Kind, ask: Ask, ack: Acknowledgement, **known: object) -> Entry:
    """The entry of an acknowledgement; what it says otherwise than asked is kept, to be reported."""
    asked = (ask.user_id, str(ask.request_id), ask.amount_minor, ask.currency_code)
    told = (ack.user_id, ack.request_id, ack.amount_minor, ack.currency_code)
    said = "" if asked == told else " ".join(map(str, told))
    return Entry(kind, *asked, order_id=ack.order_id, said=said, **known)  # type: ignore[arg-type]


def unacknowledged(kind: Kind, ask: Ask, why: str, **known: object) -> Entry:
    """The entry of a request without acknowledgement."""
    asked = (ask.user_id, str(ask.request_id), ask.amount_minor, ask.currency_code)
    return Entry(kind, *asked, why=why, **known)  # type: ignore[arg-type]
