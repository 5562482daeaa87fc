"""The local stack from start to stop: databases, certificates, processes, the seeded users, and
`endpoints.json` throughout.
"""

from __future__ import annotations

import asyncio
import fcntl
import os
import time
from contextlib import asynccontextmanager, contextmanager
from typing import TYPE_CHECKING

import httpx

from ops import ca, processes
from ops.errors import OpsError
from ops.ports import PortBook
from ops.stack import databases, layout, objects
from ops.stack.endpoints import Endpoints
from ops.stack.plan import PORT_NAMES, Plan
from ops.stack.servers import Servers, remember
from ops.stack.supervisor import Supervisor, together
from ops.stack.units import Process, Server

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator, Mapping
    from pathlib import Path

    from ops.prometheus import PrometheusServer
    from ops.stack.endpoints import State

READY_TIMEOUT_S = 60.0
RENEW_EVERY_S = 1800.0
"""Leaves live a day and are renewed eight hours before their end."""
_RESTARTS_MAX = 4
"""A process that died this often before it was ever ready will not come up by itself."""
_LOG_TAIL_BYTES = 2000


class LocalStack:
    """One running stack. Made by `running`."""

    def __init__(self, plan: Plan, supervisor: Supervisor) -> None:
        self._plan = plan
        self._supervisor = supervisor
        self._units: list[Process | Server] = []
        self._state: State = "starting"
        self._began = time.monotonic()
        self._took_s: dict[str, float] = {}
        self._http = httpx.AsyncClient(timeout=2.0)

    @property
    def endpoints(self) -> Endpoints:
        """What runs now."""
        return self._plan.endpoints(self._state, os.getpid(), self._units, self._took_s)

    @property
    def prometheus(self) -> PrometheusServer | None:
        """The Prometheus of a full stack."""
        return self._plan.servers.prometheus

    def publish(self) -> None:
        """Write endpoints.json."""
        self.endpoints.write(self._plan.places.state)

    @contextmanager
    def timed(self, part: str) -> Iterator[None]:
        """Note how long a part of the start takes."""
        began = time.monotonic()
        yield
        self._took_s[part] = round(time.monotonic() - began, 1)

    def say(self, state: State) -> None:
        """Enter another state and publish it."""
        if state == "ready":
            self._took_s["ready"] = round(time.monotonic() - self._began, 1)
        self._state = state
        self.publish()

    async def start(self, *units: Process | Server) -> None:
        """Bring units up and keep them alive."""
        self._units.extend(units)
        await self._supervisor.start(*units)

    async def until_ready(self) -> None:
        """Wait until every process says that it can be given work.

        Raises: OpsError with the end of its log when one does not come up; PortBusy when it is somebody else
        that says so.
        """
        end = time.monotonic() + READY_TIMEOUT_S
        waiting = [unit for unit in self._units if isinstance(unit, Process) and unit.admin_url]
        while waiting:
            self._supervisor.check()
            answers = await asyncio.gather(*(self._is_ready(process) for process in waiting))
            waiting = [process for process, ready in zip(waiting, answers, strict=True) if not ready]
            for process in waiting:
                if self._supervisor.restarts[process.name] >= _RESTARTS_MAX or time.monotonic() > end:
                    raise OpsError(
                        f"{process.name} does not come up; its log ends with:\n{_tail(process.log_path)}"
                    )
            await asyncio.sleep(0.1)

    async def _is_ready(self, process: Process) -> bool:
        try:
            answer = await self._http.get(f"{process.admin_url}/readyz")
        except httpx.HTTPError:
            return False
        ours = [process.pid] if process.pid else []
        return answer.status_code == httpx.codes.OK and processes.listens(
            ours, process.admin_port, f"admin port of {process.name}"
        )

    async def close(self) -> None:
        """Stop everything, those who take work in first."""
        self.say("stopping")
        await self._http.aclose()
        await self._supervisor.close(*layout.STOP_ORDER)
        self.say("stopped")


@asynccontextmanager
async def running(
    state_dir: Path,
    *,
    port_base: int,
    full: bool = False,
    extra: Mapping[str, Mapping[str, str]] | None = None,
    durable: bool = True,
) -> AsyncIterator[LocalStack]:
    """A ready stack while the context lives.

    full:    with Kafka, Elasticsearch, and a Postgres server with a replica for each shard.
    extra:   settings of single processes without their prefix, such as `{"order_svc.s1": {"FAULTS": "..."}}`.
    durable: False switches fsync off, for tests.
    Raises: OpsError in one sentence: a port is busy, the disk full, another stack runs here, a process does
    not come up, the directory holds the other kind of stack.
    """
    state_dir.mkdir(parents=True, exist_ok=True)
    where = layout.Places(state_dir)
    with _only_one(state_dir):
        remember(where, "full" if full else "small")
        book = PortBook.open(state_dir)
        book.renew_busy()
        edge = book.edge(port_base)
        for name in PORT_NAMES:
            book.port_of(name)
        _make_identities(where)
        servers = (Servers.full if full else Servers.small)(state_dir, book, durable=durable)
        supervisor = Supervisor(where.hold, lambda: stack.publish())
        stack = LocalStack(Plan(where, edge, book, servers, extra or {}), supervisor)
        try:
            await _bring_up(stack, where, servers)
            async with _renewing(where):
                yield stack
        finally:
            await stack.close()


async def _bring_up(stack: LocalStack, where: layout.Places, servers: Servers) -> None:
    """Start everything, side by side where nothing waits for it; the read side last."""
    plan = stack._plan  # noqa: SLF001 - the two halves of one start
    for directory in ("ledgers", "shard_proxy", "gateway"):
        (where.state / directory).mkdir(exist_ok=True)
    await together(_bring_up_s3(stack, servers), _bring_up_services(stack, plan, servers))
    stack.say("ready")


async def _bring_up_services(stack: LocalStack, plan: Plan, servers: Servers) -> None:
    """Everything that keeps or reads orders."""
    await together(
        _bring_up_orders(stack, plan, servers),
        _bring_up_kafka(stack, servers),
        _bring_up_elasticsearch(stack, servers),
        _bring_up_prometheus(stack, plan, servers),
    )
    with stack.timed("services"):
        await stack.start(*plan.readers())
        await stack.until_ready()


async def _bring_up_orders(stack: LocalStack, plan: Plan, servers: Servers) -> None:
    """The databases, and everything that needs only them; then the replicas."""
    with stack.timed("postgres"):
        await stack.start(*servers.primaries())
    with stack.timed("databases"):
        await together(
            databases.prepare_control(servers.control),
            *(databases.prepare_shard(server, shard) for shard, server in servers.shards.items()),
        )
        plan.dsns = {"control": servers.control.dsn("control")} | {
            shard: server.dsn(shard) for shard, server in servers.shards.items()
        }
        if servers.elasticsearch is None:
            plan.read_model_dsn = await databases.prepare_read_model(servers.shards[layout.SHARDS[0]])
        await databases.fill_map(
            servers.control,
            lanes=plan.lanes(),
            history=plan.address("history_svc"),
            services={name: plan.address(name) for name in ("recovery_svc", "projector", "archive_svc")},
        )
    await stack.start(*plan.processes())
    if servers.replicas:
        with stack.timed("replicas"):
            await stack.start(*servers.standbys())
        plan.replicas = {shard: replica.dsn(shard) for shard, replica in servers.replicas.items()}


async def _bring_up_kafka(stack: LocalStack, servers: Servers) -> None:
    if servers.kafka is not None:
        with stack.timed("kafka"):
            await stack.start(Server("kafka", servers.kafka))
            await servers.kafka.create_topics(layout.TOPICS)


async def _bring_up_elasticsearch(stack: LocalStack, servers: Servers) -> None:
    if servers.elasticsearch is not None:
        with stack.timed("elasticsearch"):
            await stack.start(Server("elasticsearch", servers.elasticsearch))


async def _bring_up_prometheus(stack: LocalStack, plan: Plan, servers: Servers) -> None:
    if servers.prometheus is not None:
        with stack.timed("prometheus"):
            servers.prometheus.watch(plan.targets())
            await stack.start(Server("prometheus", servers.prometheus))


async def _bring_up_s3(stack: LocalStack, servers: Servers) -> None:
    with stack.timed("s3"):
        await stack.start(Server("s3", servers.s3))
        await objects.prepare_bucket(objects.endpoint(servers.s3))


def _make_identities(where: layout.Places) -> None:
    ca.renew_due(where.tls)
    ca.ensure_subject_keys(where.subject)
    ca.ensure_issuer(where.issuer)


@asynccontextmanager
async def _renewing(where: layout.Places) -> AsyncIterator[None]:
    """Renew leaves in the background; services notice by themselves."""

    async def renew() -> None:
        while True:
            await asyncio.sleep(RENEW_EVERY_S)
            ca.renew_due(where.tls)

    task = asyncio.create_task(renew(), name="renew-certificates")
    try:
        yield
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


def runs_in(state_dir: Path) -> bool:
    """Whether a stack holds the lock of the state directory; a pid in a file may be another's by now."""
    try:
        with _only_one(state_dir):
            return False
    except OpsError:
        return True


@contextmanager
def _only_one(state_dir: Path) -> Iterator[None]:
    """Hold the lock of the state directory; the kernel lets it go when we die."""
    with (state_dir / "lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise OpsError(
                f"a stack runs in {state_dir}; stop it with `ordermesh down`, or name another --state-dir"
            ) from None
        yield


def _tail(path: Path) -> str:
    try:
        return path.read_bytes()[-_LOG_TAIL_BYTES:].decode(errors="replace")
    except OSError:
        return "(no log)"
