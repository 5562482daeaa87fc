"""Channels to upstreams: what they show before anybody calls."""

from __future__ import annotations

from prometheus_client import REGISTRY

from order_svc.clients import Upstreams

UPSTREAM = "never-called"
NOWHERE = "127.0.0.1:1"


async def test_an_upstream_that_nobody_called_has_its_series() -> None:
    async with Upstreams.open({UPSTREAM: NOWHERE}, tls=None):
        shown = REGISTRY.get_sample_value("ordermesh_order_submits_in_flight", {"upstream": UPSTREAM})
    assert shown == 0
