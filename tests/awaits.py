"""What every task of this process waits for, in words for the message of a test that waited in vain."""

from __future__ import annotations

import asyncio
import gc
from collections.abc import Iterator
from pathlib import Path
from types import AsyncGeneratorType, FrameType
from typing import Any

CHAIN_MAX = 40
WORD_CHARS_MAX = 200


def of_tasks() -> str:
    """A paragraph for each task but the current: its name, its frames outermost first, its last wait."""
    tasks = asyncio.all_tasks() - {asyncio.current_task()}
    return "\n".join(
        line for task in sorted(tasks, key=lambda one: one.get_name()) for line in _of_task(task)
    )


def _of_task(task: asyncio.Task[Any]) -> list[str]:
    asked = f", asked {task.cancelling()} times to end" if task.cancelling() else ""
    return [f"-- {task.get_name()}{asked}", *(f"   {line}" for line in _chain(task.get_coro()))]


def _chain(here: Any) -> Iterator[str]:
    """Down through what each coroutine waits for, which `Task.get_stack` does not tell."""
    for _ in range(CHAIN_MAX):
        frame = _first(here, "cr_frame", "gi_frame", "ag_frame")
        if isinstance(frame, FrameType):
            code = frame.f_code
            yield f"{Path(code.co_filename).name}:{frame.f_lineno} {code.co_qualname}"
            here = _first(here, "cr_await", "gi_yieldfrom", "ag_await")
        elif generators := [one for one in gc.get_referents(here) if isinstance(one, AsyncGeneratorType)]:
            here = generators[0]
        else:
            yield f"waits for {here!r}"[:WORD_CHARS_MAX]
            return


def _first(here: Any, *names: str) -> Any:
    return next((getattr(here, name) for name in names if hasattr(here, name)), None)
