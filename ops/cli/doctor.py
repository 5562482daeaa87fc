"""`ordermesh doctor`: what is wrong on this machine or with the stack, and what to do about it."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING

import typer

from ops.cli import output
from ops.cli.calls import quietly
from ops.cli.edge import ExitCode
from ops.cli.options import Format, Output, StateDir
from ops.doctor import elsewhere, machine, stack
from ops.doctor.findings import Word, ok
from ops.stack.endpoints import Endpoints, StackDown
from ops.stack.layout import Places

if TYPE_CHECKING:
    from pathlib import Path

    from rich.table import Table

    from ops.doctor.findings import Finding


def doctor(state_dir: StateDir, form: Output = Format.TABLE) -> None:
    """Say what is wrong here, and what to do. Exit code 1 when something does not work.

    \b
    Example:
      ordermesh doctor
    """
    found = examine(state_dir)
    if form is Format.TABLE:
        output.show(_table(found))
    else:
        output.print_json([asdict(each) for each in found])
    if any(each.word is Word.BAD for each in found):
        raise typer.Exit(ExitCode.NO)


def examine(state_dir: Path) -> list[Finding]:
    """Everything about the machine, and about the stack when one runs; of a mesh elsewhere, what it names."""
    try:
        endpoints = Endpoints.read(state_dir)
    except StackDown:
        none = ok("stack", "none runs here; start one with `ordermesh dev`")
        return [*machine.check(state_dir), machine.free_ports(), none]
    if endpoints.state == "elsewhere":
        return quietly(elsewhere.check(endpoints))
    found = machine.check(state_dir)
    return [
        *found,
        ok("stack", f"{endpoints.state}, pid {endpoints.stack_pid}"),
        *quietly(stack.check(endpoints, Places(state_dir))),
    ]


def _table(found: list[Finding]) -> Table:
    rows = [(each.check, each.word.value, each.detail, each.fix) for each in found]
    return output.table("check", "", "found", "what to do", rows=rows)
