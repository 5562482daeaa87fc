"""ops.elasticsearch on real nodes: documents outlive kills, no index is made by mistake, no process stays."""

import os
import signal
import socket
from collections.abc import AsyncIterator
from pathlib import Path
from uuid import uuid4

import pytest
from elasticsearch import AsyncElasticsearch, NotFoundError

from ops import ports, processes
from ops.elasticsearch import ElasticsearchServer
from ops.errors import PortBusy

pytestmark = pytest.mark.timeout(
    300
)  # A start computes for ten seconds, on a machine that others use as well.


@pytest.fixture
async def own(server_dir: Path) -> AsyncIterator[ElasticsearchServer]:
    """A node of the test's own, not yet started."""
    directory = server_dir / f"elasticsearch-{uuid4().hex}" / "node"
    server = ElasticsearchServer(directory, ports.free_port(), ports.free_port(), quick=True)
    yield server
    await server.stop()


async def test_a_document_survives_the_kill_of_its_node_and_the_node_starts_again(
    own: ElasticsearchServer,
) -> None:
    await own.start()
    async with AsyncElasticsearch(own.url) as client:
        await client.indices.create(index="orders", mappings={"properties": {"user_id": {"type": "keyword"}}})
        await client.index(index="orders", id="1", document={"user_id": "alice"}, refresh=True)
    launcher, server = processes.with_argument(own.mark)
    os.kill(server, signal.SIGKILL)
    assert await own.died() != 0
    await own.start()
    async with AsyncElasticsearch(own.url) as client:
        found = await client.search(index="orders", query={"term": {"user_id": "alice"}})
    assert [hit["_id"] for hit in found["hits"]["hits"]] == ["1"]
    assert own.pid not in {None, launcher}
    await own.stop()
    assert processes.with_argument(own.mark) == []


async def test_an_index_that_nobody_made_is_refused_not_made(elasticsearch: ElasticsearchServer) -> None:
    index = f"orders-{uuid4().hex}"
    async with AsyncElasticsearch(elasticsearch.url) as client:
        with pytest.raises(NotFoundError, match="index_not_found"):
            await client.index(index=index, document={"user_id": "alice"})
        await client.indices.create(index=index)
        made = await client.index(index=index, document={"user_id": "alice"})
    assert made["result"] == "created"


async def test_a_busy_port_is_named(own: ElasticsearchServer) -> None:
    with (
        socket.create_server(("127.0.0.1", own.port)),
        pytest.raises(PortBusy, match=f"Port {own.port}"),
    ):
        await own.start()
    assert processes.with_argument(own.mark) == []
