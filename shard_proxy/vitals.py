"""What the proxy says about its health: itself while it can route, and each lane while it is connected.

One lane that is down does not make the proxy unhealthy: the users of the other shards would be turned away
too.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from shard_proxy.methods import BEHIND, OWN

if TYPE_CHECKING:
    from chassis.clock import Clock
    from chassis.rpc.health import Health
    from shard_proxy.book import RouteBook
    from shard_proxy.lanes import Lanes

LOOK_EVERY_S = 0.5
SERVICES = (*BEHIND, OWN)


class Vitals:
    """Tells the health service what is so; as a loop it looks twice a second."""

    name = "vitals"

    def __init__(self, health: Health, book: RouteBook, lanes: Lanes, clock: Clock) -> None:
        self._health = health
        self._book = book
        self._lanes = lanes
        self._clock = clock
        self._told: set[str] = set()

    def look(self) -> None:
        """Say what is so now."""
        for service in ("", *SERVICES):
            self._health.set(service, serving=self._book.has_map)
        states = {f"lane:{name}": up for name, up in self._lanes.states().items()}
        for name, up in states.items():
            self._health.set(name, serving=up)
        for gone in self._told - states.keys():
            self._health.forget(gone)
        self._told = set(states)

    async def run(self) -> None:
        """Look until cancelled."""
        while True:
            self.look()
            await self._clock.sleep(LOOK_EVERY_S)
