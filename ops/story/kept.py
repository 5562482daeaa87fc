"""Lines and spans as they are kept in Elasticsearch's data streams; looked up by order and by trace."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import httpx

from ops.errors import OpsError
from ops.shipper.streams import LOGS, TRACES

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

LINES_MAX = 2000
SPANS_MAX = 2000
TRACES_MAX = 50
"""Traces that are looked into for one order: its own, and those of recovery, relay, indexer and operators."""
TIMEOUT_S = 15.0
_MISSING = 404

Found = list[dict[str, Any]]


class Kept:
    """Asks one Elasticsearch; what was written a moment ago is found as well."""

    def __init__(self, url: str, api_key: str = "") -> None:
        self._url = url
        self._headers = {"authorization": f"ApiKey {api_key}"} if api_key else {}

    def lines(self, *, orders: Iterable[str] = (), traces: Iterable[str] = ()) -> Found:
        """Lines about these orders or of these traces, the oldest first, `LINES_MAX` at most."""
        return self._search(LOGS, {"order_id": list(orders), "trace.id": list(traces)}, LINES_MAX)

    def spans(
        self, *, orders: Iterable[str] = (), traces: Iterable[str] = (), linked: Iterable[str] = ()
    ) -> Found:
        """Spans about these orders, of these traces, or linked to these; `SPANS_MAX` at most."""
        wanted = {"order_id": list(orders), "trace.id": list(traces), "links.trace.id": list(linked)}
        return self._search(TRACES, wanted, SPANS_MAX)

    def _search(self, stream: str, wanted: Mapping[str, list[str]], most: int) -> Found:
        """Raises: OpsError when Elasticsearch does not answer."""
        any_of = [{"terms": {name: of}} for name, of in wanted.items() if of]
        if not any_of:
            return []
        asked = {"size": most, "sort": [{"@timestamp": "asc"}], "query": {"bool": {"should": any_of}}}
        try:
            with httpx.Client(base_url=self._url, timeout=TIMEOUT_S, headers=self._headers) as http:
                if http.post(f"/{stream}/_refresh").status_code == _MISSING:
                    return []
                answer = http.post(f"/{stream}/_search", json=asked)
                answer.raise_for_status()
        except httpx.HTTPError as failed:
            raise OpsError(
                f"Elasticsearch at {self._url} does not answer: {type(failed).__name__}"
            ) from failed
        return [hit["_source"] for hit in answer.json()["hits"]["hits"]]


def traces_in(found: Iterable[Mapping[str, Any]]) -> list[str]:
    """The traces that lines or spans are of, in the order in which they are found."""
    return list(dict.fromkeys(each["trace.id"] for each in found if each.get("trace.id")))
