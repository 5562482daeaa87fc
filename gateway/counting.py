"""Counts each route from zero, so that its first failure is seen as one more."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from starlette.routing import Route

from gateway.edge import METHODS, OTHER, UNMATCHED
from gateway.metrics import HANDLED, SECONDS

if TYPE_CHECKING:
    from collections.abc import Iterable

    from starlette.routing import BaseRoute

OUR_FAULTS: Final = ("500", "503", "504")
"""What alerts are about."""


def prepare(routes: Iterable[BaseRoute]) -> None:
    """Begin to count every route, and what is refused before its route is known."""
    named = [
        (route.path, method) for route in routes if isinstance(route, Route) for method in route.methods or ()
    ]
    for route, method in (*named, *((UNMATCHED, method) for method in (*METHODS, OTHER))):
        SECONDS.labels(route, method)
        for status in ("200", *OUR_FAULTS):
            HANDLED.labels(route, method, status)
