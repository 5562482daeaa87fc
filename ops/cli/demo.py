"""`ordermesh demo`: a guided story on real processes: an order, a kill -9, the recovery, a dead letter and
its redrive, two years of orders that leave for S3, and a statement over all of them.
"""

from __future__ import annotations

import asyncio
import json
import shutil
import time
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from ops import mesh, places
from ops.demo.archive import OldMonths
from ops.demo.orders import Story
from ops.demo.stage import Stage
from ops.stack import layout, local

WIDTH = 118
"""Of the text; a narrower terminal wraps it."""
IMPATIENCE = json.dumps({"probes_max": 4, "cap_s": 1.5, "submit_margin_s": 0.2})
"""A story of a minute gives up sooner than even a laptop's stack."""


def demo(
    state_dir: Annotated[
        Path | None,
        typer.Option("--state-dir", help="Where to keep everything; default: a directory of its own."),
    ] = None,
    keep: Annotated[bool, typer.Option("--keep", help="Keep the data of the demo afterwards.")] = False,
) -> None:
    """Show the whole platform in two minutes.

    Example: ordermesh demo
    """
    where = state_dir or places.default_state_dir().with_name("demo")
    if state_dir is None and not keep:
        shutil.rmtree(where, ignore_errors=True)
    asyncio.run(_tell(where))


async def _tell(state_dir: Path) -> None:
    console = Console(highlight=False, width=WIDTH)
    began = time.monotonic()
    console.print(
        "[bold]ordermesh demo[/]: real Postgres, every service a process of its own, mTLS between them.\n"
        "Starting 2 Postgres servers (control; shards s1, s2 and VIP shard v1), 3 order_svc, shard_proxy,\n"
        "gateway, history_svc and its projector, recovery_svc, archive_svc, an S3, 2 simulated upstreams ..."
    )
    extra = {f"order_svc.{shard}": {"POLICY": IMPATIENCE} for shard in layout.ALL_SHARDS}
    async with (
        local.running(state_dir, port_base=0, extra=extra) as stack,
        mesh.connect(stack.endpoints) as stubs,
    ):
        stage = Stage(console, state_dir)
        story = Story(stage, lambda: stack.endpoints, stubs)
        console.print(f"Everything is ready after {time.monotonic() - began:.1f} s.")
        await story.an_order_by_curl()
        await story.a_kill_in_mid_flight()
        order_id = await story.a_dead_letter()
        await story.the_journal(order_id)
        await OldMonths(stage, stack.endpoints, stubs).tell()
    console.print(
        f"\n[bold green]The story is over[/] after {time.monotonic() - began:.0f} s; nothing runs any more."
    )
    console.print("Next: [bold]make up[/] leaves it running; the README shows what to try.")
