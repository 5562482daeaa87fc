"""CPU time of the processes below this one: the stack's services and its Postgres servers.

Unlike throughput it hardly depends on what else the machine does. Linux only; elsewhere it is not measured.
"""

from __future__ import annotations

import os
from pathlib import Path

_PROC = Path("/proc")
_TICKS_PER_S = os.sysconf("SC_CLK_TCK")


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
