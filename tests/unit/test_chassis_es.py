"""A call to Elasticsearch takes no longer than it may, whoever answers or does not."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest

from chassis.es import EsSettings, EsUnavailable, open_elastic


@pytest.fixture
async def deaf() -> AsyncIterator[str]:
    """The address of somebody who takes connections and never says a word."""
    over = asyncio.Event()

    async def listen(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await over.wait()
        writer.close()

    server = await asyncio.start_server(listen, "127.0.0.1", 0)
    host, port = server.sockets[0].getsockname()
    yield f"http://{host}:{port}"
    over.set()
    server.close()


async def test_a_call_that_nobody_answers_ends_by_its_own_time(deaf: str):
    async with open_elastic(EsSettings(addresses=(deaf,))) as elastic:
        with pytest.raises(EsUnavailable, match=r"no answer in 0\.05 s"):
            await elastic.call("GET", "/", timeout_s=0.05)
        with pytest.raises(EsUnavailable, match=r"no answer in 0\.06 s"):
            await elastic.bulk(b"{}\n", timeout_s=0.06)
