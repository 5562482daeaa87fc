"""The read model in Elasticsearch: an index per month and generation, written by external versions.

An index takes documents of exactly our fields, is sorted as lists are, and cannot be made by a document that
comes too early. Everything that is left out of an answer makes it a failure: a missing index, a shard that
did not answer, a search that ran out of time.

Each index is sealed: it has an alias that says its own UUID, and searches name that alias. So one that was
lost and made again, whenever that happened, is not found instead of answering short. One thing brings an
alias back under another UUID: a snapshot restored with its aliases; so the UUIDs are looked at as well, at
most a second old when a search begins. Within that second such an index is believed; restore without aliases
(docs/howto/care-for-the-index.md).
"""

from __future__ import annotations

import secrets
import time
from contextlib import contextmanager
from datetime import UTC, date, datetime
from typing import TYPE_CHECKING, Any, NamedTuple

import orjson

from chassis.es import REASON_CHARS_MAX, EsRefused, EsUnavailable, names_in_path
from history_svc.document import columns, from_us, to_us
from history_svc.errors import IndexNotOurs, ReadModelUnavailable, TooMuchAtOnce
from history_svc.page import Key, Row
from history_svc.readmodel.fields import FIELDS, NOT_SHOWN, Field, Holds
from history_svc.readmodel.port import DaySum, Entry, IndexIdentity, Outcome, Verdict
from history_svc.readmodel.witness import Witness

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from chassis.es import Elastic
    from history_svc.page import Window
    from history_svc.readmodel.port import Place, Write

BODY_BYTES_MAX = 32 * 1024 * 1024
"""Elasticsearch closes the connection on a body over 100 MB rather than to say so."""
REFRESH_TIMEOUT_S = 15.0
CARE_TIMEOUT_S = 15.0
"""Of what nobody waits for on a screen."""
PING_TIMEOUT_S = 1.0
DAY_US = 86_400_000_000
_TEMPLATE = "ordermesh-orders"
_MALFORMED, _STALE, _TOO_LARGE = 400, 409, 413
ITEM_SHARE = 0.8
"""Of a bulk's time an item may wait for its shard to come back, so that the others are heard of in time."""
_ITEMS = {"filter_path": "errors,items.*.status,items.*.error.type,items.*.error.reason"}
_LATER_STATES = (429, 502, 503, 504)
_LATER_KINDS = ("cluster_block_exception", "index_closed_exception")
"""Lifted by a person, or by itself when the disk has room again."""
_STORED = Outcome(Verdict.STORED)
_STALE_OUTCOME = Outcome(Verdict.STALE)
SEALS_TRIED_MAX = 3
"""So often an index is sealed again when somebody else does the same, or makes the index again meanwhile."""
_CLAIM_LOST = ("index_not_found_exception", "aliases_not_found_exception", "illegal_argument_exception")
_AT = "created_at"
"""When an order was created once more, as a date: dashboards need one, and nothing of ours reads it."""
_STRICT = {"ignore_unavailable": "false", "allow_no_indices": "false", "expand_wildcards": "none"}


class Layout(NamedTuple):
    """How indices are made. replicas: copies beside the first one; none on a single node."""

    shards: int = 1
    replicas: int = 0


class _Sealing(NamedTuple):
    """An index with its seal and the aliases that it has of those that we give, at one moment."""

    name: str
    seal: str
    ours: frozenset[str]


class ElasticReadModel:
    """Documents in Elasticsearch."""

    def __init__(
        self, elastic: Elastic, layout: Layout, *, refresh_timeout_s: float = REFRESH_TIMEOUT_S
    ) -> None:
        self._elastic = elastic
        self._witness = Witness(elastic)
        self._layout = layout
        self._refresh_timeout_s = refresh_timeout_s

    async def create(self, name: str) -> IndexIdentity:
        """The index of this name, made when it is missing, and sealed."""
        with _typed_errors():
            await self._elastic.call("PUT", f"/_index_template/{_TEMPLATE}", body=_template(self._layout))
            try:
                await self._elastic.call("PUT", f"/{names_in_path([name])}", body={})
            except EsRefused as refused:
                if refused.kind != "resource_already_exists_exception":
                    raise
        await self.seal([name])
        found = await self.identities([name])
        if name not in found:
            raise ReadModelUnavailable(index=name)
        return found[name]

    async def identities(self, names: Sequence[str]) -> dict[str, IndexIdentity]:
        """Those of some indices that exist."""
        if not names:
            return {}
        wanted = "cluster_uuid,metadata.indices.*.settings.index.uuid"
        with _typed_errors():
            state = await self._elastic.call(
                "GET", f"/_cluster/state/metadata/{names_in_path(names)}", params={"filter_path": wanted}
            )
        indices = state.get("metadata", {}).get("indices", {})
        return {
            name: IndexIdentity(name, state["cluster_uuid"], index["settings"]["index"]["uuid"])
            for name, index in indices.items()
            if name in names
        }

    async def seal(self, names: Sequence[str]) -> None:
        """Have searches find some indices, each as the one that it is."""
        for _ in range(SEALS_TRIED_MAX):
            unsealed = [each.name for each in await self._sealings(names) if each.ours != {each.seal}]
            if not unsealed:
                return
            for name in unsealed:
                await self._seal(name)
        raise ReadModelUnavailable(unsealed="yes")

    async def _seal(self, name: str) -> None:
        """Give an index the alias of its UUID.

        There is no way to say which index of a name is meant: it may be made again between the look at its
        UUID and the alias. So it is claimed first, by an alias that nobody else can make; a look says what
        UUID the claimed one has; and one request takes the claim away and gives the alias, or does nothing.
        """
        claim = f"{name}.claim-{secrets.token_hex(8)}"
        with _typed_errors():
            try:
                await self._alias({"add": {"index": name, "alias": claim}})
                for found in await self._sealings([name]):
                    if claim in found.ours:
                        strays = sorted(found.ours - {claim, found.seal})
                        await self._alias(
                            {"remove": {"index": name, "alias": claim, "must_exist": True}},
                            {"add": {"index": name, "alias": found.seal}},
                            *({"remove": {"index": name, "alias": stray}} for stray in strays),
                        )
            except EsRefused as refused:
                # It is gone, or somebody else's claim went first; the next look tells.
                if refused.kind not in _CLAIM_LOST:
                    raise

    async def _alias(self, *actions: dict[str, Any]) -> None:
        await self._elastic.call("POST", "/_aliases", body={"actions": actions})

    async def _sealings(self, names: Sequence[str]) -> list[_Sealing]:
        """How those of some indices that exist are sealed."""
        if not names:
            return []
        wanted = "metadata.indices.*.settings.index.uuid,metadata.indices.*.aliases"
        with _typed_errors():
            state = await self._elastic.call(
                "GET", f"/_cluster/state/metadata/{names_in_path(names)}", params={"filter_path": wanted}
            )
        return [
            _Sealing(
                name,
                _seal(name, index["settings"]["index"]["uuid"]),
                frozenset(alias for alias in index.get("aliases", ()) if alias.startswith(f"{name}.")),
            )
            for name, index in state.get("metadata", {}).get("indices", {}).items()
            if name in names
        ]

    async def drop(self, name: str) -> None:
        """Remove an index with all its documents."""
        with _typed_errors():
            try:
                await self._elastic.call("DELETE", f"/{names_in_path([name])}")
            except EsRefused as refused:
                if refused.kind != "index_not_found_exception":
                    raise

    async def write(self, writes: Sequence[Write], *, timeout_s: float) -> list[Outcome]:
        """Put documents into their indices; one outcome for each, in the same order."""
        try:
            body = b"".join([_lines(write) for write in writes])
        except TypeError as odd:  # What JSON cannot say.
            return _alone(writes, str(odd))
        if not writes or len(body) > BODY_BYTES_MAX:
            return _alone(writes, "too large") if writes else []
        with _typed_errors():
            try:
                params = {**_ITEMS, "timeout": f"{max(1, int(timeout_s * 1000 * ITEM_SHARE))}ms"}
                answer = await self._elastic.bulk(body, params=params, timeout_s=timeout_s)
            except EsRefused as refused:
                if refused.status not in (_MALFORMED, _TOO_LARGE):
                    raise
                return _alone(writes, str(refused))
        if not answer["errors"]:
            return [_STORED] * len(writes)
        return [_outcome(item["index"]) for item in answer["items"]]

    async def refresh(self, names: Sequence[str]) -> None:
        """Make everything that was stored in some indices searchable, on every copy.

        A shard whose first copy is away is waited for, and after a minute it counts as not successful but not
        as failed (8.19); so does a replica that is away, which is no harm. The health tells which it was.
        """
        if not names:
            return
        path = names_in_path(names)
        with _typed_errors():
            shards = await self._refresh(path)
            if shards["failed"] == 0 and shards["successful"] == shards["total"]:
                return
            health = await self._elastic.call("GET", f"/_cluster/health/{path}")
            again = await self._refresh(path)
        if health["status"] == "red" or again["failed"] or again["successful"] < health["active_shards"]:
            raise ReadModelUnavailable(refreshed=again["successful"], of=again["total"])

    async def _refresh(self, path: str) -> dict[str, int]:
        answer = await self._elastic.call(
            "POST", f"/{path}/_refresh", params=_STRICT, timeout_s=self._refresh_timeout_s
        )
        shards: dict[str, int] = answer["_shards"]
        return shards

    async def search(
        self,
        places: Sequence[Place],
        window: Window,
        *,
        routing: Sequence[str],
        limit: int,
        timeout_s: float,
    ) -> list[Row]:
        """The newest orders of a window, newest first, at most `limit`; complete down to the last one."""
        if not places:
            return []
        end = time.monotonic() + timeout_s
        indices = [place.index for place in places]
        look = self._witness.begin([index.name for index in indices])
        seals = [_seal(index.name, index.index_uuid) for index in indices]
        rows = await self.found(seals, places, window, routing, limit, timeout_s)
        with _typed_errors():
            left_s = max(0.001, end - time.monotonic())
            there = await self._witness.uuids(look, timeout_s=left_s)
        for index in indices:
            if there.get(index.name) != index.index_uuid:
                raise IndexNotOurs(index=index.name)
        return rows

    async def found(
        self,
        names: Sequence[str],
        places: Sequence[Place],
        window: Window,
        routing: Sequence[str],
        limit: int,
        timeout_s: float,
    ) -> list[Row]:
        """What is found in the indices of some names, or in all that have these aliases; as `search`, with
        nothing else proven.

        Raises: IndexNotOurs when one is not there; ReadModelUnavailable.
        """
        params = {}
        if routing:
            params["routing"] = ",".join(routing)
        if window.user_id is not None:
            # The same copy for the same user, so that a list does not go back between two pages.
            params["preference"] = f"user-{window.user_id}"
        asked = {
            "size": limit,
            "query": _all(*_in_window(window), *_in_places(places)),
            "sort": [{"created_us": "desc"}, {"order_id": "desc"}],
            "search_after": [to_us(window.before.created_at), str(window.before.order_id)],
            "_source": {"excludes": [*NOT_SHOWN, _AT]},
        }
        hits = await self._search(names, asked, params, timeout_s)
        return [_row(hit["_source"]) for hit in hits["hits"]["hits"]]

    async def sums(self, name: str, partitions: Sequence[int]) -> list[DaySum]:
        """An index summed up by stream partition and day of creation (UTC), for some partitions.

        Sums are doubles there: exact up to two million orders of one partition in one day.
        """
        if not partitions:
            return []
        of_day = {"versions": {"sum": {"field": "version"}}, "hashes": {"sum": {"field": "h32"}}}
        days = {"histogram": {"field": "created_us", "interval": DAY_US, "min_doc_count": 1}, "aggs": of_day}
        parts = {"terms": {"field": "stream_partition", "size": len(partitions)}, "aggs": {"days": days}}
        asked = {
            "size": 0,
            "query": _all({"terms": {"stream_partition": list(partitions)}}, _ALIVE),
            "aggs": {"partitions": parts},
        }
        found = await self._search([name], asked, {"request_cache": "false"}, CARE_TIMEOUT_S)
        return [
            DaySum(
                int(part["key"]),
                from_us(int(day["key"])).date(),
                day["doc_count"],
                round(day["versions"]["value"]),
                round(day["hashes"]["value"]),
            )
            for part in found["aggregations"]["partitions"]["buckets"]
            for day in part["days"]["buckets"]
        ]

    async def entries(self, name: str, partition: int, day: date, *, after: str, limit: int) -> list[Entry]:
        """The documents of one day and stream partition, by order id, after one of them."""
        start = to_us(datetime(day.year, day.month, day.day, tzinfo=UTC))
        asked = {
            "size": limit,
            "query": _all(
                {"term": {"stream_partition": partition}},
                {"range": {"created_us": {"gte": start, "lt": start + DAY_US}}},
                _ALIVE,
            ),
            "sort": [{"order_id": "asc"}],
            "search_after": [after],
            "_source": False,
            "version": True,
        }
        found = await self._search([name], asked, {}, CARE_TIMEOUT_S)
        return [Entry(hit["_id"], hit["_version"]) for hit in found["hits"]["hits"]]

    async def ping(self) -> None:
        """Ask whether it is there, within a second."""
        params = {"filter_path": "status", "local": "true"}
        with _typed_errors():
            await self._elastic.call("GET", "/_cluster/health", params=params, timeout_s=PING_TIMEOUT_S)

    async def _search(
        self, names: Sequence[str], asked: dict[str, Any], params: dict[str, str], timeout_s: float
    ) -> dict[str, Any]:
        """An answer that left nothing out."""
        asked = {"track_total_hits": False, "timeout": f"{max(1, int(timeout_s * 1000))}ms", **asked}
        with _typed_errors():
            found = await self._elastic.call(
                "POST",
                f"/{names_in_path(names)}/_search",
                params={"allow_partial_search_results": "false", **_STRICT, **params},
                body=orjson.dumps(asked),
                timeout_s=timeout_s,
            )
        if found["timed_out"] or found["_shards"]["failed"]:
            raise ReadModelUnavailable(failed=found["_shards"]["failed"])
        return found


def _template(layout: Layout) -> dict[str, Any]:
    """What every index is made by; `allow_auto_create` keeps a document from making one."""
    settings = {
        "number_of_shards": layout.shards,
        "number_of_replicas": layout.replicas,
        # Documents become searchable by `refresh` only, which the watermark waits for.
        "refresh_interval": "-1",
        "mapping.coerce": False,
        "sort.field": ["created_us", "order_id"],
        "sort.order": ["desc", "desc"],
    }
    mappings = {
        "dynamic": "strict",
        "_routing": {"required": True},
        "properties": {name: _mapping(field) for name, field in FIELDS.items()}
        | {_AT: {"type": "date", "format": "epoch_millis"}},
    }
    return {
        "index_patterns": ["orders-v*"],
        "allow_auto_create": False,
        "template": {"settings": {"index": settings}, "mappings": mappings},
    }


def _mapping(field: Field) -> dict[str, Any]:
    kept = {"index": field.is_searched, "doc_values": field.is_sorted}
    match field.holds:
        case Holds.WORD | Holds.WORDS:
            return {"type": "keyword", **kept}
        case Holds.NUMBER:
            return {"type": "long", **kept}
        case Holds.FLAG:
            return {"type": "boolean", **kept}
        case Holds.OBJECT:
            return {"type": "object", "enabled": False}


def _seal(name: str, uuid: str) -> str:
    """The alias that only this very index has."""
    return f"{name}.{uuid}"


_ALIVE = {"term": {"deleted": False}}


def _all(*clauses: dict[str, Any]) -> dict[str, Any]:
    return {"bool": {"filter": list(clauses)}}


def _in_places(places: Sequence[Place]) -> list[dict[str, Any]]:
    """What keeps a search to the stream partitions that count in each index; nothing when all do."""
    whole = [place.index.name for place in places if place.stream_partitions is None]
    if len(whole) == len(places):
        return []
    some = [
        _all({"term": {"_index": place.index.name}}, {"terms": {"stream_partition": place.stream_partitions}})
        for place in places
        if place.stream_partitions is not None
    ]
    return [{"bool": {"should": [{"terms": {"_index": whole}}, *some], "minimum_should_match": 1}}]


def _in_window(window: Window) -> list[dict[str, Any]]:
    shown = window.filter
    created = {"gte": to_us(window.not_before), "lte": to_us(window.before.created_at)}
    clauses: list[dict[str, Any]] = [_ALIVE, {"range": {"created_us": created}}]
    words = {
        "user_id": window.user_id,
        "status": shown.status,
        "kind": shown.kind,
        "currency_code": shown.currency_code,
    }
    clauses += [{"term": {name: word}} for name, word in words.items() if word is not None]
    clauses += [{"term": {"terms": word}} for word in shown.asked]
    amount = {"gte": shown.amount_min, "lte": shown.amount_max}
    if amount := {bound: value for bound, value in amount.items() if value is not None}:
        clauses.append({"range": {"amount_minor": amount}})
    return clauses


def _row(found: dict[str, Any]) -> Row:
    row = columns(found)
    return Row(Key(row["created_at"], row["order_id"]), row["version"], row)


def _alone(writes: Sequence[Write], reason: str) -> list[Outcome]:
    """The outcome where one write spoils all that are sent with it: refused, once it is alone.

    Raises: TooMuchAtOnce while it is not.
    """
    if len(writes) > 1:
        raise TooMuchAtOnce
    return [Outcome(Verdict.REFUSED, reason[:REASON_CHARS_MAX])]


def _lines(write: Write) -> bytes:
    document = write.document
    action = {
        "_index": write.index,
        "_id": document["order_id"],
        "routing": document["read_routing"],
        "version": document["version"],
        "version_type": "external_gte" if write.again else "external",
    }
    created_us = document.get("created_us")
    if isinstance(created_us, int):  # What it else may be is refused there.
        document = document | {_AT: created_us // 1000}
    return b"%b\n%b\n" % (orjson.dumps({"index": action}), orjson.dumps(document))


def _outcome(item: dict[str, Any]) -> Outcome:
    """What became of one item of a bulk."""
    status: int = item["status"]
    if status < 300:
        return _STORED
    if status == _STALE:
        return _STALE_OUTCOME
    error = item.get("error", {})
    kind = str(error.get("type"))
    reason = f"{kind}: {error.get('reason')}"[:REASON_CHARS_MAX]
    if status in _LATER_STATES or status >= 500 or kind in _LATER_KINDS:
        return Outcome(Verdict.LATER, reason)
    if kind == "index_not_found_exception":
        return Outcome(Verdict.MISSING, reason)
    return Outcome(Verdict.REFUSED, reason)


@contextmanager
def _typed_errors() -> Iterator[None]:
    try:
        yield
    except EsUnavailable as away:
        raise ReadModelUnavailable(because=away) from away
    except EsRefused as refused:
        kind = IndexNotOurs if refused.kind == "index_not_found_exception" else ReadModelUnavailable
        raise kind(because=refused.kind) from refused
