"""`ordermesh index`: how the read model is; build its months again, compare and repair them."""

from __future__ import annotations

from datetime import timedelta
from typing import TYPE_CHECKING, Annotated
from uuid import UUID, uuid5

import typer

from ops import projection
from ops.cli import output
from ops.cli.bars import KINDS, bars, doing
from ops.cli.calls import TIMEOUT_S, ask
from ops.cli.edge import ExitCode
from ops.cli.options import Actor, Format, OneShard, Output, RequestId, StateDir, Why, duration, month
from ops.mesh import spoken_by
from ordermesh.history.v1 import projection_service_pb2 as pb

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from rich.table import Table

    from ops.mesh import Mesh

Operation = pb.Operation
_STATES = {number: name.lower() for name, number in Operation.State.items()}

app = typer.Typer(
    help="status, rebuild, verify, replay, reset, list, cancel.",
    no_args_is_help=True,
    rich_markup_mode=None,
    add_completion=False,
)


Months = Annotated[
    list[str],
    typer.Option("--month", parser=month, metavar="YYYY-MM", help="This month; may be given again."),
]
Wait = Annotated[
    timedelta,
    typer.Option(
        "--wait",
        parser=duration,
        metavar="DURATION",
        show_default="30m",
        help="How long to watch it; 0s to return at once. It goes on either way.",
    ),
]
HALF_AN_HOUR = timedelta(minutes=30)


@app.command()
def status(
    state_dir: StateDir,
    shard: OneShard = "",
    wait: Annotated[
        timedelta,
        typer.Option(
            parser=duration,
            metavar="DURATION",
            show_default="0s",
            help="Wait so long until every month is served from an index.",
        ),
    ] = timedelta(),
    form: Output = Format.TABLE,
) -> None:
    """Say which index serves which month, how late it is, and what is being done.

    An archived month is served by none. Exit code 1 when another is not served from an index, or
    a shard does not answer.

    \b
    Example:
      ordermesh index status --wait 1m
    """
    request = pb.GetProjectionStatusRequest(shard=shard)

    async def work(mesh: Mesh) -> pb.GetProjectionStatusResponse:
        if wait:
            with bars(form) as tell:
                await projection.until_served(mesh, wait_s=wait.total_seconds(), tell=tell, shard=shard)
        return await mesh.projection.GetProjectionStatus(request, timeout=TIMEOUT_S)

    answer = ask(state_dir, work)
    rows = [row for part in answer.shards for row in _months(part)]
    columns = ("shard", "month", "served by", "also written", "behind", "quarantined", "now")
    output.emit(form, answer, output.table(*columns, rows=rows))
    for name in answer.unreachable:
        output.note(f"{name} does not answer")
    if answer.unreachable or any(not row[2] for row in rows):
        raise typer.Exit(ExitCode.NO)


@app.command()
def rebuild(
    reason: Why,
    actor: Actor,
    request_id: RequestId,
    state_dir: StateDir,
    months: Months,
    shard: OneShard = "",
    wait: Wait = HALF_AN_HOUR,
    form: Output = Format.TABLE,
) -> None:
    """Build a month again in a new index, while the old one serves; then let the new one serve.

    Exit code 1 when it failed, or is not over.

    \b
    Example:
      ordermesh index rebuild --month 2026-09 --reason "another mapping"
    """
    asked = _StartAll(Operation.REBUILD, shard, reason, request_id, actor)
    _carried_out(state_dir, asked, months, wait, form)


@app.command()
def verify(
    actor: Actor,
    request_id: RequestId,
    state_dir: StateDir,
    months: Annotated[
        list[str],
        typer.Option("--month", parser=month, metavar="YYYY-MM", help="Only this month; may be given again."),
    ] = [],  # noqa: B006 - typer copies it
    repair: Annotated[
        bool, typer.Option("--repair", help="Write again what is wrong; build again what that cannot help.")
    ] = False,
    reason: Annotated[str, typer.Option("--reason", help="Why; kept with it.")] = "asked for by hand",
    shard: OneShard = "",
    wait: Wait = HALF_AN_HOUR,
    form: Output = Format.TABLE,
) -> None:
    """Compare each month's index with the shards, day by day.

    Exit code 1 when anything differs that was not repaired, when it failed, or is not over.

    \b
    Example:
      ordermesh index verify --month 2026-09 --repair
    """
    asked = _StartAll(Operation.VERIFY, shard, reason, request_id, actor, repairs=repair)
    _carried_out(state_dir, asked, months or None, wait, form)


@app.command()
def replay(
    reason: Why,
    actor: Actor,
    request_id: RequestId,
    state_dir: StateDir,
    shard: OneShard = "",
    wait: Wait = HALF_AN_HOUR,
    form: Output = Format.TABLE,
) -> None:
    """Write the orders in quarantine once more, as they are now; those that are taken leave it.

    Exit code 1 when some stay, when it failed, or is not over.

    \b
    Example:
      ordermesh index replay --reason "the mapping is right again"
    """
    asked = _StartAll(Operation.RETRY, shard, reason, request_id, actor)
    _carried_out(state_dir, asked, [""], wait, form)


@app.command()
def reset(
    reason: Why,
    actor: Actor,
    request_id: RequestId,
    state_dir: StateDir,
    shard: OneShard = "",
    wait: Wait = HALF_AN_HOUR,
    yes: Annotated[
        bool, typer.Option("--yes", help="Do not ask. Lists come from the shards until it is over.")
    ] = False,
    form: Output = Format.TABLE,
) -> None:
    """Trust nothing that the read model has: build every month again from the shards.

    For a read model that was restored from a backup, and whatever else left it in doubt. Exit code 1 while a
    month is not served from an index.

    \b
    Example:
      ordermesh index reset --reason "restored from last night" --yes
    """
    if not yes and not typer.confirm(
        "Every month is built again; lists come from the shards meanwhile. Go on?"
    ):
        raise typer.Exit(ExitCode.NO)
    asked = _StartAll(Operation.RESET, shard, reason, request_id, actor)

    async def work(mesh: Mesh) -> tuple[list[Operation], bool]:
        begun = await projection.started(mesh, asked.requests([""]), spoken_by(actor))
        with bars(form) as tell:
            ended = await projection.followed(mesh, begun, wait_s=wait.total_seconds(), tell=tell)
            is_served = await projection.until_served(
                mesh, wait_s=wait.total_seconds(), tell=tell, shard=shard
            )
        return ended, is_served

    ended, is_served = ask(state_dir, work)
    output.emit(form, ended, _table(ended))
    if not is_served or not all(_is_well(each) for each in ended):
        raise typer.Exit(ExitCode.NO)


@app.command("list")
def list_operations(
    state_dir: StateDir,
    shard: OneShard = "",
    limit: Annotated[int, typer.Option(min=1, max=100, help="At most so many of each shard.")] = 20,
    form: Output = Format.TABLE,
) -> None:
    """List what is and was done to the read model, those that are open first.

    \b
    Example:
      ordermesh index list
    """
    request = pb.ListOperationsRequest(shard=shard, page_size=limit)

    async def work(mesh: Mesh) -> pb.ListOperationsResponse:
        return await mesh.projection.ListOperations(request, timeout=TIMEOUT_S)

    answer = ask(state_dir, work)
    output.emit(form, list(answer.operations), _table(answer.operations))
    for name in answer.unreachable:
        output.note(f"{name} does not answer")
    if answer.unreachable:
        raise typer.Exit(ExitCode.NO)


@app.command()
def cancel(
    operation: Annotated[UUID, typer.Argument(metavar="OPERATION", help="Its id.", show_default=False)],
    shard: Annotated[str, typer.Option("--shard", help="On which shard.")],
    reason: Why,
    actor: Actor,
    state_dir: StateDir,
    form: Output = Format.TABLE,
) -> None:
    """End an operation where it stands. What serves goes on serving.

    \b
    Example:
      ordermesh index cancel 0b3f... --shard s1 --reason "the shard needs its disk"
    """
    request = pb.CancelOperationRequest(shard=shard, operation_id=str(operation), reason=reason)

    async def work(mesh: Mesh) -> Operation:
        answer = await mesh.projection.CancelOperation(request, timeout=TIMEOUT_S, metadata=spoken_by(actor))
        return answer.operation

    ended = ask(state_dir, work)
    output.emit(form, ended, _table([ended]))


class _StartAll:
    """Requests for the same operation on several months; each has an id made of the one that was given."""

    def __init__(
        self,
        kind: Operation.Kind.ValueType,
        shard: str,
        reason: str,
        request_id: UUID,
        actor: str,
        *,
        repairs: bool = False,
    ) -> None:
        self.actor = actor
        self._request_id = request_id
        self._request = pb.StartOperationRequest(kind=kind, shard=shard, repairs=repairs, reason=reason)

    def requests(self, months: Sequence[str]) -> list[pb.StartOperationRequest]:
        """One for each month; an empty one concerns all of a shard."""
        made = []
        for each in months:
            request = pb.StartOperationRequest(request_id=str(uuid5(self._request_id, each)), month=each)
            request.MergeFrom(self._request)
            made.append(request)
        return made


def _carried_out(
    state_dir: StateDir, asked: _StartAll, months: Sequence[str] | None, wait: timedelta, form: Format
) -> None:
    """Start it, watch it, and show how it ended. months: None for all that lists show."""

    async def work(mesh: Mesh) -> list[Operation]:
        these = months if months is not None else await _all_months(mesh)
        begun = await projection.started(mesh, asked.requests(these), spoken_by(asked.actor))
        with bars(form) as tell:
            return await projection.followed(mesh, begun, wait_s=wait.total_seconds(), tell=tell)

    ended = ask(state_dir, work)
    output.emit(form, ended, _table(ended))
    if not all(_is_well(each) for each in ended):
        raise typer.Exit(ExitCode.NO)


async def _all_months(mesh: Mesh) -> list[str]:
    answer = await mesh.projection.GetProjectionStatus(pb.GetProjectionStatusRequest(), timeout=TIMEOUT_S)
    return sorted({name for part in answer.shards for name in projection.shown_months(part)}, reverse=True)


def _is_well(operation: Operation) -> bool:
    """Whether it was carried out and left nothing wrong."""
    found = operation.findings
    if operation.state != Operation.SUCCEEDED:
        return False
    if operation.kind == Operation.RETRY:
        return found.refused_count == 0
    if operation.kind == Operation.VERIFY and not operation.repairs:
        return not (found.missing_count or found.stale_count or found.ahead_count or found.extra_count)
    if operation.kind == Operation.VERIFY:
        return found.repaired_count + found.refused_count >= found.missing_count + found.stale_count
    return True


def _months(part: pb.GetProjectionStatusResponse.ShardPart) -> Iterator[tuple[str, ...]]:
    """One row for each month of a shard, the newest first."""
    behind = output.how_long(part.lag) if part.HasField("lag") else "unknown"
    by_month: dict[str, list[pb.GetProjectionStatusResponse.Index]] = {}
    for index in part.indices:
        by_month.setdefault(index.month, []).append(index)
    operations = {each.month: each for each in reversed(part.operations)}
    for name in sorted(by_month, reverse=True):
        ordered = sorted(by_month[name], key=lambda index: -index.generation)
        serving = next((index for index in ordered if index.state == "SERVING"), None)
        others = [index.name for index in ordered if index is not serving and index.state != "RETIRED"]
        now = operations.get(name)
        yield (
            part.shard,
            name,
            "archived" if projection.is_archived(part, name) else serving.name if serving else "",
            ", ".join(others),
            behind,
            str(part.quarantined_count),
            doing(now) if now else "",
        )
    for each in part.operations:
        if not each.month:
            yield (part.shard, "all", "-", "", behind, str(part.quarantined_count), doing(each))


def _table(operations: Sequence[Operation]) -> Table:
    rows = [
        (
            each.shard,
            KINDS[each.kind],
            each.month,
            _STATES[each.state],
            each.index,
            str(each.order_count),
            _found(each.findings),
            output.cut(each.note),
            each.actor,
            output.when(each.create_time),
            each.operation_id,
        )
        for each in operations
    ]
    columns = (
        "shard",
        "what",
        "month",
        "state",
        "index",
        "orders",
        "found",
        "note",
        "by",
        "since (UTC)",
        "id",
    )
    return output.table(*columns, rows=rows)


def _found(findings: Operation.Findings) -> str:
    counts = {field.name.removesuffix("_count"): value for field, value in findings.ListFields() if value}
    return ", ".join(f"{count} {how}" for how, count in counts.items())
