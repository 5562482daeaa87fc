"""`ordermesh order`: create, get, list, watch, label and journal, by the same RPCs as every caller."""

from __future__ import annotations

import asyncio
import time
from datetime import timedelta
from typing import TYPE_CHECKING, Annotated

import grpc
import typer

from chassis.errors import InvalidField
from ops.cli import amounts, output
from ops.cli.calls import TIMEOUT_S, ask
from ops.cli.edge import ExitCode
from ops.cli.history import list_orders
from ops.cli.options import Format, OrderId, Output, RequestId, StateDir, duration
from ordermesh.order.v1 import order_pb2, order_service_pb2

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from rich.table import Table

    from ops.mesh import Mesh

EVENTS_MAX = 1000
PAGE_MAX = 100
_RECONNECT_S = 0.5
_LOST = frozenset({grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.CANCELLED, grpc.StatusCode.ABORTED})
"""What a watcher sees when a process between it and the order was killed."""

app = typer.Typer(
    help="create, get, list, watch, label, journal.",
    no_args_is_help=True,
    rich_markup_mode=None,
    add_completion=False,
)
app.command("list")(list_orders)
User = Annotated[str, typer.Option("--user", help="Whose orders.")]


@app.command()
def create(
    user: User,
    amount: Annotated[
        amounts.Amount, typer.Option(parser=amounts.parse, metavar="AMOUNT", help="Such as 12.50EUR.")
    ],
    request_id: RequestId,
    state_dir: StateDir,
    kind: Annotated[str, typer.Option(help="Names the legs: payment or purchase.")] = "payment",
    wait: Annotated[
        timedelta,
        typer.Option(
            parser=duration, metavar="DURATION", show_default=False, help="Wait so long for it to settle."
        ),
    ] = timedelta(),
    description: Annotated[str, typer.Option(help="Free text, at most 512 characters.")] = "",
    label: Annotated[list[str] | None, typer.Option(help="NAME=VALUE; may be repeated.")] = None,
    form: Output = Format.TABLE,
) -> None:
    """Create an order. Repeated with the same --request-id it returns the first one.

    \b
    Example:
      ordermesh order create --user alice --amount 12.50EUR --wait 5s
    """
    request = order_service_pb2.CreateOrderRequest(
        user_id=user,
        request_id=str(request_id),
        kind=kind,
        description=description,
        labels=_labels(label or []),
    )
    request.amount.currency_code, request.amount.amount_minor = amount.currency_code, amount.amount_minor
    if wait:
        request.wait.FromTimedelta(wait)
    timeout_s = TIMEOUT_S + wait.total_seconds()

    async def work(mesh: Mesh) -> order_service_pb2.CreateOrderResponse:
        return await mesh.orders.CreateOrder(request, timeout=timeout_s)

    answer = ask(state_dir, work)
    output.emit(form, answer, _one(answer.order, replayed=answer.replayed))


@app.command()
def get(order_id: OrderId, state_dir: StateDir, form: Output = Format.TABLE) -> None:
    """Show one order as it is now.

    \b
    Example:
      ordermesh order get 01939c5e-7a3b-7000-8af5-... -o json | jq -r .status
    """

    async def work(mesh: Mesh) -> order_pb2.Order:
        request = order_service_pb2.GetOrderRequest(order_id=order_id)
        return (await mesh.orders.GetOrder(request, timeout=TIMEOUT_S)).order

    found = ask(state_dir, work)
    output.emit(form, found, _one(found))


@app.command()
def watch(
    order_id: OrderId,
    state_dir: StateDir,
    within: Annotated[
        timedelta,
        typer.Option(parser=duration, metavar="DURATION", show_default="5m", help="Give up after so long."),
    ] = timedelta(minutes=5),
    form: Output = Format.TABLE,
) -> None:
    """Follow an order until it is settled, also over restarts. Exit code 1 unless it is a SUCCESS.

    \b
    Example:
      ordermesh order watch 01939c5e-7a3b-7000-8af5-... --within 30s
    """
    end = time.monotonic() + within.total_seconds()

    async def work(mesh: Mesh) -> order_pb2.Order | None:
        last: order_pb2.Order | None = None
        async for seen in _changes(mesh, order_id, end):
            last = seen
            if form is Format.JSON:
                output.print_json_line(seen)
            else:
                output.show(output.cell(_change(seen)))
        return last

    last = ask(state_dir, work)
    if last is None or last.stage != order_pb2.Order.DONE:
        output.note(f"not settled within {within.total_seconds():g} s")
    if last is None or last.status != order_pb2.Order.SUCCESS:
        raise typer.Exit(ExitCode.NO)


@app.command()
def label(
    order_id: OrderId,
    changes: Annotated[
        list[str],
        typer.Argument(
            metavar="NAME=VALUE|NAME-...", help="Put a label, or take one away.", show_default=False
        ),
    ],
    request_id: RequestId,
    state_dir: StateDir,
    replace: Annotated[bool, typer.Option("--replace", help="Take away all labels not given here.")] = False,
    form: Output = Format.TABLE,
) -> None:
    """Change an order's labels, settled or not. Refused when the order changes meanwhile, unless --replace.

    \b
    Example:
      ordermesh order label 01939c5e-7a3b-7000-8af5-... shop=7 cart-
    """
    taken = {text[:-1] for text in changes if text.endswith("-") and "=" not in text}
    put = _labels([text for text in changes if text[:-1] not in taken])

    async def work(mesh: Mesh) -> order_pb2.Order:
        seen = await mesh.orders.GetOrder(
            order_service_pb2.GetOrderRequest(order_id=order_id), timeout=TIMEOUT_S
        )
        before = {} if replace else dict(seen.order.labels)
        request = order_service_pb2.UpdateOrderRequest(
            order_id=order_id,
            request_id=str(request_id),
            labels={name: value for name, value in {**before, **put}.items() if name not in taken},
            expected_version=0 if replace else seen.order.version,
        )
        return (await mesh.orders.UpdateOrder(request, timeout=TIMEOUT_S)).order

    changed = ask(state_dir, work)
    output.emit(form, changed, _one(changed))


@app.command()
def journal(order_id: OrderId, state_dir: StateDir, form: Output = Format.TABLE) -> None:
    """Show everything that happened to an order, oldest first.

    \b
    Example:
      ordermesh order journal 01939c5e-7a3b-7000-8af5-...
    """
    events = ask(state_dir, lambda mesh: events_of(mesh, order_id))
    output.emit(form, events, journal_table(events, title=f"journal of {order_id}"))


async def events_of(mesh: Mesh, order_id: str) -> list[order_pb2.OrderEvent]:
    """The journal of an order, oldest first, `EVENTS_MAX` at most."""
    request = order_service_pb2.ListOrderEventsRequest(order_id=order_id, page_size=PAGE_MAX)
    events: list[order_pb2.OrderEvent] = []
    while len(events) < EVENTS_MAX:
        page = await mesh.orders.ListOrderEvents(request, timeout=TIMEOUT_S)
        events += page.events
        request.page_token = page.next_page_token
        if not page.next_page_token:
            break
    return events


def journal_table(events: list[order_pb2.OrderEvent], *, title: str = "") -> Table:
    """The journal as people read it; also for the demo."""
    return output.table(
        *("version", "time (UTC)", "what", "from -> to", "leg/attempt", "by", "proof", "evidence"),
        rows=[_event(each) for each in events],
        title=title,
    )


def _event(event: order_pb2.OrderEvent) -> tuple[str, ...]:
    before = output.stage_name(event.from_stage, event.from_status)
    after = output.stage_name(event.to_stage, event.to_status)
    return (
        str(event.version),
        output.when(event.event_time).removesuffix("Z"),
        event.kind,
        f"{before} -> {after}",
        f"{event.leg}/{event.attempt}",
        event.actor,
        event.proof,
        output.evidence(event.evidence_json),
    )


async def _changes(mesh: Mesh, order_id: str, end: float) -> AsyncIterator[order_pb2.Order]:
    """The order now and after every change, until it is settled or the time is up."""
    request = order_service_pb2.WatchOrderRequest(order_id=order_id)
    while (left := end - time.monotonic()) > 0:
        try:
            async for answer in mesh.orders.WatchOrder(request, timeout=left):
                request.after_version = answer.order.version
                yield answer.order
        except grpc.aio.AioRpcError as broken:
            if broken.code() is grpc.StatusCode.DEADLINE_EXCEEDED:
                continue
            if broken.code() not in _LOST or end - time.monotonic() < _RECONNECT_S:
                raise
            await asyncio.sleep(_RECONNECT_S)
        else:
            return


def _change(order: order_pb2.Order) -> str:
    at = output.when(order.update_time)
    return f"{at}  version {order.version:<3} leg {output.leg(order)}  {output.stage(order)}"


def _one(order: order_pb2.Order, *, replayed: bool = False) -> Table:
    return output.facts(
        ("order", order.order_id),
        ("user", order.user_id),
        ("status", output.status(order)),
        ("stage", output.stage(order) if order.stage != order_pb2.Order.DONE else ""),
        ("kind", f"{order.kind} = {' then '.join(order.legs)}"),
        ("leg", f"{output.leg(order)}, attempt {order.attempt}"),
        ("amount", output.money(order.amount)),
        ("description", order.description),
        ("labels", " ".join(f"{name}={value}" for name, value in sorted(order.labels.items()))),
        ("failure", order.failure_reason),
        ("on whose word", order_pb2.Order.Basis.Name(order.basis) if order.basis else ""),
        ("upstream ref", order.upstream_ref),
        ("version", str(order.version)),
        ("created", output.when(order.create_time)),
        ("settled", output.when(order.settle_time)),
        ("request id", f"{order.request_id}{'  (replayed: made by an earlier call)' if replayed else ''}"),
        ("trace", order.traceparent.split("-")[1] if order.traceparent.count("-") == 3 else ""),
    )


def _labels(given: list[str]) -> dict[str, str]:
    pairs = [text.partition("=") for text in given]
    for name, separator, _ in pairs:
        if not name or not separator:
            raise InvalidField.of("labels", "each is NAME=VALUE")
    return {name: value for name, _, value in pairs}
