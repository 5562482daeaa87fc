"""Checks of a running stack: its processes, certificates, databases, and the map its proxy routes with."""

from __future__ import annotations

import asyncio
import os
import time
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

import grpc
import httpx
from cryptography import x509

from chassis import pg, rpc
from chassis.errors import OrdermeshError
from ops.ca import LEAF_LIFETIME
from ops.doctor import servers
from ops.doctor.findings import Finding, Word, bad, ok, warn
from ops.mesh import connect
from ops.stack.servers import log_of
from ordermesh.routing.v1 import routing_service_pb2 as routing

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from ops.stack.endpoints import DatabaseEndpoint, Endpoints, Service
    from ops.stack.layout import Places

READY_TIMEOUT_S = 3.0
CALL_TIMEOUT_S = 5.0
MAP_FOLLOWS_WITHIN_S = 3.0
"""The proxy looks once a second."""
_POLL_S = 0.25
SKEW_WARN_S = 1.0
SKEW_MAX_S = 5.0
"""Beyond this order_svc refuses to make ids."""
AHEAD_MIN = {"outbox": timedelta(days=2)}
AHEAD_MIN_MONTHLY = timedelta(days=59)
"""With two months ahead of the current one it is never less; archive_svc keeps three."""
QUERIES = pg.queries("ops.doctor")


async def check(endpoints: Endpoints, where: Places) -> list[Finding]:
    """Everything that can be said of a stack, each part within a few seconds."""
    parts = await asyncio.gather(
        processes(endpoints.services, where),
        databases(endpoints),
        map_version(endpoints),
        servers.check(endpoints),
    )
    # Afterwards: loading the driver of S3 keeps this process busy, and the others' deadlines would pass.
    objects = await servers.bucket(endpoints.s3) if endpoints.s3 is not None else []
    return [certificates(where.tls), *(each for part in (*parts, objects) for each in part)]


async def processes(services: tuple[Service, ...], where: Places) -> list[Finding]:
    """Whether each process lives and says that it is ready; one line when all do."""
    async with httpx.AsyncClient(timeout=READY_TIMEOUT_S) as client:
        found = await asyncio.gather(*(_process(client, each, where) for each in services))
    wrong = [each for each in found if each.word is not Word.OK]
    return wrong or [ok("processes", f"{len(found)} run and are ready")]


async def _process(client: httpx.AsyncClient, service: Service, where: Places) -> Finding:
    name = f"{service.name}.{service.shard}" if service.shard else service.name
    if (where.hold / name).exists():
        return bad(name, "is kept down by `ordermesh stop`", f"ordermesh start {name}")
    look = f"see {_log(name, where)}"
    if not service.pid or not _lives(service.pid):
        return bad(name, "does not run", f"it is started again within 2 s; if it is not, {look}")
    return await ready(client, service, name, f"pid {service.pid}", look)


async def ready(client: httpx.AsyncClient, service: Service, name: str, who: str, fix: str) -> Finding:
    """Whether a process says that it is ready, where it shows anything."""
    if service.metrics_url is None:
        return ok(name, who)
    try:
        answer = await client.get(service.metrics_url.removesuffix("/metrics") + "/readyz")
    except httpx.HTTPError as failed:
        return bad(name, f"{who} does not answer: {type(failed).__name__}", fix)
    if answer.status_code != httpx.codes.OK:
        return bad(name, f"{who} is not ready: {answer.text.strip()[:200]}", fix)
    return ok(name, who)


def _log(name: str, where: Places) -> Path:
    return log_of(where.state, name) or where.log(name)


def _lives(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def certificates(tls_dir: Path, *, at: datetime | None = None) -> Finding:
    """How long the first certificate to end still lives."""
    now = at or datetime.now(UTC)
    ends: dict[str, datetime] = {}
    for path in sorted(tls_dir.glob("*/cert.pem")):
        try:
            ends[path.parent.name] = x509.load_pem_x509_certificate(path.read_bytes()).not_valid_after_utc
        except (OSError, ValueError) as damaged:
            return bad("certificates", f"{path}: {type(damaged).__name__}", _RENEW)
    if not ends:
        return bad("certificates", f"none in {tls_dir}", _RENEW)
    first = min(ends, key=lambda name: ends[name])
    left = ends[first] - now
    detail = f"{len(ends)}; the first to end is {first}'s, in {left.total_seconds() / 3600:.1f} h"
    if left <= timedelta():
        return bad("certificates", f"{first}'s has ended", _RENEW)
    if left < LEAF_LIFETIME / 4:
        return warn("certificates", detail, f"it should have been renewed by now; {_RENEW}")
    return ok("certificates", detail)


_RENEW = "the stack makes and renews them at its start: ordermesh down, then ordermesh dev"


async def databases(endpoints: Endpoints) -> list[Finding]:
    """Whether each shard answers, its clock is ours, and its partitions reach far enough ahead."""
    shards = [each for each in endpoints.databases if each.role == "shard"]
    own = {each.name for each in endpoints.services} & {f"postgres.{each.shard}" for each in shards}
    parts = await asyncio.gather(
        *(_database(each, f"postgres.{each.shard}" if own else "postgres.shards") for each in shards)
    )
    found = [each for part in parts for each in part]
    wrong = [each for each in found if each.word is not Word.OK]
    return wrong or [ok("databases", "; ".join(each.detail for each in found))]


async def _database(database: DatabaseEndpoint, server: str) -> list[Finding]:
    settings = pg.PgSettings(dsn=database.dsn, pool_size=1, queue=2, read_only=True)
    name = f"database {database.shard or database.role}"
    try:
        async with pg.open_database(settings, name="doctor", eager=True) as opened:
            before = datetime.now(UTC)
            theirs = await opened.fetchval(QUERIES.time_now)
            ours = before + (datetime.now(UTC) - before) / 2
            ends = {row["name"]: row["ends_at"] for row in await opened.fetch(QUERIES.partitions_end)}
    except OrdermeshError as failed:
        fix = f"ordermesh start {server}, if it was stopped; see its log"
        return [bad(name, f"does not answer: {failed.reason}", fix)]
    return [clock(name, theirs - ours), partitions(name, ends, theirs)]


def clock(name: str, ahead: timedelta) -> Finding:
    """Whether a database's clock agrees with this process's."""
    skew_s = ahead.total_seconds()
    detail = f"{name}: clock {skew_s * 1000:+.0f} ms"
    fix = "synchronise the clocks (chrony or ntpd); beyond 5 s creates are refused"
    if abs(skew_s) > SKEW_MAX_S:
        return bad(name, detail, fix)
    if abs(skew_s) > SKEW_WARN_S:
        return warn(name, detail, fix)
    return ok(name, detail)


def partitions(name: str, ends: Mapping[str, datetime | None], at: datetime) -> Finding:
    """Whether every partitioned table has room for the time ahead."""
    fix = "archive_svc makes them, see its log"
    if not ends:
        return bad(name, "no partitioned table of ours", "is this one of our shards? see endpoints.json")
    for table, end in ends.items():
        if end is None or end <= at:
            return bad(name, f"{table} has no partition for now: creates fail", fix)
        if end - at < AHEAD_MIN.get(table, AHEAD_MIN_MONTHLY):
            return warn(name, f"{table} ends in {(end - at) / timedelta(days=1):.1f} days", fix)
    ahead = {table: (end - at) / timedelta(days=1) for table, end in ends.items() if end is not None}
    months = min((days for table, days in ahead.items() if table not in AHEAD_MIN), default=0.0)
    days = min((days for table, days in ahead.items() if table in AHEAD_MIN), default=0.0)
    return ok(name, f"partitions for {months:.0f} days ahead, of the outbox for {days:.0f}")


async def map_version(endpoints: Endpoints) -> list[Finding]:
    """Whether the proxy answers, and routes with the map that the control database has."""
    fix = "the proxy follows within a second when the control database answers; see logs/shard_proxy.log"
    try:
        wanted = await _control_version(endpoints)
        routed = await _proxy_version(endpoints, wanted)
    except OrdermeshError as failed:
        text = f"the control database does not answer: {failed.reason}"
        return [warn("map", text, "orders go on; `ordermesh start postgres.control` if it was stopped")]
    except grpc.aio.AioRpcError as failed:
        said = rpc.error_of(failed)
        return [bad("map", f"the proxy does not answer: {said.reason or said.code.name}", fix)]
    if routed != wanted:
        return [bad("map", f"the proxy routes with version {routed}, control has {wanted}", fix)]
    return [ok("map", f"the proxy routes with version {routed}, as control has it")]


async def _control_version(endpoints: Endpoints) -> int:
    settings = pg.PgSettings(dsn=endpoints.control_dsn, pool_size=1, queue=2, read_only=True)
    async with pg.open_database(settings, name="doctor", eager=True) as control:
        return int(await control.fetchval(QUERIES.map_version))


async def _proxy_version(endpoints: Endpoints, wanted: int) -> int:
    """The proxy's version once it is at least the wanted one, or whatever it is when the time is up."""
    end = time.monotonic() + MAP_FOLLOWS_WITHIN_S
    async with connect(endpoints) as mesh:
        while True:
            answer = await mesh.routing.ListShards(routing.ListShardsRequest(), timeout=CALL_TIMEOUT_S)
            if answer.map_version >= wanted or time.monotonic() > end:
                return max(answer.map_version, 0)
            await asyncio.sleep(_POLL_S)
