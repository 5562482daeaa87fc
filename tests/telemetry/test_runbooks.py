"""Whoever is woken finds a page: each alert has a section with four parts, and the commands in it exist."""

from __future__ import annotations

import re
import shlex
from pathlib import Path
from typing import Any

import pytest
import typer

from ops.cli import COMMANDS, app
from telemetry import registry, rules
from telemetry.rules import Alert

ROOT = Path(__file__).resolve().parent.parent.parent
RUNBOOKS = ROOT / rules.RUNBOOKS
PARTS = ("Detect", "Identify", "Investigate", "Resolve")
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


def commands() -> set[str]:
    """Every command of the tool, as `noun verb` or `verb`."""
    root: Any = typer.main.get_command(app)
    found: set[str] = set()
    for entry in COMMANDS:
        below = getattr(root.get_command(None, entry.name), "commands", {})
        found |= {f"{entry.name} {verb}" for verb in below} or {entry.name}
    return found


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
    known = commands()
    for span in [alert.command, *spans(text)]:
        if span.startswith("ordermesh "):
            words = shlex.split(span)[1:3]
            assert words[0] in known or " ".join(words) in known, span
            assert " ".join(words) not in OF_A_LAPTOP, span
    names = {metric.name for metric in registry.metrics()}
    names |= {f"{name}_{end}" for name in names for end in ("bucket", "count", "sum")}
    used = set(re.findall(r"\b(?:ordermesh|grpc_server|http_server)_[a-z_]{5,}", " ".join(spans(text))))
    assert used <= names
