"""Bars on the terminal for what is done to the read model."""

from __future__ import annotations

import sys
from contextlib import contextmanager
from typing import TYPE_CHECKING

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from ops.cli.options import Format
from ordermesh.history.v1 import projection_service_pb2 as pb

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from rich.progress import TaskID

    from ops import projection

Operation = pb.Operation
KINDS = {number: name.lower() for name, number in Operation.Kind.items()}


def doing(operation: Operation) -> str:
    """Where an operation stands."""
    phase = Operation.Phase.Name(operation.phase).lower()
    counted = f" {operation.order_count}/{operation.expected_count}" if operation.expected_count else ""
    return f"{KINDS[operation.kind]}: {phase}{counted}"


@contextmanager
def bars(form: Format) -> Iterator[projection.Tell]:
    """A bar on the terminal for each operation that is open."""
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    is_shown = form is Format.TABLE and sys.stderr.isatty()
    with Progress(*columns, console=Console(stderr=True), transient=True, disable=not is_shown) as progress:
        shown: dict[str, TaskID] = {}

        def tell(operations: Sequence[Operation]) -> None:
            for each in operations:
                if each.operation_id not in shown:
                    shown[each.operation_id] = progress.add_task("", total=None)
                progress.update(
                    shown[each.operation_id],
                    description=f"{each.shard} {each.month} {doing(each)}",
                    total=max(each.expected_count, each.order_count) or None,
                    completed=each.order_count,
                )

        yield tell
