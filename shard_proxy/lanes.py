"""The processes behind the proxy: one lane for each shard and service, with its own connections, slots and
budget.

Lanes share nothing, so that a slow one takes nobody else's slots and a VIP's lane is never borrowed. A call
is only sent over a connection that is ready; while a process is being started again, calls wait for it a
few seconds, and after that they are refused at once.
"""

from __future__ import annotations

import asyncio
import time
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import structlog
from grpc import ChannelConnectivity
from grpc.aio import UsageError

from chassis import meters, rpc
from chassis.errors import ShardUnavailable
from chassis.limits import Limiter
from shard_proxy import metrics

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Mapping

    from chassis.tls import TlsFiles
    from shard_proxy.domain import MapSnapshot

log = structlog.get_logger("lanes")
ORDER, HISTORY, PROJECTOR = "order_svc", "history_svc", "projector"
RECOVERY, ARCHIVE = "recovery_svc", "archive_svc"
OF_SHARDS = frozenset({ORDER, HISTORY})
"""Services that the map places for each shard; of the others there is one, whatever a call's key is."""
OF_PLACEMENTS = frozenset({HISTORY, ARCHIVE})
"""Services that are told every place of the user whom a call is about."""
LOOK_EVERY_S = 1.0
"""A connection's state is looked at this often even when nothing was reported, which also follows a renewed
certificate.
"""
RETIRE_S = 60.0
"""How long calls to a target that left the map may go on."""


@dataclass(frozen=True, slots=True)
class LaneLimits:
    """How hard one lane may be leaned on.

    slots, queue: unary calls at work and waiting; below the 256 streams that a lane takes on one connection.
    streams: server streams, which have a connection of their own. bridge_s: how long calls wait for a lost
    connection: a killed process is back within 2 s, and has to start.
    """

    slots: int = 128
    queue: int = 256
    streams: int = 200
    bridge_s: float = 6.0


class RetryBudget:
    """Tokens for sending calls again: a burst for the calls that a killed process leaves, then a tenth of
    what succeeds.

    So a lane that keeps failing is not given twice the load on top.
    """

    BURST = 64.0
    PER_SUCCESS = 0.1
    PER_SECOND = 1.0

    def __init__(self, now: Callable[[], float] = time.monotonic) -> None:
        self._now = now
        self._tokens = self.BURST
        self._at = now()

    def earn(self) -> None:
        """A call succeeded."""
        self._tokens = min(self.BURST, self._tokens + self.PER_SUCCESS)

    def spend(self) -> bool:
        """Take a token; False when there is none."""
        now = self._now()
        self._tokens = min(self.BURST, self._tokens + (now - self._at) * self.PER_SECOND)
        self._at = now
        if self._tokens < 1.0:
            return False
        self._tokens -= 1.0
        return True


class Link:
    """One connection to one target, and whether it is ready."""

    def __init__(self, target: str, *, service: str, tls: TlsFiles | None, bridge_s: float) -> None:
        self._channel = rpc.Channel(target, service=service, tls=tls)
        self._bridge_s = bridge_s
        self._down_since: float | None = time.monotonic()
        self._calls: dict[tuple[str, str], Any] = {}

    @property
    def up(self) -> bool:
        """Whether the connection was ready when it was last looked at."""
        return self._down_since is None

    def call(self, arity: str, path: str) -> Any:
        """The multicallable of a method on raw bytes; made once."""
        made = self._calls.get((arity, path))
        if made is None:
            made = self._calls[arity, path] = getattr(self._channel, arity)(path)
        return made

    async def until_ready(self, timeout_s: float) -> None:
        """Return when a call can be sent; at once when it can now.

        Raises: ShardUnavailable when the connection is gone for longer than a restart takes. Nothing was
        sent.
        """
        channel = self._channel.current()
        if channel.get_state(try_to_connect=True) is ChannelConnectivity.READY:
            return
        gone_s = 0.0 if self._down_since is None else time.monotonic() - self._down_since
        try:
            async with asyncio.timeout(min(timeout_s, self._bridge_s - gone_s)):
                while (state := channel.get_state(try_to_connect=True)) is not ChannelConnectivity.READY:
                    await channel.wait_for_state_change(state)
        except (TimeoutError, UsageError):
            raise ShardUnavailable from None

    async def watch(self) -> None:
        """Keep the connection up and know its state; until cancelled."""
        while True:
            channel = self._channel.current()
            state = channel.get_state(try_to_connect=True)
            self._seen(state)
            try:
                async with asyncio.timeout(LOOK_EVERY_S):
                    await channel.wait_for_state_change(state)
            except TimeoutError:
                continue
            except UsageError:
                # The channel was replaced under us; the next look finds the new one.
                await asyncio.sleep(LOOK_EVERY_S)

    async def close(self, grace_s: float = 0.0) -> None:
        """Let running calls end for so long, then close."""
        await self._channel.current().close(grace_s)
        await self._channel.close()

    def _seen(self, state: ChannelConnectivity) -> None:
        if state is ChannelConnectivity.READY:
            self._down_since = None
        elif self._down_since is None:
            self._down_since = time.monotonic()


class Lane:
    """One process behind the proxy. Unary calls and streams have a link each: streams never use up the
    calls' room.
    """

    def __init__(
        self, name: str, service: str, target: str, tls: TlsFiles | None, limits: LaneLimits
    ) -> None:
        self.name = name
        self.service = service
        self.target = target
        self.slots = Limiter(limits.slots, limits.queue, name=f"lane:{name}")
        self.stream_slots = Limiter(limits.streams, 0, name=f"lane-streams:{name}")
        self.budget = RetryBudget()
        self.calls = Link(target, service=service, tls=tls, bridge_s=limits.bridge_s)
        self.streams = Link(target, service=service, tls=tls, bridge_s=limits.bridge_s)
        self._watching = [
            asyncio.create_task(link.watch(), name=f"lane-watch-{name}")
            for link in (self.calls, self.streams)
        ]

    @property
    def up(self) -> bool:
        """Whether the process is connected."""
        return self.calls.up

    def check(self) -> None:
        """Raise what ended a watch, if one ended."""
        for task in self._watching:
            if task.done() and not task.cancelled():
                task.result()

    async def close(self, grace_s: float = 0.0) -> None:
        """Let running calls end for so long, then close."""
        for task in self._watching:
            task.cancel()
        await asyncio.gather(*self._watching, return_exceptions=True)
        await asyncio.gather(self.calls.close(grace_s), self.streams.close(grace_s))


class Lanes:
    """All lanes of the map. As a loop it publishes their state."""

    name = "lanes"

    def __init__(self, tls: TlsFiles | None, limits: LaneLimits) -> None:
        self._tls = tls
        self._limits = limits
        self._lanes: dict[tuple[str, str], Lane] = {}
        self._retiring: dict[asyncio.Task[None], Lane] = {}

    def follow(self, map_: MapSnapshot) -> None:
        """Open lanes for new targets; those whose target changed or went let their calls end and close."""
        wanted = _targets(map_)
        meters.know(lane=[_name(*key) for key in wanted])
        for key, lane in list(self._lanes.items()):
            if wanted.get(key) != lane.target:
                del self._lanes[key]
                self._retire(lane)
            if key not in wanted:
                meters.forget(metrics.LANE_UP, metrics.LANE_IN_FLIGHT, lane=lane.name)
        for (service, shard), target in wanted.items():
            if (service, shard) not in self._lanes:
                name = _name(service, shard)
                log.info("lane_opened", lane=name, target=target)
                self._lanes[service, shard] = Lane(name, service, target, self._tls, self._limits)

    def of(self, service: str, shard: str) -> Lane:
        """The lane of a service for a shard; an empty shard means a service that belongs to none.

        Raises: ShardUnavailable when the map has no such place.
        """
        lane = self._lanes.get((service, shard))
        if lane is None:
            raise ShardUnavailable(service=service, shard=shard)
        return lane

    def states(self) -> Mapping[str, bool]:
        """Which lanes are connected, by name."""
        return {lane.name: lane.up for lane in self._lanes.values()}

    async def run(self) -> None:
        """Publish what is connected, each second; a watch that died ends this loop, and so the process."""
        while True:
            for lane in list(self._lanes.values()):
                lane.check()
                metrics.LANE_UP.labels(lane.name).set(lane.up)
                metrics.LANE_IN_FLIGHT.labels(lane.name).set(lane.slots.taken)
            await asyncio.sleep(LOOK_EVERY_S)

    @asynccontextmanager
    async def opened(self) -> AsyncIterator[Lanes]:
        """Close every lane at the end."""
        try:
            yield self
        finally:
            cut_off = list(self._retiring.values())
            for task in self._retiring:
                task.cancel()
            await asyncio.gather(*self._retiring, return_exceptions=True)
            await asyncio.gather(*(lane.close() for lane in [*cut_off, *self._lanes.values()]))

    def _retire(self, lane: Lane) -> None:
        log.info("lane_retired", lane=lane.name, target=lane.target)
        task = asyncio.create_task(lane.close(RETIRE_S), name=f"lane-retire-{lane.name}")
        self._retiring[task] = lane
        task.add_done_callback(self._retired)

    def _retired(self, task: asyncio.Task[None]) -> None:
        lane = self._retiring.pop(task)
        if not task.cancelled() and task.exception() is not None:
            log.warning("lane_not_closed", lane=lane.name, error=type(task.exception()).__name__)


def _targets(map_: MapSnapshot) -> dict[tuple[str, str], str]:
    wanted = {(ORDER, shard.name): shard.lane_target for shard in map_.shards.values()}
    wanted |= {(HISTORY, shard.name): shard.history_target for shard in map_.shards.values()}
    return wanted | {(service, ""): target for service, target in map_.services.items()}


def _name(service: str, shard: str) -> str:
    """A lane of orders is called like its shard; others say their service too."""
    if service == ORDER:
        return shard
    return f"{service}/{shard}" if shard else service
