"""The command line as a newcomer meets it: quick, on one screen, with examples, and kind to typos."""

import json
import resource
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer
from typer.testing import CliRunner

from ops.cli import COMMANDS, app

SCREEN_LINES = 44
SCREEN_COLUMNS = 80
HELP_CPU_S_MAX = 0.5
OF_THE_STACK = frozenset({"dev", "down", "stop", "start", "demo"})
"""Commands that print words for people only."""


def run(*arguments: str, **environment: str) -> Any:
    return CliRunner().invoke(app, arguments, env=environment, prog_name="ordermesh")


def leaves() -> Iterator[tuple[tuple[str, ...], Any]]:
    """Every command that does something, with its words."""
    root: Any = typer.main.get_command(app)
    for entry in COMMANDS:
        command = root.get_command(None, entry.name)
        if hasattr(command, "commands"):
            yield from (((entry.name, name), each) for name, each in command.commands.items())
        else:
            yield (entry.name,), command


def test_help_fits_one_screen_and_says_the_exit_codes() -> None:
    shown = run("--help")
    assert shown.exit_code == 0
    lines = shown.output.splitlines()
    assert len(lines) <= SCREEN_LINES
    assert max(map(len, lines)) <= SCREEN_COLUMNS
    assert "Exit codes: 0 ok" in shown.output
    assert all(entry.name in shown.output for entry in COMMANDS)


def test_help_is_quick_because_it_imports_no_command() -> None:
    program = (
        "import sys\n"
        "from ops.cli import main\n"
        "sys.argv = ['ordermesh', '--help']\n"
        "try:\n    main()\n"
        "except SystemExit:\n    pass\n"
        "heavy = {'grpc', 'asyncpg', 'pydantic', 'rich', 'httpx', 'chassis'} & set(sys.modules)\n"
        "sys.exit(f'imported {heavy}' if heavy else 0)\n"
    )
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run([sys.executable, "-c", program], check=True, capture_output=True, timeout=30)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime < HELP_CPU_S_MAX


def test_the_table_says_what_each_command_says_of_itself() -> None:
    root: Any = typer.main.get_command(app)
    for entry in COMMANDS:
        assert root.get_command(None, entry.name).get_short_help_str(100) == entry.help, entry.name


def test_every_command_shows_an_example_and_how_to_reach_the_stack() -> None:
    for words, command in leaves():
        shown = run(*words, "--help")
        assert shown.exit_code == 0, words
        assert "Example" in shown.output, words
        assert "--state-dir" in shown.output, words
        if words[0] not in OF_THE_STACK:
            assert any("-o" in each.opts for each in command.params), words


@pytest.mark.parametrize(
    ("typed", "meant"),
    [(("ordr",), "'order'"), (("order", "journl"), "'journal'"), (("dlq", "shw"), "'show'")],
)
def test_a_typo_suggests_the_nearest_command(typed: tuple[str, ...], meant: str) -> None:
    shown = run(*typed)
    assert shown.exit_code == 2
    assert f"Did you mean {meant}" in shown.output


def test_without_a_stack_every_call_says_how_to_start_one_and_exits_3(tmp_path: Path) -> None:
    for words in (["order", "get", "x"], ["dlq", "list"], ["recovery", "status"], ["where", "alice"]):
        shown = run(*words, "--state-dir", str(tmp_path))
        assert shown.exit_code == 3, words
        assert "ordermesh dev" in shown.stderr
        assert shown.stdout == ""
    as_json = run("order", "get", "x", "-o", "json", ORDERMESH_STATE_DIR=str(tmp_path))
    assert json.loads(as_json.stderr)["error"]["exitCode"] == 3


@pytest.mark.parametrize(
    "arguments",
    [
        ("order", "create", "--user", "alice", "--amount", "12.505EUR"),
        ("order", "create", "--user", "alice", "--amount", "12.50EUR", "--wait", "soon"),
        ("order", "create", "--user", "alice", "--amount", "12.50EUR", "--request-id", "one"),
        ("order", "create", "--amount", "12.50EUR"),
        ("order", "list", "--user", "alice", "--status", "LOST"),
        ("dlq", "resolve", "x", "--outcome", "MAYBE", "--evidence", "e", "--reason", "r"),
        ("token", "--user", "alice", "--role", "king"),
        ("token", "--user", "al ice"),
        ("token", "--user", "alice", "--ttl", "2d"),
    ],
)
def test_what_cannot_be_meant_is_a_usage_error(arguments: tuple[str, ...], tmp_path: Path) -> None:
    shown = run(*arguments, "--state-dir", str(tmp_path))
    assert shown.exit_code == 2
    assert "Traceback" not in shown.output
