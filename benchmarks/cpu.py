"""CPU time of the stack below this process, and of whatever else the machine does meanwhile.

The first hardly depends on how busy the machine is; the second says how far throughput can be believed. Linux
only; elsewhere both are 0.
"""

from __future__ import annotations

import os
import resource
import time
from dataclasses import dataclass, field
from pathlib import Path

_PROC = Path("/proc")
_TICKS_PER_S = os.sysconf("SC_CLK_TCK")


@dataclass(slots=True)
class Meter:
    """What was used since it was made."""

    _stack_s: float = field(default_factory=lambda: below_s(os.getpid()))
    _ours_s: float = field(default_factory=lambda: _ours_s())
    _busy_s: float = field(default_factory=lambda: _busy_s())
    _at: float = field(default_factory=time.perf_counter)

    def stack_s(self) -> float:
        """Seconds of the services and of Postgres."""
        return below_s(os.getpid()) - self._stack_s

    def others_share(self) -> float:
        """Share of the machine, 0 to 1, that went to work that is not ours."""
        others_s = (_busy_s() - self._busy_s) - (_ours_s() - self._ours_s)
        return max(0.0, others_s / (time.perf_counter() - self._at) / (os.cpu_count() or 1))


def below_s(root: int) -> float:
    """Seconds of CPU used so far by the living descendants of a process and by the children they waited
    for.
    """
    if not (_PROC / "self/stat").exists():
        return 0.0
    parents: dict[int, int] = {}
    used: dict[int, int] = {}
    for entry in _PROC.iterdir():
        if entry.name.isdigit() and (fields := _stat(entry)):
            parents[int(entry.name)] = int(fields[1])
            used[int(entry.name)] = sum(int(ticks) for ticks in fields[11:15])
    return sum(ticks for pid, ticks in used.items() if _is_below(pid, root, parents)) / _TICKS_PER_S


def tree_s(root: int) -> float:
    """Seconds of CPU used so far by a process, by the children it waited for, and by all below it."""
    fields = _stat(_PROC / str(root))
    return below_s(root) + sum(int(ticks) for ticks in fields[11:15]) / _TICKS_PER_S


def _stat(process: Path) -> list[str]:
    """State, parent and what follows; empty when the process is gone."""
    try:
        text = (process / "stat").read_text(encoding="utf-8", errors="replace")
    except (FileNotFoundError, ProcessLookupError):
        return []
    return text.rpartition(")")[2].split()


def _is_below(pid: int, root: int, parents: dict[int, int]) -> bool:
    while pid > 1:
        pid = parents.get(pid, 0)
        if pid == root:
            return True
    return False


def _ours_s() -> float:
    """Seconds of this process, of everything below it, and of the children it waited for, such as pgbench."""
    mine = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return below_s(os.getpid()) + sum(each.ru_utime + each.ru_stime for each in mine)


def _busy_s() -> float:
    """Seconds that the machine's cores worked since it started."""
    try:
        first = (_PROC / "stat").read_text(encoding="utf-8").splitlines()[0]
    except FileNotFoundError:
        return 0.0
    user, nice, system, _idle, _iowait, irq, softirq, *_ = map(int, first.split()[1:])
    return (user + nice + system + irq + softirq) / _TICKS_PER_S
