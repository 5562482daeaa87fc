"""What a request says in its headers and query, as typed values. Pure.

Wrong values are refused with the name of the header or parameter, except where an RFC says to ignore them
(`Prefer`).
"""

from __future__ import annotations

import re
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from chassis.errors import InvalidField, Violation
from chassis.ids import parse_uuid

if TYPE_CHECKING:
    from collections.abc import Iterable

    from chassis.bearers import Principal
    from gateway.rates import Allowance

REQUEST_ID_PATTERN = re.compile(r"[A-Za-z0-9_.:-]{1,128}")
VERSION_MAX = 2**63 - 1
_TIMEOUT = re.compile(r"(\d{1,6}(?:\.\d{1,3})?)(ms|s)?", re.ASCII)
_WAIT = re.compile(r"wait\s*=\s*\"?(\d{1,6})\"?", re.IGNORECASE | re.ASCII)
_STRONG_ETAG = re.compile(r'"(\d{1,19})"', re.ASCII)
_ETAG = re.compile(r'(?:W/)?"(\d{1,19})"', re.ASCII)


@dataclass(slots=True)
class Visit:
    """One request from its first byte to its last: what its headers and its log line say."""

    request_id: str
    trace_id: str = ""
    started: float = field(default_factory=time.perf_counter)
    arrived: float = field(default_factory=time.monotonic)
    """When its head was complete, on the monotonic clock; deadlines count from here."""
    mesh_s: float = 0.0
    user_id: str = ""
    refused_because: str = ""
    """The reason of the catalogue, when the request was refused."""
    allowance: Allowance | None = None


@dataclass(slots=True)
class Ask:
    """Who asks, and until when the answer is of use."""

    who: Principal
    deadline: float
    """On the monotonic clock."""
    visit: Visit

    def time_remaining(self) -> float:
        """Seconds until the deadline, not below zero."""
        return max(0.0, self.deadline - time.monotonic())


def idempotency_key(header: str) -> str:
    """The request id of an Idempotency-Key: a UUID, bare or as the quoted string of the draft standard.

    Raises: InvalidField.
    """
    bare = header[1:-1] if len(header) > 1 and header[0] == header[-1] == '"' else header
    return str(parse_uuid(bare, field_name="Idempotency-Key"))


def wait_s(prefer: str | None, most_s: int) -> int | None:
    """The seconds a client prefers to wait, cut to the most; None when it says nothing, or nothing sensible
    (RFC 7240).
    """
    for preference in (prefer or "").split(","):
        match = _WAIT.fullmatch(preference.partition(";")[0].strip())
        if match is not None:
            return min(int(match[1]), most_s)
    return None


def timeout_s(header: str | None, default_s: float, most_s: float) -> float:
    """The deadline a client asks for: seconds such as `2.5`, also `2500ms` or `3s`.

    Raises: InvalidField.
    """
    if header is None:
        return min(default_s, most_s)
    match = _TIMEOUT.fullmatch(header.strip())
    seconds = 0.0 if match is None else float(match[1]) / (1000 if match[2] == "ms" else 1)
    if seconds <= 0:
        raise InvalidField.of("X-Request-Timeout", "must be a time such as 2.5, 3s or 800ms")
    return min(seconds, most_s)


def matches(if_none_match: str | None, version: int) -> bool:
    """Whether the client has this version already."""
    if if_none_match is None:
        return False
    if if_none_match.strip() == "*":
        return True
    return str(version) in _ETAG.findall(if_none_match)


def expected_version(if_match: str | None) -> int:
    """The only version that a change is meant for; 0 when any will do.

    Raises: InvalidField.
    """
    if if_match is None or if_match.strip() == "*":
        return 0
    match = _STRONG_ETAG.fullmatch(if_match.strip())
    if match is None or not 1 <= int(match[1]) <= VERSION_MAX:
        raise InvalidField.of("If-Match", "must be the ETag of one version, or *")
    return int(match[1])


def last_event_id(header: str | None) -> int:
    """The version a client saw last; 0 when it saw none.

    Raises: InvalidField.
    """
    if not header:
        return 0
    if not header.isascii() or not header.isdigit() or int(header[:20]) > VERSION_MAX or len(header) > 20:
        raise InvalidField.of("Last-Event-ID", "must be the id of an event of this stream")
    return int(header)


def request_id(header: str | None, fresh: str) -> str:
    """The id to echo: the client's when it is a sensible one."""
    return header if header is not None and REQUEST_ID_PATTERN.fullmatch(header) else fresh


def known_only(given: Iterable[str], known: frozenset[str]) -> None:
    """Refuse parameters nobody would read, and those that are given twice.

    Raises: InvalidField.
    """
    names = list(given)
    unknown = [Violation(name, "is not a parameter of this path") for name in names if name not in known]
    doubled = [Violation(name, "must be given once") for name in known if names.count(name) > 1]
    if unknown or doubled:
        raise InvalidField(*unknown, *doubled)
