"""`ordermesh explain-page`: what a user's first page is made of now, so that nobody has to guess."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from ops.cli import output
from ops.cli.calls import TIMEOUT_S, ask
from ops.cli.edge import ExitCode
from ops.cli.history import origin
from ops.cli.options import Format, Output, StateDir
from ordermesh.history.v1 import history_service_pb2 as history

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from rich.table import Table

    from ops.mesh import Mesh

    Parts = Sequence[history.ExplainPageResponse.ShardPart]

HOT_COUNT_MAX = 101
"""The answer counts no further: a full page and one more."""


def explain_page(
    user: Annotated[str, typer.Argument(metavar="USER", help="Whose list.", show_default=False)],
    state_dir: StateDir,
    form: Output = Format.TABLE,
) -> None:
    """Say why a user's list looks as it does.

    \b
    Where the hot window begins, how far each shard's changes are searchable, what is overlaid
    or in quarantine, which indices there are, where the archive begins and the list ends, and
    who would serve the first page now.
    Exit code 1 when the read model is not relied on for a shard.
    Example:
      ordermesh explain-page alice
    """
    request = history.ExplainPageRequest(user_id=user)

    async def work(mesh: Mesh) -> history.ExplainPageResponse:
        return await mesh.history.ExplainPage(request, timeout=TIMEOUT_S)

    said = ask(state_dir, work)
    first, *others = _tables(user, said)
    output.emit(form, said, first)
    if form is Format.TABLE:
        for table in others:
            if table.row_count:
                output.show("")
                output.show(table)
    if any(part.unreliable for part in said.shards):
        raise typer.Exit(ExitCode.NO)


def _tables(user: str, said: history.ExplainPageResponse) -> Iterator[Table]:
    yield output.facts(
        ("user", user),
        ("first page", origin(said.read_info)),
        ("hot window", f"since {output.when(said.boundary)}"),
    )
    yield output.table(
        *("shard", "buckets", "in the hot window", "archived", "read model"),
        rows=[_shard(part) for part in said.shards],
        title="shards",
    )
    yield _watermarks(said.shards)
    yield output.table(
        *("order", "shard", "version now", "changed (UTC)"),
        rows=[
            (change.order_id, part.shard, str(change.version), output.when(change.update_time))
            for part in said.shards
            for change in part.overlay
        ],
        title="overlay: changed after the watermark, shown from the shard",
    )
    yield output.table(
        *("order", "shard", "version", "refused because"),
        rows=[
            (refused.order_id, part.shard, str(refused.version), output.cut(refused.reason))
            for part in said.shards
            for refused in part.quarantine
        ],
        title="quarantine: refused by the read model, shown from the shard",
    )
    yield _indices(said.shards)


def _shard(part: history.ExplainPageResponse.ShardPart) -> tuple[str, ...]:
    count = str(part.hot_count) if part.hot_count < HOT_COUNT_MAX else f"{HOT_COUNT_MAX - 1} and more"
    buckets = ", ".join(str(bucket) for bucket in part.buckets)
    has_archive = part.HasField("archived_before_time")
    archived = f"before {part.archived_before_time.ToDatetime():%Y-%m-%d}" if has_archive else "nothing"
    return (
        part.shard,
        buckets,
        count,
        archived,
        f"not relied on: {part.unreliable}" if part.unreliable else "ok",
    )


def _watermarks(parts: Parts) -> Table:
    return output.table(
        *("shard", "stream partition", "position", "searchable until (UTC)", "lag"),
        rows=[
            (
                part.shard,
                str(mark.stream_partition),
                mark.position or "never indexed",
                output.when(mark.as_of),
                output.how_long(mark.lag) if mark.HasField("lag") else "",
            )
            for part in parts
            for mark in part.watermarks
        ],
        title="watermarks",
    )


def _indices(parts: Parts) -> Table:
    return output.table(
        *("index", "shard", "month", "generation", "state", "ours"),
        rows=[
            (
                index.name,
                part.shard,
                index.month,
                str(index.generation),
                index.state,
                "yes" if index.is_ours else "no",
            )
            for part in parts
            for index in part.indices
        ],
        title="indices",
    )
