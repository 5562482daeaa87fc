"""`ordermesh load`: orders at a fixed rate with kills and faults, then the proof that nothing was lost."""

from __future__ import annotations

import signal
from asyncio import CancelledError
from datetime import timedelta
from typing import TYPE_CHECKING, Annotated

import typer

from ops import load as loading
from ops.audit import report as findings
from ops.audit.shards import StoreUnreadable
from ops.cli import output
from ops.cli.calls import quietly
from ops.cli.edge import ExitCode
from ops.cli.options import Format, Output, StateDir, duration
from ops.load import report
from ops.load.plan import Freeze, Kill, Plan, PlanRefused, Transport, UpstreamFault
from ops.load.walk import figures

if TYPE_CHECKING:
    from ops.load import Outcome

FAULT_S = 2.0
"""How long a timed fault lasts when nobody says."""
_TIMED = frozenset({"SLOW", "IN_PROGRESS", "NOT_FOUND_BUT_EXECUTES"})


ENDED = 128 + signal.SIGTERM
USERS = 240
WALKED_USERS = 4
LATE_VERDICTS = (UpstreamFault("IN_PROGRESS", 0.1, 5.0), UpstreamFault("LOST_REPLY", 0.05))
"""What upstreams do during a walk when nobody says."""


def _kill(text: str) -> Kill:
    service, colon, every = text.rpartition(":")
    if not colon:
        raise typer.BadParameter(f"{text!r} is not SERVICE:EVERY, such as order_svc:7s")
    return Kill(service, duration(every).total_seconds())


def _freeze(text: str) -> Freeze:
    name, _, times = text.partition(":")
    every, colon, lasting = times.partition(":")
    if not colon:
        raise typer.BadParameter(f"{text!r} is not NAME:EVERY:FOR, such as kafka:60s:15s")
    return Freeze(name, duration(every).total_seconds(), duration(lasting).total_seconds())


def _fault(text: str) -> UpstreamFault:
    kind, _, rest = text.partition(":")
    rate, _, lasting = rest.partition(":")
    try:
        probability = float(rate)
    except ValueError:
        raise typer.BadParameter(f"{text!r} is not FAULT:RATE, such as lost_reply:0.05") from None
    lasts_s = duration(lasting).total_seconds() if lasting else FAULT_S * (kind.upper() in _TIMED)
    return UpstreamFault(kind.upper(), probability, lasts_s)


Kills = Annotated[
    list[Kill] | None,
    typer.Option(
        "--kill", parser=_kill, metavar="SERVICE:EVERY", help="SIGKILL a process so often; shards in turn."
    ),
]
Freezes = Annotated[
    list[Freeze] | None,
    typer.Option(
        "--freeze",
        parser=_freeze,
        metavar="NAME:EVERY:FOR",
        help="SIGSTOP a process so often, and let it go on after a while; names as in endpoints.json.",
    ),
]
Faults = Annotated[
    list[UpstreamFault] | None,
    typer.Option(
        "--upstream-fault",
        parser=_fault,
        metavar="FAULT:RATE",
        help="Make the upstreams misbehave; FAULT:RATE:DURATION too.",
    ),
]
Moves = Annotated[
    timedelta,
    typer.Option(
        "--vip-moves",
        parser=duration,
        metavar="EVERY",
        show_default=False,
        help="Give a user a dedicated bucket, or take it back, so often.",
    ),
]
Users = Annotated[
    int | None,
    typer.Option(help="Users of the run, besides the VIPs of the stack.", show_default="240; 4 with --walk"),
]
Walks = Annotated[
    bool, typer.Option("--walk", help="Read whole histories of seeded users meanwhile, and check them.")
]


def load(
    state_dir: StateDir,
    rate: Annotated[float, typer.Option(help="Orders a second, whether the mesh keeps up or not.")],
    seconds: Annotated[float, typer.Option(help="How long orders arrive.")],
    users: Users = None,
    transport: Annotated[Transport, typer.Option(help="How orders are sent.")] = Transport.MIXED,
    kill: Kills = None,
    freeze: Freezes = None,
    upstream_fault: Faults = None,
    vip_moves: Moves = timedelta(),
    walk: Walks = False,
    walkers: Annotated[int, typer.Option(min=1, help="Readers at once; only with --walk.")] = 4,
    settle_timeout: Annotated[float, typer.Option(help="Seconds to wait for quiet after the load.")] = 120.0,
    give_up: Annotated[float, typer.Option(help="Seconds a client retries one order.")] = 30.0,
    seed: Annotated[int, typer.Option(help="Draws arrivals, users, amounts and faults.")] = 1,
    form: Output = Format.TABLE,
) -> None:
    """Create orders under load and faults, then check them.

    Orders arrive whether the mesh keeps up or not; meanwhile processes are killed and upstreams misbehave.
    Then waits for quiet and checks that every promise was kept, and the audit. What was acknowledged is
    logged below the state directory.

    With --walk the orders are those of users with a seeded history, old orders change too, and readers walk
    whole histories page by page: every acknowledged order exactly once, in order, and no older than was told.
    Exit code 1 on any violation and when the run proves nothing, 3 when a store cannot be read, 5 when the
    walks prove nothing, as fewer than half of the pages were merged or than 1 in 20 showed a change that the
    read model lacked. A short hot window helps: `ordermesh dev --hot-window 10s`.

    \b
    Examples:
      ordermesh load --rate 60 --seconds 60 --kill order_svc:7s --upstream-fault lost_reply:0.05
      ordermesh load --rate 10 --seconds 600 --walk --kill projector:40s --freeze history_svc:60s:5s
    """
    users = (WALKED_USERS if walk else USERS) if users is None else users
    try:
        plan = Plan(
            rate=rate,
            seconds=seconds,
            users=users,
            transport=transport,
            kills=tuple(kill or ()),
            freezes=tuple(freeze or ()),
            faults=tuple(upstream_fault or (LATE_VERDICTS if walk else ())),
            walkers=walkers if walk else 0,
            vip_moves_every_s=vip_moves.total_seconds(),
            settle_timeout_s=settle_timeout,
            give_up_s=give_up,
            seed=seed,
        )
        outcome = quietly(loading.run(state_dir, plan, output.note if form is Format.TABLE else _silent))
    except PlanRefused as refused:
        raise typer.BadParameter(str(refused)) from refused
    except CancelledError:
        output.note("told to end; nothing was checked")
        raise typer.Exit(ENDED) from None
    except StoreUnreadable as unreadable:
        output.note(f"error: {unreadable}")
        raise typer.Exit(ExitCode.UNREACHABLE) from unreadable
    _print(outcome, form)
    if outcome.violations:
        raise typer.Exit(ExitCode.NO)
    if outcome.void:
        raise typer.Exit(ExitCode.VOID)


def _silent(line: str) -> None:
    """Programs read the result, not the progress."""


def _print(outcome: Outcome, form: Format) -> None:
    if form is Format.JSON:
        output.print_json(report.as_json(outcome))
        return
    output.show(output.table(*report.LATENCY_COLUMNS, rows=report.latencies(outcome)))
    output.show(output.table("orders", "", rows=report.counts(outcome), title=""))
    if outcome.walked is not None:
        output.show(output.table("walks", "", rows=figures.rows(outcome.walked)))
    if outcome.kills or outcome.freezes or outcome.faults or outcome.moves:
        output.show(output.table("nemesis", "what", "times", rows=report.nemesis(outcome)))
    output.show(output.table(*findings.COLUMNS, rows=findings.rows(outcome.findings)))
    quiet = outcome.quiet
    state = "quiet" if quiet.reached else f"not quiet ({quiet.in_motion} in motion, {quiet.due} due)"
    if quiet.others:
        state += f" but for {quiet.others} orders from before"
    output.show(
        f"{state} {quiet.waited_s:g} s after the load; {outcome.violations} violations; "
        f"acknowledgements in {outcome.log}"
    )
    if outcome.void:
        output.show(f"VOID: {outcome.void}")
