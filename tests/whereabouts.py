"""Where an order stands and why, in words for the message of a test that waited for it in vain.

Read past the services, since it may be a service that does not answer.
"""

import json
from collections.abc import Mapping
from datetime import datetime
from pathlib import Path
from uuid import UUID

import asyncpg
import grpc
from google.protobuf import text_format

from ops.mesh import Mesh
from ops.stack import layout
from ordermesh.recovery.v1.recovery_service_pb2 import GetRecoveryStatusRequest

LINES_MAX = 12
LINE_CHARS_MAX = 300
READ_S_MAX = 5.0
TIMER = """
SELECT t.*, t.due_at - ordermesh.clock() AS due_in, t.lease_until - ordermesh.clock() AS lease_left,
       ordermesh.clock() AS shard_clock, ordermesh.clock() - clock_timestamp() AS shard_clock_ahead
  FROM order_timers t WHERE t.order_id = $1
"""
JOURNAL = "SELECT * FROM order_journal WHERE order_id = $1 ORDER BY version"
ORDER = "SELECT status, stage, leg, attempt, version, updated_at FROM orders WHERE order_id = $1"
HOLDS = "SELECT scope, reason, until_at FROM holds WHERE lifted_at IS NULL"


async def in_shard(dsn: str, order_id: str) -> str:
    """The order's row, its journal and its timer, and the holds of the shard; empty when it is not there."""
    try:
        database = await asyncpg.connect(
            dsn,
            timeout=READ_S_MAX,
            command_timeout=READ_S_MAX,
            server_settings={"search_path": "ordermesh"},
        )
    except (OSError, asyncpg.PostgresError) as failed:
        return f"the database does not answer: {failed!r}"
    try:
        key = UUID(order_id)
        order = await database.fetchrow(ORDER, key)
        if order is None:
            return ""
        timer = await database.fetchrow(TIMER, key)
        lines = [f"order: {_facts(order)}", f"timer: {'none' if timer is None else _facts(timer)}"]
        lines += [f"hold: {_facts(hold)}" for hold in await database.fetch(HOLDS)]
        lines += [_entry(entry) for entry in await database.fetch(JOURNAL, key)]
        return "\n".join(lines)
    except (TimeoutError, asyncpg.PostgresError) as failed:
        return f"the database does not tell: {failed!r}"
    finally:
        await database.close(timeout=READ_S_MAX)


async def in_mesh(dsns: Mapping[str, str], mesh: Mesh, places: layout.Places, order_id: str) -> str:
    """What every shard, recovery and the logs know about an order."""
    parts = []
    for shard, dsn in dsns.items():
        if found := await in_shard(dsn, order_id):
            parts += [f"-- shard {shard}", found, *_logged(places.log(f"order_svc.{shard}"), order_id)]
    parts += ["-- recovery", await _recovery(mesh), *_logged(places.log("recovery_svc"), order_id)]
    if places.faults_fired.exists():
        fired = places.faults_fired.read_text().splitlines()[-LINES_MAX:]
        parts += ["-- faults that fired", *fired]
    return "\n".join(parts)


async def _recovery(mesh: Mesh) -> str:
    try:
        status = await mesh.recovery.GetRecoveryStatus(GetRecoveryStatusRequest(), timeout=READ_S_MAX)
    except grpc.aio.AioRpcError as failed:
        return f"recovery does not answer: {failed.code().name} {failed.details()}"
    return text_format.MessageToString(status, as_one_line=True)


def _facts(row: Mapping[str, object] | asyncpg.Record) -> str:
    return ", ".join(f"{name}={_word(value)}" for name, value in row.items() if value is not None)


def _word(value: object) -> str:
    return value.isoformat(timespec="milliseconds") if isinstance(value, datetime) else str(value)


def _entry(entry: asyncpg.Record) -> str:
    names = ("at", "version", "kind", "from_stage", "to_stage", "leg", "attempt", "actor", "evidence")
    return f"journal: {_facts({name: entry[name] for name in names})}"


def _logged(log: Path, order_id: str) -> list[str]:
    """The last lines that speak of the order, or of something that went wrong."""
    if not log.exists():
        return [f"{log.name}: there is none"]
    lines = [line for line in log.read_text(errors="replace").splitlines() if _tells(line, order_id)]
    return [f"{log.name}: {line[:LINE_CHARS_MAX]}" for line in lines[-LINES_MAX:]]


def _tells(line: str, order_id: str) -> bool:
    if order_id in line:
        return True
    try:
        level = json.loads(line).get("log.level", "warning")
    except (ValueError, AttributeError):
        return True
    return level not in ("debug", "info")
