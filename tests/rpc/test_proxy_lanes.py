"""What a proxy tells of its lanes: of those that the map has, and no longer of those that it had."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

from prometheus_client import REGISTRY

from chassis.testing import eventually
from shard_proxy.app import limits_of
from shard_proxy.lanes import Lanes
from tests.proxies import Lane, map_of, settings_of


def told(lane: str) -> tuple[float | None, float | None]:
    """Whether it is up, and how many calls are in it."""
    labels = {"lane": lane}
    up = REGISTRY.get_sample_value("ordermesh_proxy_lane_up", labels)
    return up, REGISTRY.get_sample_value("ordermesh_proxy_lane_in_flight", labels)


async def test_a_lane_that_the_map_has_no_more_is_not_told_to_be_away(tmp_path: Path) -> None:
    lanes = (Lane("lane-stays"), Lane("lane-goes"), Lane("v1"))
    before = replace(map_of(lanes), services={})
    after = replace(
        before, shards={name: each for name, each in before.shards.items() if name != "lane-goes"}
    )
    async with Lanes(None, limits_of(settings_of(tmp_path))).opened() as opened:
        opened.follow(before)
        stays, goes = (
            next(name for name in opened.states() if shard in name) for shard in ("lane-stays", "lane-goes")
        )
        telling = asyncio.create_task(opened.run(), name="lanes")

        async def is_told_of(*names: str) -> bool:
            return {name for name in (stays, goes) if told(name) != (None, None)} == set(names)

        await eventually(lambda: is_told_of(stays, goes))
        assert told(goes) == (0, 0), "nobody is there"
        opened.follow(after)
        await eventually(lambda: is_told_of(stays))
        telling.cancel()
        with suppress(asyncio.CancelledError):
            await telling
