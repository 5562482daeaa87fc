"""Asks the queries of dashboards as Grafana does: variables are filled in, then Prometheus, a replica or
Elasticsearch is asked.

Reads the generated JSON and the provisioned data sources alone, as Grafana does; nothing here knows what
they are generated from.
"""

from __future__ import annotations

import json
import math
import re
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit, urlunsplit

import asyncpg
import httpx
import yaml

ROOT = Path(__file__).resolve().parent.parent.parent
DEPLOY = ROOT / "deploy/grafana"
ROLE = "ordermesh_dashboards"
PASSWORD = "dashboards"
BACK_S = 600
STEP_S = 5
RATE_INTERVAL = "20s"
STARTS = "no_shard_available_action_exception"
"""Of an index that was made a moment ago."""
_VARIABLE = re.compile(r"\$\{(\w+)(?::\w+)?\}|\$(\w+)")


class NotYetThere(Exception):
    """An index was made a moment ago and answers nothing yet; to be asked again."""


@dataclass(frozen=True)
class Target:
    """One query of one panel."""

    board: str
    panel: str
    kind: str
    asked: dict[str, Any]

    def __str__(self) -> str:
        return f"{self.board}: {self.panel}: {self.asked['refId']}"

    @property
    def key(self) -> tuple[str, str, str]:
        return self.board, self.panel, self.asked["refId"]

    @property
    def source(self) -> str:
        return str(self.asked["datasource"]["uid"])

    def differing(self, choices: list[dict[str, str]]) -> list[dict[str, str]]:
        """Those of some choices with which it asks something else than with the ones before."""
        texts = {filled(json.dumps(self.asked), chosen): chosen for chosen in reversed(choices)}
        return list(texts.values())[::-1]


def dashboards() -> dict[str, dict[str, Any]]:
    """Every committed dashboard by its name."""
    return {
        path.stem: json.loads(path.read_text(encoding="utf-8"))
        for path in sorted((DEPLOY / "dashboards").glob("*.json"))
    }


def panels(board: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Everything that is shown, also within rows that are folded."""
    for panel in board["panels"]:
        if panel["type"] == "row":
            yield from panel.get("panels", ())
        else:
            yield panel


def targets() -> list[Target]:
    """Every query of every panel."""
    return [
        Target(name, panel["title"], panel["type"], target)
        for name, board in dashboards().items()
        for panel in panels(board)
        for target in panel["targets"]
    ]


def variables(board: dict[str, Any]) -> list[dict[str, Any]]:
    """What stands at the top of a dashboard."""
    found: list[dict[str, Any]] = board["templating"]["list"]
    return found


def data_sources() -> dict[str, dict[str, Any]]:
    """What Grafana is told to ask, by uid."""
    text = (DEPLOY / "provisioning/datasources/ordermesh.yml").read_text(encoding="utf-8")
    return {each["uid"]: each for each in yaml.safe_load(text)["datasources"]}


def filled(text: str, chosen: dict[str, str]) -> str:
    """A query with its variables filled in. Raises: KeyError for one that the dashboard does not have."""
    known = {"__rate_interval": RATE_INTERVAL, "__interval": f"{STEP_S}s", "__range": f"{BACK_S}s"} | chosen
    return _VARIABLE.sub(lambda found: known[found[1] or found[2]], text)


async def make_role(dsn: str) -> None:
    """Make the role of dashboards on a primary as deploy/grafana/role.sql makes it, with a password."""
    connection = await asyncpg.connect(dsn)
    try:
        await connection.execute((DEPLOY / "role.sql").read_text(encoding="utf-8"))
        await connection.execute(f"ALTER ROLE {ROLE} PASSWORD '{PASSWORD}'")
    finally:
        await connection.close()


def as_role(dsn: str) -> str:
    """The same database, asked by the role of dashboards."""
    parts = urlsplit(dsn)
    return urlunsplit(parts._replace(netloc=f"{ROLE}:{PASSWORD}@{parts.hostname}:{parts.port}"))


@dataclass(frozen=True)
class Servers:
    """Where the data sources are. replicas: addresses with the role of dashboards, by shard."""

    http: httpx.AsyncClient
    prometheus: str
    elasticsearch: str
    replicas: dict[str, str]

    async def values(self, variable: dict[str, Any], chosen: dict[str, str]) -> list[str]:
        """What a variable can be set to."""
        match variable["type"]:
            case "query":
                asked = re.fullmatch(r"label_values\((.+), (\w+)\)", variable["query"]["query"])
                assert asked, variable
                path = f"/api/v1/label/{asked[2]}/values"
                found = await self._prometheus(path, {"match[]": filled(asked[1], chosen)})
                return list(found)
            case "datasource":
                named = re.compile(variable["regex"].strip("/"))
                return [
                    uid
                    for uid, source in data_sources().items()
                    if source["type"] == variable["query"] and named.search(source["name"])
                ]
            case "textbox":
                return [variable["query"]]
            case other:
                raise AssertionError(f"nobody knows how to ask a variable of type {other}")

    async def ask(self, target: Target, chosen: dict[str, str]) -> int:
        """How many values a query gives: numbers, rows or lines. Raises what is wrong with it."""
        source = data_sources()[filled(target.source, chosen)]
        match source["type"]:
            case "prometheus":
                return await self._series(target, chosen)
            case "grafana-postgresql-datasource":
                return await self._rows(target, source, chosen)
            case "elasticsearch":
                return await self._found(target, source, chosen)
            case other:
                raise AssertionError(f"nobody knows how to ask {other}")

    async def _prometheus(self, path: str, params: dict[str, str]) -> Any:
        answer = (await self.http.get(self.prometheus + path, params=params)).json()
        assert answer["status"] == "success", f"{params}: {answer}"
        return answer["data"]

    async def _series(self, target: Target, chosen: dict[str, str]) -> int:
        expression = filled(target.asked["expr"], chosen)
        if target.asked.get("instant"):
            found = await self._prometheus("/api/v1/query", {"query": expression})
            samples = [series["value"] for series in found["result"]]
        else:
            end = time.time()
            span = {"start": f"{end - BACK_S}", "end": f"{end}", "step": f"{STEP_S}"}
            found = await self._prometheus("/api/v1/query_range", {"query": expression, **span})
            samples = [sample for series in found["result"] for sample in series["values"]]
        return sum(not math.isnan(float(value)) for _, value in samples)

    async def _rows(self, target: Target, source: dict[str, Any], chosen: dict[str, str]) -> int:
        shard = source["jsonData"]["database"]
        connection = await asyncpg.connect(self.replicas[shard], timeout=5.0)
        try:
            return len(await connection.fetch(filled(target.asked["rawSql"], chosen)))
        finally:
            await connection.close()

    async def _found(self, target: Target, source: dict[str, Any], chosen: dict[str, str]) -> int:
        """As Grafana's backend asks: one search in the source's indices, of the chosen time."""
        index = source["jsonData"]["index"]
        body = json.dumps({"index": index, "ignore_unavailable": True}) + "\n"
        body += json.dumps(search(target.asked, source["jsonData"]["timeField"], chosen)) + "\n"
        kind = {"content-type": "application/x-ndjson"}
        answer = await self.http.post(f"{self.elasticsearch}/_msearch", content=body, headers=kind)
        (found,) = answer.json()["responses"]
        assert "error" not in found, f"{target}: {found}"
        failures = found["_shards"].get("failures", ())
        if failures and all(each["reason"]["type"] == STARTS for each in failures):
            raise NotYetThere(f"{target}: {found['_shards']}")
        assert found["_shards"]["failed"] == 0, f"{target}: {found['_shards']}"
        if "aggregations" not in found:
            return len(found["hits"]["hits"])
        return sum(1 for _ in leaves(found["aggregations"]))


def search(asked: dict[str, Any], time_field: str, chosen: dict[str, str]) -> dict[str, Any]:
    """A query of Grafana's Elasticsearch source as the search that it becomes."""
    now_ms = int(time.time() * 1000)
    span = {"gte": now_ms - 6 * 3_600_000, "lte": now_ms, "format": "epoch_millis"}
    words = {"analyze_wildcard": True, "query": filled(asked["query"] or "*", chosen)}
    query = {"bool": {"filter": [{"range": {time_field: span}}, {"query_string": words}]}}
    (metric,) = asked["metrics"]
    if metric["type"] == "logs":
        order = [{time_field: {"order": "desc", "unmapped_type": "boolean"}}]
        return {"size": int(metric["settings"]["limit"]), "query": query, "sort": order}
    aggregations: dict[str, Any] = {}
    if metric["type"] != "count":
        settings = {name: int(value) for name, value in metric["settings"].items()}
        aggregations = {metric["id"]: {metric["type"]: {"field": metric["field"], **settings}}}
    for bucket in reversed(asked["bucketAggs"]):
        aggregations = {bucket["id"]: {**_bucket(bucket, now_ms), "aggs": aggregations}}
    return {"size": 0, "query": query, "aggs": aggregations}


def _bucket(bucket: dict[str, Any], now_ms: int) -> dict[str, Any]:
    settings = bucket["settings"]
    match bucket["type"]:
        case "date_histogram":
            assert settings["interval"] == "auto"
            shape = {
                "field": bucket["field"],
                "fixed_interval": "60s",
                "min_doc_count": int(settings["min_doc_count"]),
                "extended_bounds": {"min": now_ms - 6 * 3_600_000, "max": now_ms},
                "format": "epoch_millis",
            }
        case "terms":
            shape = {
                "field": bucket["field"],
                "size": int(settings["size"]),
                "min_doc_count": int(settings["min_doc_count"]),
                "order": {settings["orderBy"]: settings["order"]},
            }
        case other:
            raise AssertionError(f"nobody knows how to ask for {other}")
    return {bucket["type"]: shape}


def leaves(aggregations: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Buckets with something in them that have no buckets within."""
    for each in aggregations.values():
        for bucket in each.get("buckets", ()):
            within = {name: value for name, value in bucket.items() if isinstance(value, dict)}
            if any("buckets" in value for value in within.values()):
                yield from leaves(within)
            elif bucket["doc_count"]:
                yield bucket
