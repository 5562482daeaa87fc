"""`ordermesh order list` and `ordermesh search`: orders by filter, page by page, and where they came from."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from ops.cli import filters, output
from ops.cli.calls import TIMEOUT_S, ask
from ops.cli.edge import ExitCode
from ops.cli.filters import All, Amount, From, Kind, Level, PageSize, Status, Until, Words
from ops.cli.options import Format, Output, StateDir
from ordermesh.history.v1 import history_service_pb2 as history

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence

    from rich.table import Table

    from ordermesh.order.v1.order_pb2 import Order

User = Annotated[str, typer.Option("--user", help="Whose orders.")]


def list_orders(
    user: User,
    state_dir: StateDir,
    status: Status = None,
    kind: Kind = "",
    created_from: From = None,
    until: Until = None,
    amount: Amount = None,
    text: Words = "",
    page_size: PageSize = None,
    every: All = False,
    consistency: Annotated[
        Level, typer.Option(case_sensitive=False, help="How fresh it has to be.")
    ] = Level.DEFAULT,
    consistency_token: Annotated[
        str, typer.Option("--token", help="From an earlier write, which the list then shows.")
    ] = "",
    partial: Annotated[
        bool, typer.Option("--partial", help="Leave out a shard that is away; only with eventual.")
    ] = False,
    form: Output = Format.TABLE,
) -> None:
    """List a user's orders, newest first, each exactly once and as it is now.

    \b
    Exit code 1 when a shard was left out, or when --all ended before the list did.
    Example:
      ordermesh order list --user alice --status FAILED --from 30d --amount EUR:10..20 --all
    """
    request = history.ListOrdersRequest(
        user_id=user,
        page_size=page_size or (filters.PAGE_MAX if every else filters.PAGE_SIZE),
        filter=filters.order_filter(status, kind, created_from, until, amount, text),
        consistency=consistency.value_on_the_wire,
        consistency_token=consistency_token,
        return_partial_success=partial,
    )
    found = ask(state_dir, lambda mesh: _read(mesh.history.ListOrders, request, every))
    output.emit(form, list(found.orders), _table(found.orders))
    left_out = [store for store in found.unreachable if store.startswith("shards/")]
    if form is Format.TABLE:
        if not found.orders and not left_out and not found.next_page_token:
            output.note(f"{user} has no such orders")
        _tell_origin(found.read_info, found.unreachable)
    _end(left_out, more=bool(found.next_page_token), every=every, form=form)


def search(
    state_dir: StateDir,
    user: Annotated[str, typer.Option("--user", help="Only this user's orders.")] = "",
    status: Status = None,
    kind: Kind = "",
    created_from: From = None,
    until: Until = None,
    amount: Amount = None,
    text: Words = "",
    page_size: PageSize = None,
    every: All = False,
    form: Output = Format.TABLE,
) -> None:
    """Search everybody's orders in the read model.

    \b
    It says how old the answer is. Exit code 1 when orders may be missing: a shard could not
    be asked, the read model never had all of one, or --all ended before the orders did.
    Exit code 4 when the read model is away.
    Example:
      ordermesh search --text "two tickets" --status FAILED --from 7d
    """
    request = history.SearchOrdersRequest(
        user_id=user,
        page_size=page_size or (filters.PAGE_MAX if every else filters.PAGE_SIZE),
        filter=filters.order_filter(status, kind, created_from, until, amount, text),
    )
    found = ask(state_dir, lambda mesh: _read(mesh.history.SearchOrders, request, every))
    output.emit(form, found, _table(found.orders, users=True))
    if form is Format.TABLE:
        if not found.orders and not found.next_page_token:
            output.note("no such orders")
        _tell_origin(found.read_info, ())
    unknown = [] if found.read_info.HasField("as_of") else ["what the read model never had"]
    _end([*found.unreachable, *unknown], more=bool(found.next_page_token), every=every, form=form)


async def _read(call: Callable[..., Awaitable[Any]], request: Any, every: bool) -> Any:
    """One page; with `every` all of them in one answer, whose `read_info` is that of the first page, but for
    where the list ends.

    The first page is the newest in the list and the oldest that was read: what it says holds for the whole.
    """
    found = await call(request, timeout=TIMEOUT_S)
    while every and found.next_page_token and len(found.orders) < filters.LIST_MAX:
        request.page_token = found.next_page_token
        page = await call(request, timeout=TIMEOUT_S)
        found.orders.extend(page.orders)
        found.next_page_token = page.next_page_token
        if page.read_info.HasField("archived_before_time"):
            found.read_info.archived_before_time.CopyFrom(page.read_info.archived_before_time)
        found.unreachable.extend(store for store in page.unreachable if store not in found.unreachable)
    return found


def _end(left_out: Sequence[str], *, more: bool, every: bool, form: Format) -> None:
    """Say that the answer is not the whole one, and end with the exit code for that."""
    if more and not every and form is Format.TABLE:
        output.note("there are more; --all shows them")
    if more and every:
        output.note(f"incomplete: ended after {filters.LIST_MAX} orders")
    if left_out:
        output.note(f"incomplete: could not read {', '.join(left_out)}")
    if left_out or (more and every):
        raise typer.Exit(ExitCode.NO)


def _tell_origin(info: history.ReadInfo, unreachable: Sequence[str]) -> None:
    output.note(origin(info))
    if "read-model" in unreachable:
        output.note("the read model could not be relied on; the list is complete all the same")


def origin(info: history.ReadInfo) -> str:
    """Who served a page and how old it is, in one line."""
    told = [f"{history.ReadInfo.ServedBy.Name(info.served_by)} from {', '.join(info.sources) or 'nowhere'}"]
    if info.HasField("as_of"):
        told.append(f"as of {output.when(info.as_of)}")
    if info.read_model_asked:
        known = info.HasField("index_lag")
        lag = f"{output.how_long(info.index_lag)} behind" if known else "of unknown age"
        told.append(f"read model {lag}")
    if info.overlay_count:
        told.append(f"{info.overlay_count} overlaid")
    if info.HasField("archived_before_time"):
        told.append(
            f"archived before {info.archived_before_time.ToDatetime():%Y-%m-%d}; a statement has that"
        )
    return "; ".join(told)


def _table(orders: Sequence[Order], *, users: bool = False) -> Table:
    rows = [
        (
            each.order_id,
            *([each.user_id] if users else []),
            output.when(each.create_time),
            output.stage(each),
            each.kind,
            output.money(each.amount),
            str(each.version),
            output.cut(each.description, 40),
        )
        for each in orders
    ]
    names = ("order", *(["user"] if users else []), "created (UTC)", "stage", "kind", "amount", "version")
    return output.table(*names, "description", rows=rows)
