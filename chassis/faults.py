"""Named points where a process can be told to die, pause or raise: always compiled in, free while nothing
is armed.

Armed by the environment (`ORDERMESH_FAULTS="create.after_commit=kill;probe.before_report=pause:2:1.5"`) or
by a call on the loopback admin port. A specification is `point=action[:nth[:seconds]]`: the action happens
at the nth pass (default 1), once. Every firing is appended to the file `ORDERMESH_FAULTS_FIRED` before it
takes effect, so that a test can assert that its fault did happen.
"""

from __future__ import annotations

import asyncio
import os
import signal
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

PAUSE_S_MAX = 120.0
"""A pause is a stand-in for a frozen process; longer than any lease is of no use."""


class FaultFired(Exception):
    """A fault point was told to raise here."""


class UnknownFaultPoint(ValueError):
    """The specification names a point that no module declared."""


class Action(StrEnum):
    """What a fault point does when it fires."""

    KILL = "kill"
    PAUSE = "pause"
    RAISE = "raise"


@dataclass(slots=True)
class _Armed:
    action: Action
    passes_left: int
    seconds: float


_declared: dict[str, str] = {}
_armed: dict[str, _Armed] = {}


def declare(name: str, truth: str) -> str:
    """Declare a point once, at import. `truth` says what is on disk when the process dies there. Returns
    the name.
    """
    _declared[name] = truth
    return name


def declared() -> dict[str, str]:
    """Every declared point of the imported modules, with what is true there."""
    return dict(_declared)


def arm(specification: str) -> None:
    """Arm points by specification; an empty one disarms all.

    Raises: UnknownFaultPoint, ValueError.
    """
    wanted: dict[str, _Armed] = {}
    for part in filter(None, specification.split(";")):
        name, _, rest = part.partition("=")
        action, _, numbers = rest.partition(":")
        nth, _, seconds = numbers.partition(":")
        if name not in _declared:
            raise UnknownFaultPoint(f"no fault point {name!r}; there are: {', '.join(sorted(_declared))}")
        wanted[name] = _Armed(Action(action), int(nth or 1), min(float(seconds or 1), PAUSE_S_MAX))
    _armed.clear()
    _armed.update(wanted)


def armed() -> tuple[str, ...]:
    """Points that will still fire."""
    return tuple(_armed)


async def point(name: str) -> None:
    """Pass a named point; nothing happens unless it is armed.

    Raises: FaultFired when told to raise.
    """
    if not _armed:
        return
    fault = _armed.get(name)
    if fault is None:
        return
    fault.passes_left -= 1
    if fault.passes_left > 0:
        return
    del _armed[name]
    _record(name, fault.action)
    if fault.action is Action.KILL:
        os.kill(os.getpid(), signal.SIGKILL)
    if fault.action is Action.PAUSE:
        await asyncio.sleep(fault.seconds)
        return
    raise FaultFired(name)


def _record(name: str, action: Action) -> None:
    path = os.environ.get("ORDERMESH_FAULTS_FIRED")
    if not path:
        return
    with Path(path).open("a", encoding="utf-8") as fired:
        fired.write(f"{name}={action} pid={os.getpid()}\n")
        fired.flush()
        os.fsync(fired.fileno())
