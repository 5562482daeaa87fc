"""The data streams of lines and spans on a real Elasticsearch: how long they keep what is in them."""

from __future__ import annotations

from typing import Any
from uuid import uuid4

import httpx
import pytest

from ops.elasticsearch import ElasticsearchServer
from ops.shipper import streams
from tests.telemetry import grafana

pytestmark = pytest.mark.timeout(300)
PAGE = grafana.ROOT / "docs/howto/watch-production.md"
AT = "2026-09-01T12:30:15.123456789Z"


async def kept(http: httpx.AsyncClient, stream: str) -> dict[str, Any]:
    """What a data stream says of how long it keeps documents."""
    wanted = {"filter_path": f"metadata.data_stream.data_stream.{stream}.lifecycle"}
    answer = (await http.get("/_cluster/state/metadata", params=wanted)).raise_for_status()
    found = answer.json()["metadata"]["data_stream"]["data_stream"][stream]
    return dict(found["lifecycle"])


@pytest.mark.parametrize("stream", [streams.LOGS, streams.TRACES])
async def test_a_stream_keeps_its_documents_as_long_as_the_page_says(
    elasticsearch: ElasticsearchServer, stream: str
) -> None:
    another = f"{stream.removesuffix('default')}{uuid4().hex}"
    async with httpx.AsyncClient(base_url=elasticsearch.url, timeout=30.0) as http:
        await streams.install(http)
        document = {"@timestamp": AT, "trace.id": uuid4().hex}
        made = await http.put(f"/{another}/_create/one", json=document)
        assert made.status_code == httpx.codes.CREATED, made.text
        assert made.json()["_index"].startswith(f".ds-{another}-"), "it is a data stream, not an index"
        seen = await kept(http, another)
    assert seen["enabled"] is True
    days = seen["data_retention"].removesuffix("d")
    assert f"are kept for {days} days" in PAGE.read_text(encoding="utf-8")
