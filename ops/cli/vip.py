"""`ordermesh vip`: give a user a dedicated bucket and take it back, online; who has one, and why."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from ops.cli import output
from ops.cli.calls import TIMEOUT_S, ask
from ops.cli.edge import ExitCode
from ops.cli.options import Format, Output, RequestId, StateDir, Why
from ordermesh.routing.v1 import routing_service_pb2 as routing

if TYPE_CHECKING:
    from rich.table import Table

    from ops.mesh import Mesh

MOVE_S = 15.0
PAGE_MAX = 100
LIST_MAX = 1000
Move = routing.VipMove

app = typer.Typer(
    help="Dedicated buckets: promote, demote, list, show.",
    no_args_is_help=True,
    rich_markup_mode=None,
    add_completion=False,
)
User = Annotated[str, typer.Argument(metavar="USER", help="A user id.", show_default=False)]


@app.command()
def promote(
    user: User,
    reason: Why,
    request_id: RequestId,
    state_dir: StateDir,
    shard: Annotated[
        str, typer.Option("--shard", help="Where to; by default the shard of VIPs with the fewest.")
    ] = "",
    form: Output = Format.TABLE,
) -> None:
    """Give a user a dedicated bucket: new orders go there. Exit code 1 while the move is not over.

    \b
    Example:
      ordermesh vip promote alice --reason "a thousand orders an hour"
    """
    request = routing.PromoteVipRequest(user_id=user, request_id=str(request_id), reason=reason, shard=shard)

    async def work(mesh: Mesh) -> Move:
        return (await mesh.routing.PromoteVip(request, timeout=MOVE_S)).move

    _over(ask(state_dir, work), form)


@app.command()
def demote(
    user: User, reason: Why, request_id: RequestId, state_dir: StateDir, form: Output = Format.TABLE
) -> None:
    """Send a VIP user's new orders back to the hashed bucket. Exit code 1 while the move is not over.

    \b
    Example:
      ordermesh vip demote alice --reason "back to normal"
    """
    request = routing.DemoteVipRequest(user_id=user, request_id=str(request_id), reason=reason)

    async def work(mesh: Mesh) -> Move:
        return (await mesh.routing.DemoteVip(request, timeout=MOVE_S)).move

    _over(ask(state_dir, work), form)


@app.command("list")
def list_users(state_dir: StateDir, form: Output = Format.TABLE) -> None:
    """List the users who have a dedicated bucket.

    \b
    Example:
      ordermesh vip list
    """
    request = routing.ListVipUsersRequest(page_size=PAGE_MAX)

    async def work(mesh: Mesh) -> list[routing.VipUser]:
        users: list[routing.VipUser] = []
        while len(users) < LIST_MAX:
            page = await mesh.routing.ListVipUsers(request, timeout=TIMEOUT_S)
            users += page.vip_users
            request.page_token = page.next_page_token
            if not page.next_page_token:
                break
        return users

    users = ask(state_dir, work)
    rows = [
        (each.user_id, ", ".join(map(str, each.buckets)), each.shard, output.when(each.create_time))
        for each in users
    ]
    output.emit(form, users, output.table("user", "bucket", "shard", "since (UTC)", rows=rows))


@app.command()
def show(
    state_dir: StateDir,
    user: Annotated[str, typer.Argument(metavar="[USER]", help="Only this user.", show_default=False)] = "",
    form: Output = Format.TABLE,
) -> None:
    """Show the moves of a user, or of all: who asked for them, why, and how they went; the newest first.

    \b
    Example:
      ordermesh vip show alice
    """
    request = routing.ListVipMovesRequest(user_id=user, page_size=PAGE_MAX)

    async def work(mesh: Mesh) -> list[Move]:
        return list((await mesh.routing.ListVipMoves(request, timeout=TIMEOUT_S)).moves)

    moves = ask(state_dir, work)
    output.emit(form, moves, _table(moves))
    if form is Format.TABLE and not moves:
        output.note("nobody was moved" if not user else f"{user} was never moved")


def _over(move: Move, form: Format) -> None:
    output.emit(form, move, _table([move]))
    if move.phase != Move.DONE:
        output.note(f"not over yet; ask again with --request-id {move.move_id}")
        raise typer.Exit(ExitCode.NO)


def _table(moves: list[Move]) -> Table:
    rows = [
        (
            each.user_id,
            output.when(each.create_time),
            Move.Kind.Name(each.kind).lower(),
            f"{each.old_shard}/{each.old_bucket} -> {each.new_shard}/{each.new_bucket}",
            Move.Phase.Name(each.phase),
            f"{each.frozen_ms:.1f}" if each.HasField("frozen_ms") else "",
            str(each.copied_key_count),
            each.actor,
            output.cut(each.reason),
            output.cut(f"{each.attempt}: {each.failure}" if each.failure else ""),
        )
        for each in moves
    ]
    return output.table(
        *("user", "asked for (UTC)", "what", "from -> to", "phase", "frozen ms", "keys", "by", "reason"),
        "last failure",
        rows=rows,
    )
