"""Progress on the terminal, beside what a command prints."""

from __future__ import annotations

import sys
from contextlib import contextmanager
from typing import TYPE_CHECKING, Protocol

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from ops.cli.options import Format

if TYPE_CHECKING:
    from collections.abc import Iterator

    from rich.progress import TaskID


class Show(Protocol):
    """Shows how far something is."""

    def __call__(self, text: str, completed: int, total: int | None, *, key: str = "") -> None:
        """Draw it. total: None while nobody knows. key: whose bar it is; else the text's."""


@contextmanager
def counted(form: Format) -> Iterator[Show]:
    """Bars with counts, one for each key; none when somebody's program reads what is printed."""
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    is_shown = form is Format.TABLE and sys.stderr.isatty()
    with Progress(*columns, console=Console(stderr=True), transient=True, disable=not is_shown) as progress:
        shown: dict[str, TaskID] = {}

        def show(text: str, completed: int, total: int | None, *, key: str = "") -> None:
            if (key or text) not in shown:
                shown[key or text] = progress.add_task("", total=None)
            progress.update(shown[key or text], description=text, total=total, completed=completed)

        yield show
