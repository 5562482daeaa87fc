"""One load run from start to verdict: load with kills and faults, heal, wait for quiet, check."""

from __future__ import annotations

import asyncio
import secrets
import signal
import time
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

from ops import audit, mesh
from ops.audit.findings import Finding, violations
from ops.audit.shards import fetch
from ops.load import checks
from ops.load.asks import asks, description, users_of
from ops.load.faults import Struck, misbehaving
from ops.load.freezes import Freezer, Frozen
from ops.load.http import Http
from ops.load.kills import Killed, Killer, processes
from ops.load.log import AckLog
from ops.load.moves import Moved, UserMover
from ops.load.open_loop import OpenLoop, nobody
from ops.load.plan import IN_FLIGHT_MAX
from ops.load.quiet import Quiet, in_motion, until_quiet
from ops.load.senders import Bearers, GrpcSender, RestSender
from ops.load.walk.figures import told
from ops.load.walk.party import Party, gathered
from ops.stack.endpoints import Endpoints
from ops.stack.layout import Places

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Coroutine, Mapping, Sequence
    from pathlib import Path

    from ops.load.plan import Plan
    from ops.load.tallies import Tally
    from ops.load.walk.figures import Walked

SAY_EVERY_S = 5.0
CLOCK_SKEW = timedelta(seconds=10)
"""Shards may be behind our clock by less than this; beyond five seconds they refuse to create."""
_VIPS = "SELECT user_id FROM vip_users ORDER BY user_id LIMIT 16"


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a run did and what its checks found."""

    run_id: str
    plan: Plan
    tally: Tally
    load_s: float
    cpu_s: float
    """Of the generator itself, during the load."""
    kills: Sequence[Killed]
    faults: Sequence[Struck]
    moves: Sequence[Moved]
    quiet: Quiet
    findings: Sequence[Finding]
    log: Path
    freezes: Sequence[Frozen] = ()
    walked: Walked | None = None
    """Only with walkers."""

    @property
    def void(self) -> str:
        """Why the walks prove nothing; empty when they prove something, or when nobody walked."""
        return self.walked.why_void() if self.walked is not None else ""

    @property
    def violations(self) -> int:
        """How many violations there are; 0 is the only good answer."""
        return violations(self.findings)


@dataclass(slots=True)
class _Happened:
    """What a load did to the stack beside the orders; grows while it runs."""

    kills: list[Killed] = field(default_factory=list)
    freezes: list[Frozen] = field(default_factory=list)
    moves: list[Moved] = field(default_factory=list)


async def run(state_dir: Path, plan: Plan, say: Callable[[str], None]) -> Outcome:
    """Load a running stack as planned, and check what became of everything. say: takes lines of progress.

    Cancelled, or told to end by SIGTERM, it clears the upstreams' faults, lets what it froze go on, and
    checks nothing.
    Raises: StackDown; PlanRefused when a --kill or --freeze names no process; NoGround when there is no
    history to walk; OpsError when a store cannot be read.
    """
    endpoints = Endpoints.read_here(state_dir)
    task = asyncio.current_task()
    assert task is not None, "run() is a coroutine"
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, task.cancel)
    for kill in plan.kills:
        processes(endpoints, kill.service)
    for freeze in plan.freezes:
        processes(endpoints, freeze.name, "--freeze")
    vips = await _vips(endpoints)
    party = await gathered(endpoints, plan, vips) if plan.walkers else None
    before = await in_motion(endpoints)
    run_id = secrets.token_hex(3)
    began = datetime.now(UTC) - CLOCK_SKEW
    happened = _Happened()
    with AckLog(state_dir / "load" / f"{run_id}.jsonl") as log:
        async with misbehaving(endpoints, plan.faults, plan.seed) as struck:
            cpu, started = time.process_time(), time.monotonic()
            loading = Loading(state_dir, endpoints, plan, run_id, vips, party, happened)
            tally = await loading.load(log, say)
            load_s, cpu_s = time.monotonic() - started, time.process_time() - cpu
    quiet = await until_quiet(endpoints, plan.settle_timeout_s, say, before)
    say(f"{'quiet' if quiet.reached else 'not quiet'} after {quiet.waited_s:g} s; checking")
    if party is not None:
        await party.compare(state_dir, endpoints)
    found = await checks.find(endpoints.shard_dsns(), description(run_id), began)
    findings = [
        *checks.compare(log.entries, found),
        *checks.prove(plan, tally, happened.kills, struck, happened.moves, happened.freezes),
        *(party.walked.findings() if party is not None else ()),
        *await audit.run(endpoints, quiet=quiet.is_still),
    ]
    return Outcome(
        run_id=run_id,
        plan=plan,
        tally=tally,
        load_s=round(load_s, 1),
        cpu_s=round(cpu_s, 1),
        kills=happened.kills,
        faults=struck,
        moves=happened.moves,
        quiet=quiet,
        findings=findings,
        log=log.path,
        freezes=happened.freezes,
        walked=party.walked if party is not None else None,
    )


@dataclass(slots=True)
class Loading:
    """The load of one run, and everything that goes on beside it."""

    state_dir: Path
    endpoints: Endpoints
    plan: Plan
    run_id: str
    vips: Sequence[str]
    party: Party | None
    happened: _Happened

    async def load(self, log: AckLog, say: Callable[[str], None]) -> Tally:
        """Send everything, kill meanwhile, and return when every order is acknowledged or given up."""
        party = self.party
        async with AsyncExitStack() as stack:
            stubs = await stack.enter_async_context(mesh.connect(self.endpoints))
            http = await stack.enter_async_context(
                Http(self.endpoints.gateway, connections_max=IN_FLIGHT_MAX)
            )
            bearers = Bearers(Places(self.state_dir).issuer)
            loop = OpenLoop(
                self.plan,
                grpc=GrpcSender(stubs.orders, self.run_id),
                rest=RestSender(http, bearers, self.run_id),
                log=log,
                heard=party.hear if party is not None else nobody,
            )
            works = {**self._nemesis(stubs), "narrate": self._narrate(loop, say)}
            if party is not None:
                works |= party.works(stubs, http, bearers, list(self.endpoints.shard_dsns()))
            wanted = asks(self.plan, self.run_id, self.vips, party.seeded if party is not None else ())
            async with _beside(works):
                await loop.run(party.asked(wanted) if party is not None else wanted)
            return loop.tally

    def _nemesis(self, stubs: mesh.Mesh) -> dict[str, Coroutine[Any, Any, None]]:
        """What is done to the stack, by name."""
        plan, happened = self.plan, self.happened
        works: dict[str, Coroutine[Any, Any, None]] = {
            f"kill-{number} {kill.service}": Killer(self.state_dir, kill, happened.kills).run()
            for number, kill in enumerate(plan.kills)
        }
        for number, freeze in enumerate(plan.freezes):
            freezer = Freezer(self.state_dir, freeze, happened.freezes)
            works[f"freeze-{number} {freeze.name}"] = freezer.run()
        if plan.vip_moves_every_s:
            own = self.party.seeded if self.party is not None else users_of(plan, self.run_id)
            users = [*own, *self.vips]
            mover = UserMover(
                stubs.routing, users, plan.vip_moves_every_s, plan.seed, happened.moves, set(self.vips)
            )
            works["vip-moves"] = mover.run()
        return works

    async def _narrate(self, loop: OpenLoop, say: Callable[[str], None]) -> None:
        while True:
            await asyncio.sleep(SAY_EVERY_S)
            tally, happened = loop.tally, self.happened
            line = (
                f"{loop.elapsed_s:4.0f} s  {tally.acknowledged} acknowledged of {tally.arrived}, "
                f"{loop.in_flight} in flight, {tally.retries} retries, {tally.shed} shed, "
                f"{len(happened.kills)} kills"
            )
            say(line if self.party is None else f"{line}; {told(self.party.walked)}")


@asynccontextmanager
async def _beside(works: Mapping[str, Coroutine[Any, Any, None]]) -> AsyncIterator[None]:
    """Run endless works, by name, beside the context; one that fails ends it with its error."""
    try:
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(work, name=name) for name, work in works.items()]
            yield
            for task in tasks:
                task.cancel()
    except BaseExceptionGroup as several:
        raise several.exceptions[0] from several


async def _vips(endpoints: Endpoints) -> list[str]:
    return [row["user_id"] for row in await fetch("control", endpoints.control_dsn, _VIPS)]
