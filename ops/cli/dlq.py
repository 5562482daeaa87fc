"""`ordermesh dlq`: the cases of parked orders, and the two ways to close one."""

from __future__ import annotations

import asyncio
from enum import StrEnum
from typing import TYPE_CHECKING, Annotated

import grpc
import typer

from ops.cli import output
from ops.cli.calls import TIMEOUT_S, ask, shards_of
from ops.cli.edge import ExitCode
from ops.cli.options import Actor, Format, OneShard, OrderId, Output, RequestId, StateDir, Why
from ops.mesh import spoken_by
from ordermesh.order.v1 import order_service_pb2 as orders
from ordermesh.order.v1.order_pb2 import DeadLetter, Order

if TYPE_CHECKING:
    from rich.table import Table

    from ops.mesh import Mesh

PAGE_MAX = 100
LIST_MAX = 10_000
"""Of one shard; whoever has more dead letters than this needs a query, not a list."""

app = typer.Typer(
    help="Dead letters: list, show, redrive, resolve.",
    no_args_is_help=True,
    rich_markup_mode=None,
    add_completion=False,
)


class Outcome(StrEnum):
    """What a person vouches for."""

    SUCCESS = "SUCCESS"
    FAILED = "FAILED"


@app.command("list")
def list_cases(
    state_dir: StateDir,
    shard: OneShard = "",
    closed: Annotated[bool, typer.Option("--all", help="Also those that are closed.")] = False,
    form: Output = Format.TABLE,
) -> None:
    """List dead letters of all shards: severity 1 first, where money is wrong, and of each the oldest first.

    Exit code 1 when a shard could not be read.

    \b
    Example:
      ordermesh dlq list --shard s1
    """

    async def work(mesh: Mesh) -> tuple[list[tuple[str, DeadLetter]], list[str]]:
        names = [shard] if shard else [each.shard for each in await shards_of(mesh)]
        if len(names) == 1:
            return await _of_shard(mesh, names[0], closed), []
        answers = await asyncio.gather(
            *(_of_shard(mesh, name, closed) for name in names), return_exceptions=True
        )
        return _merged(names, answers)

    found, unreachable = ask(state_dir, work)
    found.sort(key=lambda pair: (pair[1].severity, pair[1].open_time.ToNanoseconds()))
    output.emit(form, [case for _, case in found], _many(found, closed=closed))
    if form is Format.TABLE and not found and not unreachable:
        output.note("no dead letters" if closed else "no open dead letters; --all shows the closed ones too")
    if unreachable:
        output.note(f"incomplete: could not read {', '.join(unreachable)}")
        raise typer.Exit(ExitCode.NO)


@app.command()
def show(order_id: OrderId, state_dir: StateDir, form: Output = Format.TABLE) -> None:
    """Show the open case of an order, or its last closed one.

    \b
    Example:
      ordermesh dlq show 01939c5e-7a3b-7000-8af5-...
    """

    async def work(mesh: Mesh) -> orders.GetDeadLetterResponse:
        return await mesh.orders.GetDeadLetter(
            orders.GetDeadLetterRequest(order_id=order_id), timeout=TIMEOUT_S
        )

    answer = ask(state_dir, work)
    output.emit(form, answer, _one(answer.dead_letter, answer.order))


@app.command()
def redrive(
    order_id: OrderId,
    reason: Why,
    actor: Actor,
    request_id: RequestId,
    state_dir: StateDir,
    form: Output = Format.TABLE,
) -> None:
    """Put a parked order back to automation, with a probe first.

    \b
    Example:
      ordermesh dlq redrive 01939c5e-7a3b-7000-8af5-... --reason "bank is back"
    """
    request = orders.RedriveDeadLetterRequest(order_id=order_id, request_id=str(request_id), reason=reason)

    async def work(mesh: Mesh) -> orders.RedriveDeadLetterResponse:
        return await mesh.orders.RedriveDeadLetter(request, timeout=TIMEOUT_S, metadata=spoken_by(actor))

    answer = ask(state_dir, work)
    output.emit(form, answer, _one(answer.dead_letter, answer.order))


@app.command()
def resolve(
    order_id: OrderId,
    outcome: Annotated[Outcome, typer.Option(case_sensitive=False, help="What really happened.")],
    evidence: Annotated[str, typer.Option(help="What proves it, such as a line of a bank file.")],
    reason: Why,
    actor: Actor,
    request_id: RequestId,
    state_dir: StateDir,
    upstream_ref: Annotated[
        str, typer.Option(help="The upstream's name of the execution; needed with SUCCESS.")
    ] = "",
    form: Output = Format.TABLE,
) -> None:
    """Settle a parked order on your word. SUCCESS needs the upstream's reference.

    \b
    Example:
      ordermesh dlq resolve 01939c5e-7a3b-7000-8af5-... --outcome FAILED \\
        --evidence "bank file 42, line 7" --reason "bank called back"
    """
    request = orders.ResolveDeadLetterRequest(
        order_id=order_id,
        request_id=str(request_id),
        outcome=Order.Status.Value(outcome.value),
        evidence=evidence,
        reason=reason,
        upstream_ref=upstream_ref,
    )

    async def work(mesh: Mesh) -> orders.ResolveDeadLetterResponse:
        return await mesh.orders.ResolveDeadLetter(request, timeout=TIMEOUT_S, metadata=spoken_by(actor))

    answer = ask(state_dir, work)
    output.emit(form, answer, _one(answer.dead_letter, answer.order))


async def _of_shard(mesh: Mesh, shard: str, closed: bool) -> list[tuple[str, DeadLetter]]:
    request = orders.ListDeadLettersRequest(shard=shard, include_closed=closed, page_size=PAGE_MAX)
    found: list[tuple[str, DeadLetter]] = []
    while len(found) < LIST_MAX:
        page = await mesh.orders.ListDeadLetters(request, timeout=TIMEOUT_S)
        found += [(shard, case) for case in page.dead_letters]
        request.page_token = page.next_page_token
        if not page.next_page_token:
            break
    return found


def _merged(
    names: list[str], answers: list[list[tuple[str, DeadLetter]] | BaseException]
) -> tuple[list[tuple[str, DeadLetter]], list[str]]:
    """What the shards said, and which did not answer. Raises what is no matter of one shard alone."""
    found: list[tuple[str, DeadLetter]] = []
    failed: dict[str, BaseException] = {}
    for name, answer in zip(names, answers, strict=True):
        if isinstance(answer, BaseException):
            failed[name] = answer
        else:
            found += answer
    for error in failed.values():
        if len(failed) == len(names) or not isinstance(error, grpc.aio.AioRpcError):
            raise error
    return found, sorted(failed)


def _many(found: list[tuple[str, DeadLetter]], *, closed: bool) -> Table:
    columns = ["order", "shard", "user", "opened (UTC)", "severity", "why", "redriven", "evidence"]
    rows = [
        [
            case.order_id,
            shard,
            case.user_id,
            output.when(case.open_time),
            str(case.severity),
            case.reason,
            str(case.redrive_count),
            output.evidence(case.evidence_json),
            *([_ending(case)] if closed else []),
        ]
        for shard, case in found
    ]
    return output.table(*columns, *(["closed"] if closed else []), rows=rows)


def _one(case: DeadLetter, order: Order) -> Table:
    worst = "money may be wrong" if case.severity == 1 else "automation gave up"
    return output.facts(
        ("order", order.order_id),
        ("user", order.user_id),
        ("now", output.stage(order)),
        ("amount", output.money(order.amount)),
        ("leg", f"{output.leg(order)}, attempt {order.attempt}"),
        ("case", case.dead_letter_id),
        ("why", case.reason),
        ("severity", f"{case.severity}: {worst}" if case.severity else ""),
        ("opened", f"{output.when(case.open_time)} at version {case.opened_version}"),
        ("closed", _ending(case)),
        ("redriven", str(case.redrive_count)),
        ("evidence", output.evidence(case.evidence_json, 2048)),
    )


def _ending(case: DeadLetter) -> str:
    if not case.HasField("close_time"):
        return ""
    said = f": {case.close_reason}" if case.close_reason else ""
    return f"{output.when(case.close_time)} {case.outcome} by {case.actor}{said}"
