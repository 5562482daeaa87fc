"""Grafana's dashboards as code: what an operator sees at night, one file a dashboard.

`scripts/telemetry.py` writes them to deploy/grafana. A panel shows what an alert is computed from, or what
one asks next; a test runs every query of every panel against real servers.
"""

from __future__ import annotations

import importlib
from functools import cache
from typing import TYPE_CHECKING

from telemetry import rules

if TYPE_CHECKING:
    from telemetry.dashboards.board import Board


@cache
def boards() -> tuple[Board, ...]:
    """Every dashboard, in the order of the runbooks."""
    return tuple(_board(name) for name in rules.DASHBOARDS)


def _board(name: str) -> Board:
    board: Board = importlib.import_module(f"{__name__}.{name.replace('-', '_')}").BOARD
    return board
