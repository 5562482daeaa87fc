"""Waiting is a courtesy: it may end early, but it never hides that an order was recorded."""

from __future__ import annotations

from typing import cast

from order_svc.changes import Changes
from order_svc.store import OrderStore
from tests.unit.orders import opened


async def test_a_create_that_finds_no_room_to_wait_is_answered_as_it_is() -> None:
    order = opened().order
    nobody_is_asked = cast("OrderStore", None)
    assert await Changes(watchers_max=0).until_quiet(nobody_is_asked, order, 30.0) is order
