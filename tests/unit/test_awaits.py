"""What a test that waited in vain is told about the tasks of its process."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress

from tests import awaits


@asynccontextmanager
async def never_opened() -> AsyncIterator[None]:
    await asyncio.Event().wait()
    yield


async def enter() -> None:
    async with never_opened():
        pass


async def refuse_to_end() -> None:
    with suppress(asyncio.CancelledError):
        await asyncio.Event().wait()
    await asyncio.Event().wait()


async def test_every_task_tells_its_name_where_it_stands_and_whether_it_was_asked_to_end():
    entering = asyncio.create_task(enter(), name="entering")
    refusing = asyncio.create_task(refuse_to_end(), name="refusing")
    await asyncio.sleep(0)
    refusing.cancel()
    await asyncio.sleep(0)
    told = awaits.of_tasks().split("-- ")
    entering.cancel()
    refusing.cancel()
    await asyncio.wait((entering, refusing))
    (first,) = (one for one in told if one.startswith("entering\n"))
    assert [line.split()[-1] for line in first.splitlines()[1:5]] == [
        "enter",
        "_AsyncGeneratorContextManager.__aenter__",
        "never_opened",
        "Event.wait",
    ]
    (second,) = (one for one in told if one.startswith("refusing"))
    assert second.startswith("refusing, asked 1 times to end\n")
    assert "refuse_to_end" in second
