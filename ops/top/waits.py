"""Why things wait: sessions, locks and slots of the shards, holds of recovery, and what the metrics say."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from chassis import pg
from chassis.errors import OrdermeshError
from ops.mesh import TIMEOUT_S, CallFailed
from ordermesh.recovery.v1 import recovery_service_pb2 as recovery

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator, Mapping

    from ops.mesh import Mesh
    from ops.top.readings import Change, Reading

QUERIES: Final = pg.queries("ops.top", "waits.sql")
STATEMENT_S: Final = 2.0
HELD_S_MIN: Final = 2.0
"""Shorter transactions are work, not a reason to wait."""
KEPT_MIN: Final = 1000
"""Transactions; a replica is always some behind."""
SLOT_BYTES_MIN: Final = 16 * 1024 * 1024
NO_WORD: Final = frozenset(
    {"UNAVAILABLE", "DEADLINE_EXCEEDED", "INTERNAL", "UNKNOWN", "RESOURCE_EXHAUSTED", "MALFORMED"}
)
"""What an upstream says to a submission that leaves the order as it was."""
ILL_SHARE: Final = 0.5
"""Of what an upstream was asked. The alerts UpstreamFails and ProbesFail have the same, over minutes and
from a least rate on; here one submission that fails is seen.
"""


@dataclass(frozen=True, slots=True)
class Wait:
    """One reason. where: a shard, a process or `mesh`."""

    where: str
    what: str
    why: str


async def of_shards(dsns: Mapping[str, str]) -> list[Wait]:
    """What the shards' sessions say; a shard that does not answer is a reason itself."""
    found = await asyncio.gather(*(_of_shard(shard, dsn) for shard, dsn in dsns.items()))
    return [wait for waits in found for wait in waits]


async def _of_shard(shard: str, dsn: str) -> list[Wait]:
    settings = pg.PgSettings(dsn=dsn, pool_size=1, queue=4, read_only=True)
    try:
        async with pg.open_database(settings, name="top") as database:
            return [wait async for wait in _sessions(shard, database)]
    except OrdermeshError as failed:
        return [Wait(shard, "its database does not answer", failed.reason.value)]


async def _sessions(shard: str, database: pg.Database) -> AsyncIterator[Wait]:
    holder = await database.fetchrow(QUERIES.holder, timeout_s=STATEMENT_S)
    if holder is not None and holder["age_s"] >= HELD_S_MIN:
        who = f"{holder['who']} ({holder['state']})"
        yield Wait(shard, f"a transaction is {holder['age_s']:.0f} s old", f"{who}: {holder['query']}")
    outside = await database.fetchrow(QUERIES.held_from_outside, timeout_s=STATEMENT_S)
    if outside is not None and outside["kept"] >= KEPT_MIN:
        why = f"{outside['who']}: look there for a query that runs for long"
        yield Wait(shard, f"nothing of the last {outside['kept']} transactions is cleaned up", why)
    blocked = await database.fetchrow(QUERIES.blocked, timeout_s=STATEMENT_S)
    if blocked is not None:
        why = f"pid {blocked['pid']} has waited {blocked['waits_s'] or 0:.0f} s for pid {blocked['held_by']}"
        yield Wait(shard, f"{blocked['sessions']} sessions wait for a lock", why)
    slot = await database.fetchrow(QUERIES.slots, timeout_s=STATEMENT_S)
    if slot is not None and slot["behind_bytes"] >= SLOT_BYTES_MIN:
        state = "is read" if slot["active"] else "is read by nobody"
        behind = f"{slot['behind_bytes'] / 2**20:.0f} MiB"
        yield Wait(shard, f"a replication slot keeps {behind} of log", f"{slot['slot']} {state}")


async def of_recovery(mesh: Mesh) -> list[Wait]:
    """Holds that are in force, and shards that recovery does not reach."""
    try:
        answer = await mesh.recovery.GetRecoveryStatus(recovery.GetRecoveryStatusRequest(), timeout=TIMEOUT_S)
    except CallFailed as failed:
        return [Wait("mesh", "recovery does not answer", failed.code().name)]
    found = []
    for shard in answer.shards:
        if not shard.reachable:
            found.append(Wait(shard.shard, "recovery does not reach it", "see ordermesh doctor"))
        found += [
            Wait(shard.shard, f"recovery is held ({hold.scope})", f"{hold.actor}: {hold.reason}")
            for hold in shard.holds
        ]
    return found


def of_metrics(reading: Reading) -> Iterator[Wait]:
    """What the processes themselves say stands still."""
    for process in reading.processes:
        if process.away:
            yield Wait(process.name, "shows no metrics", "it is down or stuck: ordermesh doctor")
    for labels, up in reading.values("ordermesh_proxy_lane_up"):
        if not up:
            yield Wait(labels["lane"], "its lane is not connected", "callers get UNAVAILABLE")
    for _, up in reading.values("ordermesh_proxy_control_up"):
        if not up:
            yield Wait("mesh", "the control database does not answer", "calls go by the last map")
    for labels, is_held in reading.values("ordermesh_index_held"):
        if is_held:
            yield Wait(
                labels["shard"], "the index waits", "a gap, or too many refusals: ordermesh index status"
            )
    for labels, seen in reading.values("ordermesh_lookback_up"):
        if not seen:
            yield Wait(labels["shard"], "its replica does not answer", "what hangs there is not known")
    for name, what in (("halted", "the archive is halted"), ("months_quarantined", "months are set aside")):
        for labels, value in reading.values(f"ordermesh_archive_{name}"):
            if value:
                yield Wait(labels["shard"], what, "ordermesh archive status")


def of_upstreams(change: Change) -> Iterator[Wait]:
    """Upstreams that gave no word to half of what they were asked between two looks; recovery asks again."""
    submits, probes = "ordermesh_order_submits_total", "ordermesh_recovery_probes_total"
    for upstream, rate in change.rates(submits, "upstream").items():
        said = change.rates(submits, "said", upstream=upstream)
        ill = {word: each for word, each in said.items() if word in NO_WORD}
        if sum(ill.values()) >= ILL_SHARE * rate:
            what = f"{sum(ill.values()) / rate:.0%} of submissions to {upstream} fail"
            yield Wait("mesh", what, f"{', '.join(ill)}: recovery asks it what became of them")
    for upstream, rate in change.rates(probes, "upstream").items():
        answered = change.rates(probes, "probe_class", upstream=upstream).get("ANSWERED", 0.0)
        if answered <= (1 - ILL_SHARE) * rate:
            what = f"{1 - answered / rate:.0%} of probes of {upstream} bring no answer"
            yield Wait("mesh", what, "recovery asks again, later and later: ordermesh recovery status")
