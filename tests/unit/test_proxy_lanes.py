"""Lanes follow the map, and so does what is shown of them."""

from __future__ import annotations

import asyncio
from dataclasses import replace

from prometheus_client import REGISTRY

from chassis.testing import eventually
from shard_proxy.domain import MapSnapshot, Shard
from shard_proxy.lanes import LaneLimits, Lanes

NOBODY = "127.0.0.1:9"
TWO = MapSnapshot(
    version=1,
    shards={name: Shard(name, False, NOBODY, NOBODY) for name in ("lanes-1", "lanes-2")},
    services={"recovery_svc": NOBODY},
    owners={},
)
ONE = replace(TWO, version=2, shards={"lanes-1": TWO.shards["lanes-1"]}, services={})


def shown(lane: str) -> tuple[float | None, float | None]:
    return (
        REGISTRY.get_sample_value("ordermesh_proxy_lane_up", {"lane": lane}),
        REGISTRY.get_sample_value("ordermesh_proxy_lane_in_flight", {"lane": lane}),
    )


async def test_a_lane_that_left_the_map_is_shown_no_more_and_the_others_are() -> None:
    gone = ("lanes-2", "history_svc/lanes-2", "recovery_svc")
    stays = ("lanes-1", "history_svc/lanes-1")

    async def all_are_shown() -> bool:
        return {shown(lane) for lane in (*stays, *gone)} == {(0.0, 0.0)}

    async with Lanes(None, LaneLimits()).opened() as lanes:
        lanes.follow(TWO)
        running = asyncio.create_task(lanes.run())
        try:
            await eventually(all_are_shown)
            lanes.follow(ONE)
            assert {shown(lane) for lane in gone} == {(None, None)}
            assert {shown(lane) for lane in stays} == {(0.0, 0.0)}
            lanes.follow(TWO)
            await eventually(all_are_shown)
        finally:
            running.cancel()
            await asyncio.gather(running, return_exceptions=True)
