"""`ordermesh archive erase|sweep`: delete what nobody may have or needs, and only with `--execute`."""

from __future__ import annotations

from contextlib import suppress
from typing import TYPE_CHECKING, Annotated

import typer

from ops import archive
from ops.cli import output
from ops.cli.archive import HALF_AN_HOUR, Wait
from ops.cli.archive_holds import app
from ops.cli.calls import TIMEOUT_S, ask
from ops.cli.edge import ExitCode
from ops.cli.options import Actor, Format, OneShard, Output, RequestId, StateDir, Why
from ops.cli.progress import counted
from ops.mesh import CallFailed, spoken_by
from ordermesh.archive.v1 import archive_service_pb2 as pb

if TYPE_CHECKING:
    from ops.mesh import Mesh


@app.command()
def erase(
    user: Annotated[str, typer.Option("--user", help="Whose rows.")],
    reason: Why,
    actor: Actor,
    request_id: RequestId,
    state_dir: StateDir,
    shard: OneShard = "",
    execute: Annotated[
        bool,
        typer.Option(
            "--execute",
            "--yes",
            help="Do it; without it, only what would go is said. Nothing brings it back.",
        ),
    ] = False,
    wait: Wait = HALF_AN_HOUR,
    form: Output = Format.TABLE,
) -> None:
    """Take a user's rows out of the archive for good; what is in the shards' tables stays.

    Exit code 1 when not all are gone in time; it goes on by itself, and the same --request-id says how far.

    \b
    Example:
      ordermesh archive erase --user seed.1.7 --reason "the user asked for it" --execute
    """
    request = pb.EraseUserRequest(request_id=str(request_id), user_id=user, shard=shard, reason=reason)
    foresight = pb.EraseUserRequest(validate_only=True)
    foresight.MergeFrom(request)
    if not execute:
        _would_go(ask(state_dir, lambda mesh: _foreseen(mesh, foresight, actor)), user, form)
        return

    async def work(mesh: Mesh) -> pb.EraseUserResponse:
        orders: dict[str, int] = {}
        # Only for the bar: what cannot be foreseen now can be asked for all the same.
        with suppress(CallFailed):
            before = await _foreseen(mesh, foresight, actor)
            orders = {part.shard: sum(each.order_count for each in part.months) for part in before.shards}
        of_all: dict[str, int] = {}
        with counted(form) as show:

            def tell(answer: pb.EraseUserResponse) -> None:
                for each in answer.shards:
                    there = of_all.setdefault(each.shard, each.order_count + orders.get(each.shard, 0))
                    total = max(there, each.order_count)
                    show(f"{each.shard} orders of {user}", each.order_count, total, key=each.shard)

            return await archive.ended(
                mesh.archive.EraseUser, request, spoken_by(actor), wait_s=wait.total_seconds(), tell=tell
            )

    answer = ask(state_dir, work)
    rows = [
        (each.shard, f"{each.order_count:,}", "yes" if each.HasField("end_time") else "no", each.note)
        for each in answer.shards
    ]
    output.emit(form, answer, output.table("shard", "orders", "all gone", "what it waits for", rows=rows))
    if wait and not all(each.HasField("end_time") for each in answer.shards):
        raise typer.Exit(ExitCode.NO)


@app.command()
def sweep(
    reason: Why,
    actor: Actor,
    request_id: RequestId,
    state_dir: StateDir,
    shard: OneShard = "",
    execute: Annotated[
        bool, typer.Option("--execute", help="Delete them; without it, they are only named.")
    ] = False,
    wait: Wait = HALF_AN_HOUR,
    form: Output = Format.TABLE,
) -> None:
    """Look for objects in S3 that nothing needs any more, and delete them with --execute.

    Exit code 1 when a shard's catalog knows less than S3 does, or not all was looked at in time.

    \b
    Example:
      ordermesh archive sweep --reason "what do killed tries cost us?"
    """
    request = pb.SweepStraysRequest(request_id=str(request_id), shard=shard, delete=execute, reason=reason)

    async def work(mesh: Mesh) -> pb.SweepStraysResponse:
        with counted(form) as show:

            def tell(answer: pb.SweepStraysResponse) -> None:
                for each in answer.shards:
                    seen, over = each.object_count, each.HasField("end_time")
                    show(f"{each.shard} objects looked at", seen, seen if over else None, key=each.shard)

            return await archive.ended(
                mesh.archive.SweepStrays, request, spoken_by(actor), wait_s=wait.total_seconds(), tell=tell
            )

    answer = ask(state_dir, work)
    rows = [
        (
            part.shard,
            each.kind.lower(),
            each.key,
            output.mib(each.size_bytes),
            output.when(each.store_time),
            "yes" if each.HasField("delete_time") else "no",
        )
        for part in answer.shards
        for each in part.strays
    ]
    output.emit(form, answer, output.table("shard", "what", "key", "size", "since", "deleted", rows=rows))
    for part in answer.shards:
        said = part.refusal or (
            f"{part.object_count:,} objects were looked at, {part.deleted_count:,} strays deleted"
        )
        output.note(f"shards/{part.shard}: {said}")
    if any(each.refusal for each in answer.shards) or (
        wait and not all(each.HasField("end_time") for each in answer.shards)
    ):
        raise typer.Exit(ExitCode.NO)


async def _foreseen(mesh: Mesh, request: pb.EraseUserRequest, actor: str) -> pb.EraseUserResponse:
    return await mesh.archive.EraseUser(request, timeout=TIMEOUT_S, metadata=spoken_by(actor))


def _would_go(answer: pb.EraseUserResponse, user: str, form: Format) -> None:
    rows = [
        (part.shard, each.month, f"{each.order_count:,}", f"{each.object_count:,}", each.note)
        for part in answer.shards
        for each in part.months
    ]
    columns = ("shard", "month", "orders", "objects", "what it waits for, or leaves")
    output.emit(form, answer, output.table(*columns, rows=rows))
    orders = sum(each.order_count for part in answer.shards for each in part.months)
    would = f"these {orders:,} orders of {user} would go from the archive for good"
    output.note(f"nothing was erased; with --execute {would}")
