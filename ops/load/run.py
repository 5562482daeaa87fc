"""One load run from start to verdict: load with kills and faults, heal, wait for quiet, check."""

from __future__ import annotations

import asyncio
import secrets
import time
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

from ops import audit, mesh
from ops.audit.findings import Finding, violations
from ops.audit.shards import fetch
from ops.load import checks
from ops.load.asks import asks, description, users_of
from ops.load.faults import Struck, misbehaving
from ops.load.http import Http
from ops.load.kills import Killed, Killer, processes
from ops.load.log import AckLog
from ops.load.moves import Moved, UserMover
from ops.load.open_loop import OpenLoop
from ops.load.plan import IN_FLIGHT_MAX
from ops.load.quiet import Quiet, until_quiet
from ops.load.senders import GrpcSender, RestSender
from ops.stack.endpoints import Endpoints
from ops.stack.layout import Places

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Coroutine, Mapping, Sequence
    from pathlib import Path

    from ops.load.plan import Plan
    from ops.load.tallies import Tally

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

    @property
    def violations(self) -> int:
        """How many violations there are; 0 is the only good answer."""
        return violations(self.findings)


async def run(state_dir: Path, plan: Plan, say: Callable[[str], None]) -> Outcome:
    """Load a running stack as planned, and check what became of everything. say: takes lines of progress.

    Cancelled, it clears the upstreams' faults and checks nothing.
    Raises: StackDown; PlanRefused when a --kill names no process; OpsError when a store cannot be read.
    """
    endpoints = Endpoints.read(state_dir)
    for kill in plan.kills:
        processes(endpoints, kill.service)
    run_id = secrets.token_hex(3)
    began = datetime.now(UTC) - CLOCK_SKEW
    kills: list[Killed] = []
    moves: list[Moved] = []
    with AckLog(state_dir / "load" / f"{run_id}.jsonl") as log:
        async with misbehaving(endpoints, plan.faults, plan.seed) as struck:
            cpu, started = time.process_time(), time.monotonic()
            tally = await _load(state_dir, endpoints, plan, run_id, log, kills, moves, say)
            load_s, cpu_s = time.monotonic() - started, time.process_time() - cpu
    quiet = await until_quiet(endpoints, plan.settle_timeout_s, say)
    say(f"{'quiet' if quiet.reached else 'not quiet'} after {quiet.waited_s:g} s; checking")
    found = await checks.find(endpoints.shard_dsns(), description(run_id), began)
    findings = [
        *checks.compare(log.entries, found),
        *checks.prove(plan, tally, kills, struck, moves),
        *await audit.run(endpoints, quiet=quiet.reached),
    ]
    return Outcome(
        run_id=run_id,
        plan=plan,
        tally=tally,
        load_s=round(load_s, 1),
        cpu_s=round(cpu_s, 1),
        kills=kills,
        faults=struck,
        moves=moves,
        quiet=quiet,
        findings=findings,
        log=log.path,
    )


async def _load(
    state_dir: Path,
    endpoints: Endpoints,
    plan: Plan,
    run_id: str,
    log: AckLog,
    kills: list[Killed],
    moves: list[Moved],
    say: Callable[[str], None],
) -> Tally:
    """Send everything, kill meanwhile, and return when every order is acknowledged or given up."""
    vips = await _vips(endpoints)
    async with AsyncExitStack() as stack:
        stubs = await stack.enter_async_context(mesh.connect(endpoints))
        http = await stack.enter_async_context(Http(endpoints.gateway, connections_max=IN_FLIGHT_MAX))
        loop = OpenLoop(
            plan,
            grpc=GrpcSender(stubs.orders, run_id),
            rest=RestSender(http, Places(state_dir).issuer, run_id),
            log=log,
        )
        works = {
            f"kill-{number} {kill.service}": Killer(state_dir, kill, kills).run()
            for number, kill in enumerate(plan.kills)
        }
        if plan.vip_moves_every_s:
            users = [*users_of(plan, run_id), *vips]
            mover = UserMover(stubs.routing, users, plan.vip_moves_every_s, plan.seed, moves, set(vips))
            works["vip-moves"] = mover.run()
        async with _beside(works | {"narrate": _narrate(loop, kills, say)}):
            await loop.run(asks(plan, run_id, vips))
        return loop.tally


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


async def _narrate(loop: OpenLoop, kills: Sequence[Killed], say: Callable[[str], None]) -> None:
    while True:
        await asyncio.sleep(SAY_EVERY_S)
        tally = loop.tally
        say(
            f"{loop.elapsed_s:4.0f} s  {tally.acknowledged} acknowledged of {tally.arrived}, "
            f"{loop.in_flight} in flight, {tally.retries} retries, {tally.shed} shed, {len(kills)} kills"
        )


async def _vips(endpoints: Endpoints) -> list[str]:
    return [row["user_id"] for row in await fetch("control", endpoints.control_dsn, _VIPS)]
