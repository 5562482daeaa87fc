"""`ordermesh seed`: back-dated histories for lists, searches and archives to work on."""

from __future__ import annotations

import sys
from contextlib import contextmanager
from dataclasses import asdict
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from ops import projection
from ops import seed as seeding
from ops.cli import output
from ops.cli.bars import bars
from ops.cli.calls import ask, quietly
from ops.cli.options import Format, Output, StateDir, duration
from ops.seed.plan import Plan, PlanRefused
from ops.stack.endpoints import Endpoints

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from ops.mesh import Mesh
    from ops.seed import Outcome

TEN_MINUTES = timedelta(minutes=10)


def seed(
    state_dir: StateDir,
    users: Annotated[int, typer.Option(help="Users who ordered something, named seed.SEED.NUMBER.")] = 100,
    orders: Annotated[int, typer.Option(help="Orders in all.")] = 10_000,
    months: Annotated[
        int, typer.Option(help="Calendar months they are spread over; this one is the last.")
    ] = 3,
    number: Annotated[int, typer.Option("--seed", help="Draws everything; the same one adds nothing.")] = 1,
    heavy_user: Annotated[
        float, typer.Option(metavar="SHARE", help="Share of all orders of one user, seed.SEED.heavy.")
    ] = 0.0,
    wait: Annotated[
        timedelta,
        typer.Option(
            parser=duration,
            metavar="DURATION",
            show_default="10m",
            help="Wait so long until the read model has them too; 0s not to.",
        ),
    ] = TEN_MINUTES,
    form: Output = Format.TABLE,
) -> None:
    """Make back-dated orders, as if the mesh had run for months.

    Each order lived through the rules of order_svc: most are settled; of the last two months some are parked
    with open dead letters, a few hang. The upstreams' ledgers get their side of it, so the audit passes.
    Nothing is younger than two days. The same arguments again add nothing; a run that was cut off is
    completed.

    The read model builds these months by itself; until then their lists come from the shards.

    \b
    Example:
      ordermesh seed --users 200 --orders 50000 --months 6 --heavy-user 0.2
    """
    endpoints = Endpoints.read_here(state_dir)
    ledgers = {upstream.name: Path(upstream.ledger) for upstream in endpoints.upstreams}
    try:
        plan = Plan(users=users, orders=orders, months=months, seed=number, heavy_share=heavy_user)
    except PlanRefused as refused:
        raise typer.BadParameter(str(refused)) from refused
    with _bar(plan.orders, shown=form is Format.TABLE and sys.stderr.isatty()) as progress:
        outcome = quietly(seeding.run(plan, endpoints.shard_dsns(), ledgers, progress))
    is_served = outcome.added == 0 or not wait or _until_served(state_dir, wait, form)
    _print(outcome, form)
    if not is_served or (outcome.added and not wait):
        output.note("until the read model has these months, their lists come from the shards: index status")


def _until_served(state_dir: Path, wait: timedelta, form: Format) -> bool:
    """Wait until an index serves every month; whether one does."""

    async def work(mesh: Mesh) -> bool:
        with bars(form) as tell:
            return await projection.until_served(mesh, wait_s=wait.total_seconds(), tell=tell)

    return ask(state_dir, work)


@contextmanager
def _bar(orders: int, *, shown: bool) -> Iterator[Callable[[int], None]]:
    """A bar on the terminal; takes how many orders are done."""
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True, disable=not shown) as bar:
        task = bar.add_task("orders", total=orders)
        yield lambda done: bar.update(task, completed=done)


def _print(outcome: Outcome, form: Format) -> None:
    if form is Format.JSON:
        output.print_json(
            {
                **asdict(outcome),
                "until": outcome.until.isoformat(),
                "months": [month.isoformat()[:7] for month in outcome.months],
                "rate": round(outcome.rate, 1),
            }
        )
        return
    if outcome.added == 0:
        output.show(f"all {outcome.there_before} orders were there; nothing was added")
        return
    first, last = outcome.months[0], outcome.months[-1]
    stages = ", ".join(f"{count} {stage}" for stage, count in outcome.stages.items())
    output.show(
        output.facts(
            ("added", f"{outcome.added} orders ({stages})"),
            ("there before", str(outcome.there_before)),
            ("months", f"{first:%Y-%m} to {last:%Y-%m}, until {outcome.until:%d %B %H:00} UTC"),
            ("users", f"{outcome.plan.user(0)} to {outcome.plan.user(outcome.plan.users - 1)}"),
            ("heavy user", outcome.plan.heavy_user if outcome.plan.heavy_share else ""),
            ("took", f"{outcome.seconds:g} s, {outcome.rate:.0f} orders/s"),
        )
    )
