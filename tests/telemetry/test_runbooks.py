"""Whoever is woken finds a page: each alert has a section with four parts, and its commands can be typed."""

from __future__ import annotations

import re
import shlex
from pathlib import Path
from typing import Any

import pytest
import typer
from typer.core import TyperGroup

from ops.cli import app
from telemetry import registry, rules
from telemetry.rules import Alert

ROOT = Path(__file__).resolve().parent.parent.parent
RUNBOOKS = ROOT / rules.RUNBOOKS
PARTS = ("Detect", "Identify", "Investigate", "Resolve")
FILLED_IN = {
    "ORDER": "01939c5e-7a3b-7000-8af5-000000000001",
    "USER": "alice",
    "MONTH": "2023-08",
    "OUTCOME": "failed",
    "DAY": "2024-04-01",
}
"""What a reader may put where a page has a word in capitals; where anything will do the word itself does."""
OF_A_LAPTOP = {"mail list", "mail show"}
"""Commands that look into the directory of a local stack: they say nothing of production."""


def sections() -> dict[str, tuple[str, str]]:
    """The page and the text of each section."""
    found: dict[str, tuple[str, str]] = {}
    for path in sorted(RUNBOOKS.glob("*.md")):
        parts = re.split(r"^## (\w+)$", path.read_text(encoding="utf-8"), flags=re.MULTILINE)[1:]
        found |= {name: (path.stem, text) for name, text in zip(parts[::2], parts[1::2], strict=True)}
    return found


def spans(text: str) -> list[str]:
    """What stands between backticks."""
    return [" ".join(span.split()) for span in re.findall(r"`([^`]+)`", text)]


def parsed(line: str) -> str:
    """The command that a line calls, as `noun verb`, once its own parser has taken all the words of the line.

    Words in capitals are for the reader to fill in, as is done here. Raises: TyperException, as the tool does
    for a command that nobody knows, and for words that are missing, unknown or of another form.
    """
    words = [FILLED_IN.get(word, word) for word in shlex.split(line)[1:]]
    command: Any = typer.main.get_command(app)
    context: Any = command.make_context("ordermesh", [*words])
    while isinstance(command, TyperGroup):
        name, command, words = command.resolve_command(context, words)
        context = command.make_context(name, [*words], parent=context)
    return str(context.command_path).removeprefix("ordermesh ")


def test_each_alert_has_a_section_and_each_section_an_alert() -> None:
    pages = {name: page for name, (page, _) in sections().items()}
    assert pages == {alert.name: alert.dashboard for alert in rules.alerts()}


@pytest.mark.parametrize("alert", rules.alerts(), ids=lambda alert: alert.name)
def test_a_section_says_how_to_detect_identify_investigate_and_resolve(alert: Alert) -> None:
    _, text = sections()[alert.name]
    heads = re.findall(r"^\*\*(\w+)\.\*\*(?=\s+\S)", text, re.MULTILINE)
    assert tuple(heads) == PARTS
    word = {"page": "Page.", "ticket": "Ticket."}[alert.severity]
    assert f"**Detect.** {word}" in text, "it says whether somebody is woken"


@pytest.mark.parametrize("alert", rules.alerts(), ids=lambda alert: alert.name)
def test_commands_and_metrics_in_a_section_exist(alert: Alert) -> None:
    _, text = sections()[alert.name]
    called = [span for span in [alert.command, *spans(text)] if span.startswith("ordermesh ")]
    assert alert.command in called
    for line in called:
        assert parsed(line) not in OF_A_LAPTOP, line
    names = {metric.name for metric in registry.metrics()}
    names |= {f"{name}_{end}" for name in names for end in ("bucket", "count", "sum")}
    used = set(re.findall(r"\b(?:ordermesh|grpc_server|http_server)_[a-z_]{5,}", " ".join(spans(text))))
    assert used <= names


def test_commands_that_fit_almost_any_alert_can_be_typed() -> None:
    called = spans((RUNBOOKS / "README.md").read_text(encoding="utf-8"))
    assert [parsed(line) for line in called if line.startswith("ordermesh ")] == [
        "doctor",
        "order journal",
        "audit",
    ]


@pytest.mark.parametrize(
    "line",
    [
        "ordermesh recovery haste",
        "ordermesh haste",
        "ordermesh recovery",
        "ordermesh recovery probe",
        "ordermesh recovery probe ORDER ORDER",
        "ordermesh recovery pause --upstream payments",
        "ordermesh recovery hanging --upstream payments --haste",
        "ordermesh dlq resolve ORDER --outcome perhaps --evidence PROOF --reason WHY",
        "ordermesh archive verify --month soon",
    ],
)
def test_a_line_that_the_tool_would_refuse_is_noticed(line: str) -> None:
    with pytest.raises(typer.TyperException):
        parsed(line)
