"""Checks of the servers besides the primaries: S3, and with --full replicas, Kafka, Elasticsearch."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import httpx

from chassis import pg
from chassis.errors import OrdermeshError
from ops import kafka
from ops.doctor.findings import Finding, Word, bad, ok, warn
from ops.errors import OpsError
from ops.stack import layout, objects

if TYPE_CHECKING:
    from ops.stack.endpoints import S3, Endpoints

ANSWER_TIMEOUT_S = 5.0
LAG_WARN_S = 5.0
"""Reads go to the primary from one second on; so much means that the replica does not keep up."""
LOOKBACK = pg.queries("history_svc", "lookback.sql")
"""A replica is looked at as the gauges look at it."""


async def check(endpoints: Endpoints) -> list[Finding]:
    """Everything about these servers, each within a few seconds; nothing for a stack that has none."""
    parts = []
    if replicas := endpoints.replica_dsns():
        parts.append(_replicas(replicas))
    if endpoints.kafka is not None:
        parts.append(broker(endpoints.kafka))
    if endpoints.elasticsearch is not None:
        parts.append(node(endpoints.elasticsearch, endpoints.elasticsearch_api_key))
    if endpoints.prometheus is not None:
        parts.append(scraper(endpoints.prometheus))
    return [each for part in await asyncio.gather(*parts) for each in part]


async def _replicas(dsns: dict[str, str]) -> list[Finding]:
    found = await asyncio.gather(*(replica(shard, dsn) for shard, dsn in dsns.items()))
    wrong = [each for each in found if each.word is not Word.OK]
    return wrong or [ok("replicas", "; ".join(each.detail for each in found))]


async def replica(shard: str, dsn: str) -> Finding:
    """Whether a shard's replica follows its primary, and how closely."""
    name, unit = f"replica {shard}", f"postgres.{shard}.replica"
    settings = pg.PgSettings(dsn=dsn, pool_size=1, queue=1, read_only=True)
    try:
        async with pg.open_database(settings, name="doctor", eager=True) as opened:
            seen = await opened.fetchrow(LOOKBACK.follows)
    except OrdermeshError as failed:
        return bad(name, f"does not answer: {failed.reason}", f"ordermesh start {unit}, if it was stopped")
    if seen is None or not seen["is_replica"]:
        return bad(
            name, "is no replica: it accepts writes", "stop the stack; remove its data; start it again"
        )
    if not seen["streams"]:
        fix = f"ordermesh stop {unit}, then start it: one that cannot follow is made anew"
        return bad(name, "does not receive from its primary", fix)
    lag_s = seen["lag_s"] or 0.0
    if lag_s > LAG_WARN_S:
        return warn(name, f"lags {lag_s:.0f} s", "it catches up when the load or a long read ends")
    return ok(name, f"{shard} streams, lag {lag_s * 1000:.0f} ms")


async def broker(address: str) -> list[Finding]:
    """Whether Kafka answers and has the topics of the stack, with a leader for each partition."""
    fix = "ordermesh start kafka, if it was stopped; see its log"
    try:
        found = await kafka.topics(address, within_s=ANSWER_TIMEOUT_S)
    except OpsError as failed:
        return [bad("kafka", str(failed), fix)]
    for topic, partitions in layout.TOPICS.items():
        if found.get(topic, 0) < partitions:
            lead = f"{topic}: {found.get(topic, 0)} of {partitions} partitions have a leader"
            return [bad("kafka", lead, "stop the stack and start it again: it makes what is missing")]
    return [ok("kafka", f"{address}, {sum(found.values())} partitions, all with a leader")]


async def bucket(where: S3) -> list[Finding]:
    """Whether S3 answers, and has the stack's bucket."""
    wrong = await objects.why_not(where)
    if wrong:
        return [bad("s3", f"{where.url}: {wrong}", "ordermesh start s3, if it was stopped; see its log")]
    return [ok("s3", f"{where.url} has the bucket {where.bucket}")]


async def scraper(url: str) -> list[Finding]:
    """Whether Prometheus answers, reaches its targets, and tells of anything."""
    fix = "ordermesh start prometheus, if it was stopped; see its log"
    try:
        async with httpx.AsyncClient(base_url=url, timeout=ANSWER_TIMEOUT_S) as client:
            asked = await client.get("/api/v1/targets", params={"state": "active"})
            told = await client.get("/api/v1/alerts")
        targets = asked.raise_for_status().json()["data"]["activeTargets"]
        alerts = told.raise_for_status().json()["data"]["alerts"]
    except httpx.HTTPError as failed:
        return [bad("prometheus", f"{url} does not answer: {type(failed).__name__}", fix)]
    away = sorted(each["labels"]["instance"] for each in targets if each["health"] == "down")
    firing = sorted({each["labels"]["alertname"] for each in alerts if each["state"] == "firing"})
    if away:
        return [warn("prometheus", f"{url} does not reach {', '.join(away)}", "ordermesh top")]
    if firing:
        return [warn("prometheus", f"{url}: {', '.join(firing)}", "docs/runbooks has a section for each")]
    return [ok("prometheus", f"{url} reaches its {len(targets)} targets; nothing fires")]


async def node(url: str, api_key: str = "") -> list[Finding]:
    """Whether Elasticsearch answers, and whether an index of it is broken."""
    fix = "ordermesh start elasticsearch, if it was stopped; see its log"
    try:
        headers = {"authorization": f"ApiKey {api_key}"} if api_key else {}
        async with httpx.AsyncClient(base_url=url, timeout=ANSWER_TIMEOUT_S, headers=headers) as client:
            answer = await client.get("/_cluster/health")
    except httpx.HTTPError as failed:
        return [bad("elasticsearch", f"{url} does not answer: {type(failed).__name__}", fix)]
    if answer.status_code != httpx.codes.OK:
        return [bad("elasticsearch", f"{url} answers {answer.status_code}", fix)]
    health = answer.json()
    detail = f"{url} is {health['status']}, {health['active_shards']} shards"
    if health["status"] == "red":
        return [
            bad("elasticsearch", detail, "GET /_cat/shards names it; an index can be rebuilt from Postgres")
        ]
    return [ok("elasticsearch", detail)]
