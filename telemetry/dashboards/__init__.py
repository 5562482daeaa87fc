"""Grafana's dashboards as code: what an operator sees at night, one file a dashboard.

`scripts/telemetry.py` writes them to deploy/grafana. A panel shows what an alert is computed from, or what
one asks next; a test runs every query of every panel against real servers.
"""

from __future__ import annotations

import importlib
from functools import cache
from typing import TYPE_CHECKING

from telemetry import rules
from telemetry.registry import RegistryError

if TYPE_CHECKING:
    from telemetry.dashboards.board import Board


@cache
def boards() -> tuple[Board, ...]:
    """Every dashboard, in the order of the runbooks."""
    return tuple(_board(name) for name in rules.DASHBOARDS)


def panel_of(alert: rules.Alert) -> tuple[str, int]:
    """The uid of an alert's dashboard, and the id of the first panel on it that the alert is computed from.

    Raises: RegistryError when its dashboard shows no such panel.
    """
    board = _board(alert.dashboard)
    for number, panel in board.numbered():
        if alert.name in panel.alerts:
            return board.uid, number
    raise RegistryError(f"alert {alert.name} has no panel on the dashboard {board.name}")


def _board(name: str) -> Board:
    board: Board = importlib.import_module(f"{__name__}.{name.replace('-', '_')}").BOARD
    return board
