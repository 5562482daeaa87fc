"""`ordermesh archive`: take old months out of the shards, and bring them back."""

from __future__ import annotations

from contextlib import contextmanager
from datetime import timedelta
from typing import TYPE_CHECKING, Annotated
from uuid import UUID, uuid5

import typer

from ops import archive
from ops.cli import output
from ops.cli.calls import TIMEOUT_S, ask
from ops.cli.edge import ExitCode
from ops.cli.options import Actor, Format, OneShard, Output, RequestId, StateDir, Why, duration, month
from ops.cli.progress import counted
from ops.mesh import spoken_by
from ordermesh.archive.v1 import archive_service_pb2 as pb

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from rich.table import Table

    from ops.mesh import Mesh

Month = pb.Month
HALF_AN_HOUR = timedelta(minutes=30)
REBUILD_S_MAX = 120.0
_STATES = {number: name.lower() for name, number in Month.State.items()}

app = typer.Typer(
    help="plan, run, status, verify, restore, erase, amend, sweep, hold, rebuild-catalog, halt and more.",
    no_args_is_help=True,
    rich_markup_mode=None,
    add_completion=False,
)

TheMonth = Annotated[str, typer.Option("--month", parser=month, metavar="YYYY-MM", help="Which month.")]
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


@app.command()
def status(state_dir: StateDir, shard: OneShard = "", form: Output = Format.TABLE) -> None:
    """Say where the months stand that leave their shards, or left them.

    Exit code 1 when one waits for a person, or a shard does not answer.

    \b
    Example:
      ordermesh archive status
    """
    answer = ask(state_dir, lambda mesh: archive.listed(mesh, shard))
    months = [each for part in answer.shards for each in part.months if each.state != Month.HOT]
    output.emit(form, answer, _table(months))
    for part in answer.shards:
        if part.halted:
            output.note(f"shards/{part.shard} is halted by {part.actor}: {part.reason}")
        if part.sweep_refusal:
            output.note(f"shards/{part.shard} was not swept: {part.sweep_refusal}")
        elif part.stray_count:
            output.note(
                f"shards/{part.shard} has {part.stray_count:,} strays in S3, {output.mib(part.stray_bytes)}; "
                "`ordermesh archive sweep` names them"
            )
    for name in answer.unreachable:
        output.note(f"{name} does not answer")
    if answer.unreachable or any(each.quarantined for each in months):
        raise typer.Exit(ExitCode.NO)


@app.command()
def plan(state_dir: StateDir, shard: OneShard = "", form: Output = Format.TABLE) -> None:
    """Say which months are in the shards, what they take up, and what keeps each from leaving.

    Changes nothing.

    \b
    Example:
      ordermesh archive plan
    """
    answer = ask(state_dir, lambda mesh: archive.listed(mesh, shard))
    there = [each for part in answer.shards for each in part.months if each.table_bytes]
    columns = (
        "shard",
        "month",
        "orders",
        "in the shard",
        "in S3",
        "parts",
        "S3 a month",
        "saves a month",
        "what keeps it",
    )
    part_bytes = {part.shard: part.part_bytes for part in answer.shards}
    rows = [
        (
            each.shard,
            each.month,
            archive.orders_told(each),
            output.mib(each.table_bytes),
            f"~{output.mib(archive.stored_estimate(each))}",
            str(each.part_count or f"~{archive.parts_estimate(each, part_bytes[each.shard])}"),
            f"~{archive.stored_usd(each):.2f} USD",
            f"~{archive.saved_usd(each):.2f} USD",
            ", ".join(each.blockers) or ("" if each.state in archive.READY else _STATES[each.state]),
        )
        for each in there
    ]
    output.emit(form, answer, output.table(*columns, rows=rows))
    for name in answer.unreachable:
        output.note(f"{name} does not answer")
    if answer.unreachable:
        raise typer.Exit(ExitCode.NO)


@app.command()
def run(
    reason: Why,
    actor: Actor,
    request_id: RequestId,
    state_dir: StateDir,
    months: Annotated[
        list[str],
        typer.Option("--month", parser=month, metavar="YYYY-MM", help="This month; may be given again."),
    ] = [],  # noqa: B006 - typer copies it
    oldest: Annotated[int, typer.Option(min=1, max=120, help="So many of the oldest, of each shard.")] = 1,
    reach: Annotated[
        str, typer.Option(help="How far: verified, committed, grace or dropped.", metavar="STATE")
    ] = "dropped",
    shard: OneShard = "",
    execute: Annotated[
        bool, typer.Option("--execute", help="Do it; without it, only what would be done is said.")
    ] = False,
    wait: Wait = HALF_AN_HOUR,
    form: Output = Format.TABLE,
) -> None:
    """Take months out of the shards: copied, read back, compared, and only then given up.

    Exit code 1 when one waits for a person, is not there in time, or is in no shard, and when a shard does
    not answer; without --execute also when something keeps one of them.

    \b
    Example:
      ordermesh archive run --oldest 6 --reason "it is time" --execute
    """
    goal = _reach(reach, Month.VERIFIED, Month.COMMITTED, Month.GRACE, Month.DROPPED)
    answer = ask(state_dir, lambda mesh: archive.listed(mesh, shard))
    for name in answer.unreachable:
        output.note(f"{name} does not answer; nothing was done, and --shard names one that does")
    if unknown := archive.not_there(answer, months):
        output.note(f"no shard that answers has {', '.join(unknown)}; nothing was done")
    if answer.unreachable or unknown:
        raise typer.Exit(ExitCode.NO)
    chosen = [each for part in answer.shards for each in _chosen(part, months, oldest, goal)]
    if not chosen:
        output.note("no month can leave now; `ordermesh archive plan` says why")
        raise typer.Exit(ExitCode.NO)
    if not execute:
        _foreseen(answer, chosen, goal, form)
        return
    _moved(state_dir, chosen, goal, reason, actor, request_id, wait, form)


@app.command()
def verify(
    the_month: TheMonth,
    state_dir: StateDir,
    shard: OneShard = "",
    wait: Wait = HALF_AN_HOUR,
    form: Output = Format.TABLE,
) -> None:
    """Read every segment of an archived month back once more, and compare it.

    A month that waits for a person is let go when all of it is whole. Exit code 1 when a segment is damaged,
    or not all were read in time.

    \b
    Example:
      ordermesh archive verify --month 2023-08
    """
    request = pb.VerifyMonthRequest(shard=shard, month=the_month)

    async def work(mesh: Mesh) -> list[Month]:
        answer = await mesh.archive.VerifyMonth(request, timeout=TIMEOUT_S)
        with _bars(form) as tell:
            return await archive.followed(
                mesh, answer.months, wait_s=wait.total_seconds(), tell=tell, is_over=archive.is_read
            )

    months = ask(state_dir, work)
    _shown(months, form)
    if any(each.quarantined for each in months) or (wait and not all(map(archive.is_read, months))):
        raise typer.Exit(ExitCode.NO)


@app.command()
def thaw(
    the_month: TheMonth,
    reason: Why,
    actor: Actor,
    request_id: RequestId,
    state_dir: StateDir,
    shard: OneShard = "",
    wait: Wait = HALF_AN_HOUR,
    form: Output = Format.TABLE,
) -> None:
    """Let a month stay that readers still read from its tables.

    \b
    Example:
      ordermesh archive thaw --month 2023-08 --reason "not yet"
    """
    asked = [Month(shard=shard, month=the_month)]
    _moved(state_dir, asked, Month.THAWED, reason, actor, request_id, wait, form)


@app.command()
def restore(
    the_month: TheMonth,
    reason: Why,
    actor: Actor,
    request_id: RequestId,
    state_dir: StateDir,
    shard: OneShard = "",
    wait: Wait = HALF_AN_HOUR,
    form: Output = Format.TABLE,
) -> None:
    """Bring a month back into its tables, from wherever it stands; readers read these then.

    The youngest first, as lists end where the archive begins; while it is back, no younger one leaves.

    \b
    Example:
      ordermesh archive restore --month 2023-08 --reason "a court wants it"
    """
    asked = [Month(shard=shard, month=the_month)]
    _moved(state_dir, asked, Month.RESTORED, reason, actor, request_id, wait, form)


@app.command()
def amend(
    order: Annotated[str, typer.Argument(metavar="ORDER", help="The order's id.")],
    user: Annotated[str, typer.Option("--user", help="Whose order it is.")],
    note: Annotated[str, typer.Option("--note", help="What the user is told.")],
    reason: Why,
    actor: Actor,
    request_id: RequestId,
    state_dir: StateDir,
    succeeded: Annotated[
        bool, typer.Option("--succeeded", help="It succeeded although it says FAILED; needs --reference.")
    ] = False,
    reference: Annotated[
        str | None, typer.Option("--reference", help="By which the upstream knows the order.")
    ] = None,
    description: Annotated[str | None, typer.Option("--description", help="What it was for.")] = None,
    form: Output = Format.TABLE,
) -> None:
    """Note what was found out about an archived order; statements show it. Its segment stays as it is.

    \b
    Example:
      ordermesh archive amend ORDER_ID --user alice --note "paid by hand" --reason "case 7"
    """
    request = pb.AmendOrderRequest(
        request_id=str(request_id),
        user_id=user,
        order_id=order,
        note=note,
        reason=reason,
        succeeded=succeeded,
        upstream_ref=reference,
        description=description,
    )
    answer = ask(
        state_dir,
        lambda mesh: mesh.archive.AmendOrder(request, timeout=TIMEOUT_S, metadata=spoken_by(actor)),
    )
    rows = [(answer.shard, order, answer.status, str(answer.amendment_count))]
    output.emit(form, answer, output.table("shard", "order", "status", "amendments", rows=rows))


@app.command("rebuild-catalog")
def rebuild_catalog(
    the_shard: Annotated[str, typer.Option("--shard", help="Which shard.")],
    reason: Why,
    actor: Actor,
    state_dir: StateDir,
    replace: Annotated[
        bool, typer.Option("--replace", help="Also what shows objects that are gone.")
    ] = False,
    form: Output = Format.TABLE,
) -> None:
    """Make a shard's lost catalog again of the manifests in S3; what it has stays as it is.

    A month of which the catalog shows objects that are gone is made again of a newer manifest with --replace.
    Exit code 1 when a month that the shard does not have could not be made again, or one is to be replaced.

    \b
    Example:
      ordermesh archive rebuild-catalog --shard s1 --reason "the database was restored from last night"
    """
    request = pb.RebuildCatalogRequest(shard=the_shard, reason=reason, replace=replace)

    async def work(mesh: Mesh) -> pb.RebuildCatalogResponse:
        with counted(form) as tell:
            tell(f"{the_shard}: manifests and amendments are read", 0, None)
            return await mesh.archive.RebuildCatalog(
                request, timeout=REBUILD_S_MAX, metadata=spoken_by(actor)
            )

    answer = ask(state_dir, work)
    rows = [(each.month, each.reason or "made again") for each in answer.months]
    output.emit(form, answer, output.table("month", "what became of it", rows=rows))
    output.note(f"{answer.amendment_count:,} amendments were noted again")
    for key in answer.unreadable_amendments:
        output.note(f"{key} cannot be read")
    replaceable = [each.month for each in answer.months if each.replaceable]
    if replaceable:
        output.note(f"nothing was done to {', '.join(replaceable)}; with --replace the newer manifest counts")
    is_bad = any(each.reason.startswith("_manifest/") for each in answer.months)
    if answer.unreadable_amendments or replaceable or is_bad:
        raise typer.Exit(ExitCode.NO)


@app.command()
def halt(
    reason: Why, actor: Actor, state_dir: StateDir, shard: OneShard = "", form: Output = Format.TABLE
) -> None:
    """Stop every change of a table at once; what only copies or compares goes on.

    \b
    Example:
      ordermesh archive halt --reason "a migration is under way"
    """
    _halted(state_dir, True, shard, reason, actor, form)


@app.command()
def resume(
    reason: Why, actor: Actor, state_dir: StateDir, shard: OneShard = "", form: Output = Format.TABLE
) -> None:
    """Let tables be changed again.

    \b
    Example:
      ordermesh archive resume --reason "the migration is over"
    """
    _halted(state_dir, False, shard, reason, actor, form)


def _chosen(
    part: pb.ListMonthsResponse.Shard, months: Sequence[str], oldest: int, goal: Month.State.ValueType
) -> list[Month]:
    if months:
        over = {Month.DROPPED, *archive.BEYOND.get(goal, ())}
        return [each for each in part.months if each.month in months and each.state not in over]
    return archive.ready(part)[:oldest]


def _foreseen(
    answer: pb.ListMonthsResponse,
    chosen: Sequence[Month],
    goal: Month.State.ValueType,
    form: Format,
) -> None:
    """Say what `run` would do, and what keeps it from that."""
    output.emit(form, chosen, _table(chosen))
    waiting = 0
    for part in answer.shards:
        own = [each for each in chosen if each.shard == part.shard]
        for name, why in archive.kept(part, own, goal).items():
            waiting += 1
            output.note(f"{part.shard} {name} would wait: {', '.join(why)}")
    going = f"{len(chosen) - waiting} of these {len(chosen)} would go as far as {_STATES[goal]} now"
    output.note(f"nothing was done; with --execute {going}")
    if waiting:
        raise typer.Exit(ExitCode.NO)


def _reach(text: str, *allowed: Month.State.ValueType) -> Month.State.ValueType:
    for number in allowed:
        if _STATES[number] == text.lower():
            return number
    raise typer.BadParameter(f"{text!r} is none of {', '.join(_STATES[each] for each in allowed)}")


def _moved(
    state_dir: StateDir,
    chosen: Sequence[Month],
    goal: Month.State.ValueType,
    reason: str,
    actor: str,
    request_id: UUID,
    wait: timedelta,
    form: Format,
) -> None:
    """Ask for months to be somewhere, and watch them until they are."""

    async def work(mesh: Mesh) -> list[Month]:
        begun: list[Month] = []
        for each in chosen:
            request = pb.MoveMonthRequest(
                request_id=str(uuid5(request_id, each.month)),
                shard=each.shard,
                month=each.month,
                reach=goal,
                reason=reason,
            )
            answer = await mesh.archive.MoveMonth(request, timeout=TIMEOUT_S, metadata=spoken_by(actor))
            begun += answer.months
        with _bars(form) as tell:
            return await archive.followed(mesh, begun, wait_s=wait.total_seconds(), tell=tell)

    months = ask(state_dir, work)
    _shown(months, form)
    if any(each.quarantined for each in months) or (
        wait and any(each.state != each.reach for each in months)
    ):
        raise typer.Exit(ExitCode.NO)


def _shown(months: Sequence[Month], form: Format) -> None:
    output.emit(form, months, _table(months))
    for each in months:
        if each.quarantined:
            output.note(f"{each.shard} {each.month} waits for a person: {each.quarantined}")


def _halted(state_dir: StateDir, is_halted: bool, shard: str, reason: str, actor: str, form: Format) -> None:
    request = pb.HaltArchiveRequest(shard=shard, halted=is_halted, reason=reason)

    async def work(mesh: Mesh) -> pb.ListMonthsResponse:
        await mesh.archive.HaltArchive(request, timeout=TIMEOUT_S, metadata=spoken_by(actor))
        return await archive.listed(mesh, shard)

    answer = ask(state_dir, work)
    rows = [(each.shard, "yes" if each.halted else "no", each.actor, each.reason) for each in answer.shards]
    output.emit(form, answer, output.table("shard", "halted", "by", "reason", rows=rows))


@contextmanager
def _bars(form: Format) -> Iterator[archive.Tell]:
    """A bar on the terminal for each month that is on its way."""
    with counted(form) as show:

        def tell(months: Sequence[Month]) -> None:
            for each in months:
                # Every segment is stored, then read back; or copied back.
                back = each.state == Month.RESTORING
                show(
                    f"{each.shard} {each.month} {_STATES[each.state]}",
                    each.restored_count if back else each.stored_count + each.verified_count,
                    (2 if back else 4) * each.part_count or None,
                    key=f"{each.shard} {each.month}",
                )

        yield tell


def _table(months: Sequence[Month]) -> Table:
    columns = (
        "shard",
        "month",
        "state",
        "reach",
        "orders",
        "in the shard",
        "in S3",
        "segments",
        "why it waits",
    )
    return output.table(
        *columns,
        rows=[
            (
                each.shard,
                each.month,
                _STATES[each.state],
                _STATES[each.reach] if each.reach else "",
                archive.orders_told(each),
                output.mib(each.table_bytes) if each.table_bytes else "",
                _stored(each),
                f"{each.verified_count}/{each.stored_count}/{2 * each.part_count}" if each.part_count else "",
                each.quarantined or each.legal_hold or each.note,
            )
            for each in months
        ],
    )


def _stored(each: Month) -> str:
    if not each.stored_bytes:
        return ""
    lock = f", locked until {each.lock_time.ToDatetime():%Y-%m-%d}" if each.HasField("lock_time") else ""
    return output.mib(each.stored_bytes) + lock
