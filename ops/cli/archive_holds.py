"""`ordermesh archive hold|lift|holds`: keep users and months from being deleted."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from ops.cli import output
from ops.cli.archive import app
from ops.cli.calls import TIMEOUT_S, ask
from ops.cli.edge import ExitCode
from ops.cli.options import Actor, Format, OneShard, Output, StateDir, Why, month
from ops.mesh import spoken_by
from ordermesh.archive.v1 import archive_service_pb2 as pb

if TYPE_CHECKING:
    from collections.abc import Sequence

    from rich.table import Table

__all__ = ("app",)
"""With these commands among the others."""
OneUser = Annotated[str, typer.Option("--user", help="Who; or a month.")]
OneMonth = Annotated[
    str | None, typer.Option("--month", parser=month, metavar="YYYY-MM", help="Which month.")
]


@app.command()
def hold(
    reason: Why,
    actor: Actor,
    state_dir: StateDir,
    user: OneUser = "",
    the_month: OneMonth = None,
    shard: OneShard = "",
    form: Output = Format.TABLE,
) -> None:
    """Keep a user from being erased, or a month from being given up, until `lift` says otherwise.

    \b
    Example:
      ordermesh archive hold --user alice --reason "court order 12/2026"
    """
    request = pb.PutLegalHoldRequest(shard=shard, user_id=user, month=the_month or "", reason=reason)
    answer = ask(
        state_dir,
        lambda mesh: mesh.archive.PutLegalHold(request, timeout=TIMEOUT_S, metadata=spoken_by(actor)),
    )
    output.emit(form, answer, _table(answer.holds))


@app.command()
def lift(
    reason: Why,
    actor: Actor,
    state_dir: StateDir,
    user: OneUser = "",
    the_month: OneMonth = None,
    shard: OneShard = "",
    form: Output = Format.TABLE,
) -> None:
    """Let a user or a month go again; who kept it, and why, stays noted.

    Exit code 1 when nothing kept it.

    \b
    Example:
      ordermesh archive lift --user alice --reason "the case is closed"
    """
    request = pb.LiftLegalHoldRequest(shard=shard, user_id=user, month=the_month or "", reason=reason)
    answer = ask(
        state_dir,
        lambda mesh: mesh.archive.LiftLegalHold(request, timeout=TIMEOUT_S, metadata=spoken_by(actor)),
    )
    output.emit(form, answer, _table(answer.holds))
    if not answer.holds:
        raise typer.Exit(ExitCode.NO)


@app.command()
def holds(state_dir: StateDir, shard: OneShard = "", form: Output = Format.TABLE) -> None:
    """Say who and which months are kept, and which were.

    \b
    Example:
      ordermesh archive holds
    """
    request = pb.ListLegalHoldsRequest(shard=shard)
    answer = ask(state_dir, lambda mesh: mesh.archive.ListLegalHolds(request, timeout=TIMEOUT_S))
    output.emit(form, answer, _table(answer.holds))


def _table(found: Sequence[pb.LegalHold]) -> Table:
    columns = ("shard", "what", "since", "by", "reason", "lifted", "by", "reason")
    rows = [
        (
            each.shard,
            each.user_id or each.month,
            output.when(each.create_time),
            each.actor,
            each.reason,
            output.when(each.lift_time) if each.HasField("lift_time") else "",
            each.lift_actor,
            each.lift_reason,
        )
        for each in found
    ]
    return output.table(*columns, rows=rows)
