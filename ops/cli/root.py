"""The root of the command tree: commands are imported when they are first needed, and errors end here.

Owns nothing. A command that cannot be imported is a defect and shows as one.
"""

from __future__ import annotations

from dataclasses import dataclass
from importlib import import_module
from typing import TYPE_CHECKING, Any, ClassVar

import typer
from typer.core import TyperGroup

from ops.cli import edge

if TYPE_CHECKING:
    from collections.abc import Iterable


@dataclass(frozen=True, slots=True)
class Entry:
    """One line of `ordermesh --help`, and where its command is: `module:attribute`."""

    section: str
    name: str
    source: str
    help: str


class LazyCommands(dict[str, Any]):
    """Commands by name; the names are there at once, each command when it is asked for."""

    def __init__(self, entries: Iterable[Entry]) -> None:
        self._entries = {entry.name: entry for entry in entries}
        super().__init__(dict.fromkeys(self._entries))

    def get(self, name: str, default: Any = None) -> Any:
        """The command, imported now unless it was before; the default for a name that is not there."""
        return default if name not in self._entries else self[name]

    def __getitem__(self, name: str) -> Any:
        command = super().__getitem__(name)
        if command is None:
            command = self[name] = _load(self._entries[name])
        return command


class Root(TyperGroup):
    """The command `ordermesh`. Subclasses say what is in it."""

    entries: ClassVar[tuple[Entry, ...]] = ()

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.commands = LazyCommands(self.entries)

    def format_commands(self, ctx: Any, formatter: Any) -> None:
        """Write the table of commands without importing one."""
        width = max(len(entry.name) for entry in self.entries)
        for section in dict.fromkeys(entry.section for entry in self.entries):
            rows = [(e.name.ljust(width), e.help) for e in self.entries if e.section == section]
            with formatter.section(section):
                formatter.write_dl(rows)

    def invoke(self, ctx: Any) -> Any:
        """Run a command; an expected error becomes a line on stderr and an exit code."""
        try:
            return super().invoke(ctx)
        except (typer.Exit, typer.Abort, typer.TyperException):
            raise
        except Exception as failed:
            told = edge.told(failed)
            if told is None:
                raise
            edge.tell(told, ctx.meta)
            raise typer.Exit(told.exit_code) from failed


def _load(entry: Entry) -> Any:
    module, _, attribute = entry.source.partition(":")
    found = getattr(import_module(module), attribute)
    if not isinstance(found, typer.Typer):
        found = _alone(found)
    command = typer.main.get_command(found)
    command.name = entry.name
    return command


def _alone(function: Any) -> typer.Typer:
    app = typer.Typer(add_completion=False, rich_markup_mode=None)
    app.command()(function)
    return app
