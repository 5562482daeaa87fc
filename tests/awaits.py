"""What every task of this process waits for, in words for the message of a test that waited in vain."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path
from types import FrameType
from typing import Any

CHAIN_MAX = 40


def of_tasks() -> str:
    """One paragraph for each task but the current: its name, its frames outermost first, and what ends them."""
    current = asyncio.current_task()
    tasks = sorted((task for task in asyncio.all_tasks() if task is not current), key=lambda t: t.get_name())
    return "\n".join(line for task in tasks for line in _of_task(task))


def _of_task(task: asyncio.Task[Any]) -> list[str]:
    asked = f", asked {task.cancelling()} times to end" if task.cancelling() else ""
    return [f"-- {task.get_name()}{asked}", *(f"   {line}" for line in _chain(task.get_coro()))]


def _chain(waits: Any) -> Iterator[str]:
    """Down from a coroutine through what each waits for, which `Task.get_stack` does not tell."""
    for _ in range(CHAIN_MAX):
        frame = _frame(waits)
        if frame is None:
            if waits is not None:
                yield f"waits for {waits!r}"[:300]
            return
        yield f"{Path(frame.f_code.co_filename).name}:{frame.f_lineno} {frame.f_code.co_qualname}"
        waits = next(
            (getattr(waits, name) for name in ("cr_await", "gi_yieldfrom", "ag_await") if hasattr(waits, name)),
            None,
        )


def _frame(waits: Any) -> FrameType | None:
    for name in ("cr_frame", "gi_frame", "ag_frame"):
        frame = getattr(waits, name, None)
        if isinstance(frame, FrameType):
            return frame
    return None
