"""`ordermesh top`: a live screen of a running stack."""

from __future__ import annotations

import asyncio
import sys
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console, Group
from rich.live import Live
from rich.text import Text

from ops import mesh
from ops.cli import output
from ops.cli.calls import quietly
from ops.cli.options import Format, Output, StateDir
from ops.stack.endpoints import Endpoints
from ops.top import readings, screen, waits

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from ops.top.readings import Change
    from ops.top.waits import Wait


def top(
    state_dir: StateDir,
    every: Annotated[
        float, typer.Option("--every", min=0.5, max=60, help="Seconds between two looks.")
    ] = 2.0,
    once: Annotated[bool, typer.Option("--once", help="Look twice, print, and end.")] = False,
    form: Output = Format.TABLE,
) -> None:
    """Show rates, lags, orders that hang, and why things wait.

    Ctrl-C ends it. Without a terminal, or with -o json, it looks twice and prints once. A dash is a number
    that nobody knows.

    \b
    Example:
      ordermesh top --every 5
    """
    endpoints = Endpoints.read(state_dir)
    if once or form is Format.JSON or not sys.stdout.isatty():
        change, found = quietly(_twice(endpoints, every))
        if form is Format.JSON:
            output.print_json(screen.snapshot(change, endpoints.shards(), found))
        else:
            for part in _parts(change, endpoints, found):
                output.show(part)
        return
    quietly(_live(state_dir, every))


async def _twice(endpoints: Endpoints, every_s: float) -> tuple[Change, list[Wait]]:
    before = await readings.read(endpoints)
    await asyncio.sleep(every_s)
    async with mesh.connect(endpoints) as stubs:
        return await _now(endpoints, stubs, before)


async def _now(endpoints: Endpoints, stubs: mesh.Mesh, before: readings.Reading) -> tuple[Change, list[Wait]]:
    now, sessions, held = await asyncio.gather(
        readings.read(endpoints), waits.of_shards(endpoints.shard_dsns()), waits.of_recovery(stubs)
    )
    change = readings.Change(before, now)
    return change, [*waits.of_metrics(now), *waits.of_upstreams(change), *held, *sessions]


async def _live(state_dir: Path, every_s: float) -> None:
    endpoints = Endpoints.read(state_dir)
    before = await readings.read(endpoints)
    async with mesh.connect(endpoints) as stubs:
        with Live(Text("looking ..."), console=Console(highlight=False, markup=False), screen=True) as live:
            while True:
                await asyncio.sleep(every_s)
                endpoints = Endpoints.read(state_dir)
                change, found = await _now(endpoints, stubs, before)
                live.update(Group(*_parts(change, endpoints, found)))
                before = change.now


def _parts(change: Change, endpoints: Endpoints, found: Sequence[Wait]) -> list[Any]:
    """The tables, those that people look for first on top."""
    names = endpoints.shards()
    why = [(wait.where, wait.what, wait.why) for wait in found]
    return [
        _table(screen.SHARD_COLUMNS, screen.shards(change, names)),
        output.table("where", "what waits", "why", rows=why) if why else Text("nothing waits\n"),
        _table(screen.SERVICE_COLUMNS, screen.services(change)),
    ]


def _table(columns: Sequence[str], rows: Sequence[dict[str, Any]]) -> Any:
    return output.table(
        *columns, rows=[tuple(screen.cell(column, row[column]) for column in columns) for row in rows]
    )
