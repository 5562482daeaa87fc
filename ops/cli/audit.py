"""`ordermesh audit`: the invariants of every shard and between shards, map and upstreams' ledgers."""

from __future__ import annotations

from typing import Annotated

import typer

from ops import audit as auditing
from ops.audit import report
from ops.audit.findings import violations
from ops.audit.shards import StoreUnreadable
from ops.cli import output
from ops.cli.calls import quietly
from ops.cli.edge import ExitCode
from ops.cli.options import Format, Output, StateDir
from ops.stack.endpoints import Endpoints


def audit(
    state_dir: StateDir,
    quiet: Annotated[
        bool,
        typer.Option("--quiet", help="Nothing is in motion: what was executed must be settled or parked."),
    ] = False,
    form: Output = Format.TABLE,
) -> None:
    """Check the invariants of every shard. Exit code 1 when one is broken, 3 when a store cannot be read.

    Reads only; may run under load.

    \b
    Example:
      ordermesh audit -o json | jq '.[] | select(.count > 0)'
    """
    endpoints = Endpoints.read(state_dir)
    try:
        found = quietly(auditing.run(endpoints, quiet=quiet))
    except StoreUnreadable as unreadable:
        output.note(f"error: {unreadable}")
        raise typer.Exit(ExitCode.UNREACHABLE) from unreadable
    if form is Format.TABLE:
        output.show(output.table(*report.COLUMNS, rows=report.rows(found)))
        output.show(f"{len(found)} checks, {violations(found)} violations")
    else:
        output.print_json(report.as_json(found))
    if violations(found):
        raise typer.Exit(ExitCode.NO)
