"""`ordermesh recovery`: what hangs, how recovery does, and how to keep it away for a while."""

from __future__ import annotations

from datetime import timedelta
from typing import TYPE_CHECKING, Annotated

import typer

from ops.cli import output
from ops.cli.calls import TIMEOUT_S, ask
from ops.cli.edge import ExitCode
from ops.cli.options import Actor, Format, OneShard, OrderId, Output, RequestId, StateDir, Why, duration
from ops.mesh import spoken_by
from ordermesh.order.v1 import order_pb2
from ordermesh.recovery.v1 import recovery_service_pb2 as recovery
from ordermesh.upstream.v1.upstream_service_pb2 import Verdict

if TYPE_CHECKING:
    from collections.abc import Sequence

    from ops.mesh import Mesh

app = typer.Typer(
    help="status, hanging, probe, pause, resume.",
    no_args_is_help=True,
    rich_markup_mode=None,
    add_completion=False,
)
OneUpstream = Annotated[str, typer.Option("--upstream", help="Only orders that wait for this upstream.")]


@app.command()
def status(state_dir: StateDir, form: Output = Format.TABLE) -> None:
    """Say how recovery does on each shard. Exit code 1 when a shard does not answer.

    \b
    Example:
      ordermesh recovery status
    """

    async def work(mesh: Mesh) -> recovery.GetRecoveryStatusResponse:
        return await mesh.recovery.GetRecoveryStatus(recovery.GetRecoveryStatusRequest(), timeout=TIMEOUT_S)

    answer = ask(state_dir, work)
    columns = ("shard", "waiting", "hanging", "oldest", "dead letters", "holds", "last sweep (UTC)", "probes")
    output.emit(form, answer, output.table(*columns, rows=[_shard(each) for each in answer.shards]))
    _incomplete([each.shard for each in answer.shards if not each.reachable])


@app.command()
def hanging(
    state_dir: StateDir,
    shard: OneShard = "",
    limit: Annotated[int, typer.Option(min=1, max=100, help="At most so many.")] = 50,
    form: Output = Format.TABLE,
) -> None:
    """List orders that are past their time, the most overdue first. Exit code 1 when a shard does not answer.

    \b
    Example:
      ordermesh recovery hanging --shard s1
    """
    request = recovery.ListHangingOrdersRequest(shard=shard, page_size=limit)

    async def work(mesh: Mesh) -> recovery.ListHangingOrdersResponse:
        return await mesh.recovery.ListHangingOrders(request, timeout=TIMEOUT_S)

    answer = ask(state_dir, work)
    columns = ("order", "user", "stage", "leg", "due (UTC)", "next", "probes", "silent", "claims", "held by")
    rows = [_due(each) for each in answer.due_orders]
    output.emit(form, list(answer.due_orders), output.table(*columns, rows=rows))
    if form is Format.TABLE and not rows and not answer.unreachable:
        output.note("nothing hangs")
    _incomplete(answer.unreachable)


@app.command()
def probe(order_id: OrderId, state_dir: StateDir, form: Output = Format.TABLE) -> None:
    """Ask the upstream what became of an order now, and apply the answer.

    \b
    Example:
      ordermesh recovery probe 01939c5e-7a3b-7000-8af5-...
    """

    async def work(mesh: Mesh) -> recovery.ProbeOrderResponse:
        return await mesh.recovery.ProbeOrder(
            recovery.ProbeOrderRequest(order_id=order_id), timeout=TIMEOUT_S
        )

    answer = ask(state_dir, work)
    drawn = output.facts(
        ("order", answer.order.order_id),
        ("found", _found(answer)),
        ("now", output.stage(answer.order)),
        ("leg", f"{output.leg(answer.order)}, attempt {answer.order.attempt}"),
        ("version", str(answer.order.version)),
    )
    output.emit(form, answer, drawn)


@app.command()
def pause(
    reason: Why,
    actor: Actor,
    request_id: RequestId,
    state_dir: StateDir,
    shard: OneShard = "",
    upstream: OneUpstream = "",
    ttl: Annotated[
        timedelta,
        typer.Option(
            "--for",
            parser=duration,
            metavar="DURATION",
            show_default="until resumed",
            help="For so long.",
        ),
    ] = timedelta(),
    form: Output = Format.TABLE,
) -> None:
    """Stop recovery: everywhere, on one shard, or at one upstream. Exit code 1 when a shard was not reached.

    \b
    Example:
      ordermesh recovery pause --upstream payments --for 30m --reason "bank's window"
    """
    request = recovery.PauseRecoveryRequest(
        request_id=str(request_id), shard=shard, upstream=upstream, reason=reason
    )
    if ttl:
        request.ttl.FromTimedelta(ttl)

    async def work(mesh: Mesh) -> recovery.PauseRecoveryResponse:
        return await mesh.recovery.PauseRecovery(request, timeout=TIMEOUT_S, metadata=spoken_by(actor))

    answer = ask(state_dir, work)
    paused = (("paused", ", ".join(answer.shards) or "nothing"), ("at", upstream or "all upstreams"))
    output.emit(form, answer, output.facts(*paused))
    _incomplete(answer.unreachable)


@app.command()
def resume(
    reason: Why,
    actor: Actor,
    request_id: RequestId,
    state_dir: StateDir,
    shard: OneShard = "",
    upstream: OneUpstream = "",
    form: Output = Format.TABLE,
) -> None:
    """End a pause; waiting orders become due at once. Exit code 1 when a shard was not reached.

    \b
    Example:
      ordermesh recovery resume --upstream payments --reason "bank is back"
    """
    request = recovery.ResumeRecoveryRequest(
        request_id=str(request_id), shard=shard, upstream=upstream, reason=reason
    )

    async def work(mesh: Mesh) -> recovery.ResumeRecoveryResponse:
        return await mesh.recovery.ResumeRecovery(request, timeout=TIMEOUT_S, metadata=spoken_by(actor))

    answer = ask(state_dir, work)
    output.emit(form, answer, output.facts(("resumed", ", ".join(answer.shards) or "nothing was paused")))
    _incomplete(answer.unreachable)


def _incomplete(unreachable: Sequence[str]) -> None:
    if unreachable:
        output.note(f"incomplete: no answer from {', '.join(unreachable)}")
        raise typer.Exit(ExitCode.NO)


def _shard(each: recovery.ShardRecovery) -> tuple[str, ...]:
    if not each.reachable:
        return (each.shard, "no answer", *[""] * 4, output.when(each.last_sweep_time), str(each.probe_count))
    waiting = " ".join(f"{stage} {count}" for stage, count in sorted(each.waiting_counts.items()) if count)
    return (
        each.shard,
        waiting or "nothing",
        str(each.overdue_count),
        output.how_long(each.oldest_overdue_age) if each.overdue_count else "",
        str(each.open_dead_letter_count),
        "; ".join(_hold(hold) for hold in each.holds),
        output.when(each.last_sweep_time),
        str(each.probe_count),
    )


def _hold(hold: order_pb2.Hold) -> str:
    until = f" until {output.when(hold.until_time)}" if hold.HasField("until_time") else ""
    return f"{hold.scope} by {hold.actor}{until}: {hold.reason}"


def _due(each: order_pb2.DueOrder) -> tuple[str, ...]:
    return (
        each.order.order_id,
        each.order.user_id,
        output.stage(each.order),
        output.leg(each.order),
        output.when(each.due_time),
        each.timer_class,
        str(each.probe_count),
        str(each.silent_count),
        str(each.claim_count),
        each.hold_reason,
    )


def _found(answer: recovery.ProbeOrderResponse) -> str:
    if not answer.HasField("report"):
        return "nothing was asked: it is settled, about to be submitted, or being probed by somebody else"
    report = answer.report
    if report.probe_class == order_pb2.PROBE_CLASS_ANSWERED:
        return " ".join(
            filter(None, [Verdict.Name(report.answer.verdict).removeprefix("VERDICT_"), report.detail])
        )
    worth = order_pb2.ProbeClass.Name(report.probe_class).removeprefix("PROBE_CLASS_")
    return " ".join(filter(None, [worth, report.detail]))
