"""The small HTTP client of the load generator against real sockets."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from ops.load.http import ConnectionLost, Http

OK = b"HTTP/1.1 201 Created\r\ncontent-length: 2\r\nRetry-After: 3\r\n\r\n{}"


@asynccontextmanager
async def served(*answers: bytes | None) -> AsyncIterator[tuple[str, list[int]]]:
    """Answer requests in turn; None closes the connection, empty bytes say nothing. Yields requests per
    connection.
    """
    connections: list[int] = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        number = len(connections)
        connections.append(0)
        try:
            while head := await reader.readuntil(b"\r\n\r\n"):
                await reader.readexactly(int(head.lower().split(b"content-length: ")[1].split(b"\r\n")[0]))
                answer = answers[min(sum(connections), len(answers) - 1)]
                connections[number] += 1
                if answer is None:
                    break
                writer.write(answer)
        except asyncio.IncompleteReadError:
            pass
        finally:
            writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    try:
        yield f"http://127.0.0.1:{port}", connections
    finally:
        server.close()


async def post(http: Http, timeout_s: float = 2.0):
    return await http.post("/v1/orders", {"x-test": "1"}, b"{}", timeout_s=timeout_s)


async def test_answers_come_back_whole_and_connections_are_kept():
    async with served(OK) as (url, connections), Http(url) as http:
        answers = [await post(http) for _ in range(3)]
        assert {(answer.status, answer.body, answer.headers["retry-after"]) for answer in answers} == {
            (201, b"{}", "3")
        }
        assert connections == [3]


async def test_a_server_that_closes_is_reached_by_a_new_connection():
    closing = OK.replace(b"Retry-After: 3", b"Connection: close")
    async with served(closing) as (url, connections), Http(url) as http:
        assert [(await post(http)).status for _ in range(2)] == [201, 201]
        assert connections == [1, 1]


async def test_a_lost_connection_and_a_silent_server_are_told_apart():
    async with served(None, b"", OK) as (url, _), Http(url) as http:
        with pytest.raises(ConnectionLost):
            await post(http)
        with pytest.raises(TimeoutError):
            await post(http, timeout_s=0.2)
        assert (await post(http)).status == 201


async def test_no_more_connections_are_opened_than_allowed():
    async with served(OK) as (url, connections), Http(url, connections_max=2) as http:
        await asyncio.gather(*(post(http) for _ in range(20)))
        assert len(connections) <= 2
        assert sum(connections) == 20


async def test_rubbish_is_a_lost_connection():
    async with served(b"SSH-2.0-OpenSSH_9.2\r\n\r\n") as (url, _), Http(url) as http:
        with pytest.raises(ConnectionLost):
            await post(http)
