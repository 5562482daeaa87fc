"""What a load run is told to do: rates, users, kills and faults, each within bounds. Pure."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import Final

from ops.errors import OpsError
from ordermesh.upstream.v1.simulator_service_pb2 import Fault

RATE_MAX: Final = 2000.0
"""More than two cores can create; a typing error should not melt a laptop."""
SECONDS_MAX: Final = 24 * 3600.0
USERS_MIN: Final = 1
USERS_MAX: Final = 100_000
IN_FLIGHT_MAX: Final = 512
"""Orders that wait for their acknowledgement at once; beyond it an arrival is counted as shed, never
queued.
"""
ORDERS_MAX: Final = 2_000_000
"""What became of each order is kept in memory until it was checked."""
WALKERS_MAX: Final = 64
WALKED_USERS_MAX: Final = 64
"""Among more, the changes of each are so rare that a page seldom shows one which the read model lacks."""
KINDS: Final = tuple(name for name, number in Fault.Kind.items() if number)
"""Ways in which a simulated upstream can misbehave."""


class PlanRefused(OpsError):
    """The plan asks for what does not exist or proves nothing; the message says what does."""


class Transport(StrEnum):
    """How orders are sent."""

    REST = "rest"
    GRPC = "grpc"
    MIXED = "mixed"


@dataclass(frozen=True, slots=True)
class Kill:
    """SIGKILL one process of a service every so often; its shards in turn."""

    service: str
    every_s: float


@dataclass(frozen=True, slots=True)
class Freeze:
    """SIGSTOP one process every so often, its shards in turn, and SIGCONT after a while. name: as in
    endpoints.json.
    """

    name: str
    every_s: float
    for_s: float


@dataclass(frozen=True, slots=True)
class UpstreamFault:
    """Make every upstream misbehave towards a share of keys or calls. duration_s: 0 for kinds without one."""

    kind: str
    probability: float
    duration_s: float = 0.0

    @property
    def label(self) -> str:
        """As it was written on the command line."""
        return f"{self.kind.lower()}:{self.probability:g}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """One run. The seed decides arrivals, users, amounts and jitter; processes decide the rest."""

    rate: float
    seconds: float
    users: int = 240
    transport: Transport = Transport.MIXED
    kills: tuple[Kill, ...] = ()
    freezes: tuple[Freeze, ...] = ()
    faults: tuple[UpstreamFault, ...] = ()
    vip_moves_every_s: float = 0.0
    """Between two moves of users to a dedicated bucket or back; 0 moves nobody."""
    walkers: int = 0
    """Readers of whole histories beside the load; 0 walks nowhere."""
    settle_timeout_s: float = 120.0
    give_up_s: float = 30.0
    try_timeout_s: float = 4.0
    replay_share: float = 0.02
    vip_share: float = 0.2
    seed: int = 1

    def __post_init__(self) -> None:
        _within("--rate", self.rate, 0.1, RATE_MAX)
        _within("--seconds", self.seconds, 0.1, SECONDS_MAX)
        _within("--users", self.users, USERS_MIN, USERS_MAX)
        _within("--settle-timeout", self.settle_timeout_s, 1, 3600)
        _within("--give-up", self.give_up_s, 1, 600)
        _within("--rate times --seconds", self.rate * self.seconds, 1, ORDERS_MAX)
        for kill in self.kills:
            _within(f"--kill {kill.service}", kill.every_s, 0.5, self.seconds)
        for freeze in self.freezes:
            _within(f"--freeze {freeze.name}", freeze.every_s, 1, self.seconds)
            _within(f"--freeze {freeze.name}, how long", freeze.for_s, 0.1, freeze.every_s / 2)
        _within("--walkers", self.walkers, 0, WALKERS_MAX)
        if self.walkers:
            _within("--users with --walk", self.users, USERS_MIN, WALKED_USERS_MAX)
        if self.vip_moves_every_s:
            _within("--vip-moves", self.vip_moves_every_s, 0.2, self.seconds)
        for fault in self.faults:
            if fault.kind not in KINDS:
                known = ", ".join(KINDS).lower()
                raise PlanRefused(f"--upstream-fault {fault.kind.lower()} is unknown; there are {known}.")
            _within(f"--upstream-fault {fault.kind.lower()}", fault.probability, 0.0001, 1)


def _within(option: str, value: float, least: float, most: float) -> None:
    if not least <= value <= most:
        raise PlanRefused(f"{option} must be {least:g} to {most:g}, not {value:g}.")
