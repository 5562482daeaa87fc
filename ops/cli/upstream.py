"""`ordermesh upstream`: make a simulated upstream misbehave, let it behave again, and read its ledger.

Only the simulators of the local stack can be told so; a real upstream has no such interface.
"""

from __future__ import annotations

import asyncio
from datetime import timedelta
from typing import TYPE_CHECKING, Annotated, Any

import typer

from chassis.money import Money
from ops.cli import output
from ops.cli.calls import TIMEOUT_S, quietly
from ops.cli.options import Format, OrderId, Output, StateDir, duration
from ops.mesh import simulator
from ops.stack.endpoints import Endpoints
from ordermesh.upstream.v1 import simulator_service_pb2 as sim

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable
    from pathlib import Path

    from ordermesh.upstream.v1.simulator_service_pb2_grpc import SimulatorServiceAsyncStub

FAULTS = {
    name.lower().replace("_", "-"): name
    for name in sim.Fault.Kind.DESCRIPTOR.values_by_name
    if "UNSPEC" not in name
}
app = typer.Typer(
    help="Simulated upstreams: break, heal, ledger.",
    no_args_is_help=True,
    rich_markup_mode=None,
    add_completion=False,
)


def _fault(text: str) -> str:
    if text not in FAULTS:
        raise typer.BadParameter(f"{text!r} is none of {', '.join(FAULTS)}")
    return text


@app.command(name="break")
def break_(
    upstream: Annotated[str, typer.Argument(metavar="NAME", help="Such as payments.", show_default=False)],
    fault: Annotated[
        str,
        typer.Argument(parser=_fault, metavar="FAULT", help=", ".join(FAULTS) + ".", show_default=False),
    ],
    state_dir: StateDir,
    user: Annotated[str, typer.Option(help="Only users whose id begins so.")] = "",
    order: Annotated[str, typer.Option(help="Only this order.")] = "",
    lasting: Annotated[
        timedelta,
        typer.Option(
            "--for",
            parser=duration,
            metavar="DURATION",
            show_default="3s",
            help="How long; only for faults that delay.",
        ),
    ] = timedelta(seconds=3),
    limit: Annotated[int, typer.Option(min=0, help="Goes away after so many strikes; 0 stays.")] = 0,
    form: Output = Format.TABLE,
) -> None:
    """Make a simulated upstream misbehave until it is healed.

    \b
    Example:
      ordermesh upstream break payments unknown --user bob
    """
    wanted = sim.Fault(
        kind=sim.Fault.Kind.Value(FAULTS[fault]), user_id_prefix=user, order_id=order, limit=limit
    )
    if FAULTS[fault] in ("SLOW", "IN_PROGRESS", "NOT_FOUND_BUT_EXECUTES"):
        wanted.duration.FromTimedelta(lasting)

    async def work(stub: SimulatorServiceAsyncStub) -> sim.SetFaultResponse:
        return await stub.SetFault(sim.SetFaultRequest(fault=wanted), timeout=TIMEOUT_S)

    answer = _on(state_dir, [upstream], work)[upstream]
    told = output.facts(
        ("upstream", upstream),
        ("fault", fault),
        ("users", user and f"{user}*"),
        ("order", order),
        ("until", f"ordermesh upstream heal {upstream}"),
    )
    output.emit(form, answer, told)


@app.command()
def heal(
    state_dir: StateDir,
    upstream: Annotated[
        str, typer.Argument(metavar="[NAME]", help="Such as payments; all when none is named.")
    ] = "",
    form: Output = Format.TABLE,
) -> None:
    """Let simulated upstreams behave again.

    \b
    Example:
      ordermesh upstream heal
    """

    async def work(stub: SimulatorServiceAsyncStub) -> sim.ClearFaultsResponse:
        return await stub.ClearFaults(sim.ClearFaultsRequest(), timeout=TIMEOUT_S)

    healed = _on(state_dir, [upstream] if upstream else _names(state_dir), work)
    if form is Format.JSON:
        output.print_json([{"upstream": name, **output.as_dict(answer)} for name, answer in healed.items()])
        return
    rows = [(name, str(answer.cleared_count)) for name, answer in healed.items()]
    output.show(output.table("upstream", "faults cleared", rows=rows))


@app.command()
def ledger(order_id: OrderId, state_dir: StateDir, form: Output = Format.TABLE) -> None:
    """Show what the upstreams themselves say they executed for an order.

    \b
    Example:
      ordermesh upstream ledger 01939c5e-7a3b-7000-8af5-...
    """

    async def work(stub: SimulatorServiceAsyncStub) -> sim.GetLedgerResponse:
        return await stub.GetLedger(sim.GetLedgerRequest(order_id=order_id), timeout=TIMEOUT_S)

    found = _on(state_dir, _names(state_dir), work)
    if form is Format.JSON:
        output.print_json([{"upstream": name, **output.as_dict(answer)} for name, answer in found.items()])
        return
    rows = [
        (
            one.idempotency_key,
            name,
            "FAILED" if one.rejected else "SUCCEEDED",
            str(Money(one.amount.currency_code, one.amount.amount_minor)),
            one.upstream_ref,
            output.when(one.execute_time),
        )
        for name, answer in found.items()
        for one in answer.executions
    ]
    output.show(output.table("key", "upstream", "verdict", "amount", "reference", "time (UTC)", rows=rows))
    if not rows:
        output.note("no upstream executed anything for this order")


def _names(state_dir: Path) -> list[str]:
    return [each.name for each in Endpoints.read_here(state_dir).upstreams]


def _on(
    state_dir: Path, names: list[str], work: Callable[[SimulatorServiceAsyncStub], Awaitable[Any]]
) -> dict[str, Any]:
    """Do some work on each of these upstreams at once."""
    endpoints = Endpoints.read_here(state_dir)
    unknown = sorted(set(names) - {each.name for each in endpoints.upstreams})
    if unknown:
        known = ", ".join(each.name for each in endpoints.upstreams)
        raise typer.BadParameter(f"there is no upstream {unknown[0]!r}; there are: {known}")

    async def one(name: str) -> Any:
        async with simulator(endpoints, name) as stub:
            return await work(stub)

    async def every() -> list[Any]:
        return await asyncio.gather(*map(one, names))

    return dict(zip(names, quietly(every()), strict=True))
