"""The admin port: alive, ready, measured, and able to break things on purpose."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator

import httpx
import pytest
from prometheus_client import Counter

from chassis import admin, faults
from chassis.rpc import PortTaken

POINT = faults.declare("test.admin", "nothing is on disk")
SEEN = Counter("test_admin_seen_total", "Counted by a test.")


class Dependency:
    """Something a process needs."""

    def __init__(self) -> None:
        self.error: Exception | None = None
        self.hangs = False

    async def check(self) -> None:
        if self.hangs:
            await asyncio.Event().wait()
        if self.error is not None:
            raise self.error


@pytest.fixture
def database() -> Dependency:
    return Dependency()


@pytest.fixture
def readiness(database: Dependency) -> admin.Readiness:
    return admin.Readiness(database=database.check)


@pytest.fixture
async def port(readiness: admin.Readiness) -> AsyncIterator[httpx.AsyncClient]:
    async with (
        admin.serve("127.0.0.1:0", readiness) as number,
        httpx.AsyncClient(base_url=f"http://127.0.0.1:{number}", trust_env=False) as client,
    ):
        yield client


@pytest.fixture(autouse=True)
def disarmed() -> Iterator[None]:
    yield
    faults.arm("")


async def test_metrics_are_what_prometheus_reads(port: httpx.AsyncClient) -> None:
    SEEN.inc(3)
    answer = await port.get("/metrics")
    assert answer.headers["content-type"].startswith("text/plain; version=")
    assert "test_admin_seen_total 3.0\n" in answer.text
    assert "_created" not in answer.text
    openmetrics = await port.get("/metrics", headers={"accept": "application/openmetrics-text"})
    assert openmetrics.text.endswith("# EOF\n")


async def test_ready_says_what_is_wrong_and_never_how(port: httpx.AsyncClient, database: Dependency) -> None:
    assert (await port.get("/readyz")).json() == {"ready": True, "wrong": {}}
    database.error = OSError("canary-password")
    answer = await port.get("/readyz")
    assert (answer.status_code, answer.json()) == (503, {"ready": False, "wrong": {"database": "OSError"}})
    assert "canary" not in answer.text


async def test_a_check_that_hangs_is_a_failed_check(
    port: httpx.AsyncClient, database: Dependency, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(admin, "CHECK_TIMEOUT_S", 0.05)
    database.hangs = True
    answer = await port.get("/readyz")
    assert (answer.status_code, answer.json()["wrong"]) == (503, {"database": "TimeoutError"})


async def test_a_draining_process_is_alive_but_not_ready(
    port: httpx.AsyncClient, readiness: admin.Readiness
) -> None:
    await readiness.drain()
    assert (await port.get("/healthz")).status_code == 200
    answer = await port.get("/readyz")
    assert (answer.status_code, answer.json()["wrong"]) == (503, {"process": "draining"})


async def test_fault_points_are_armed_shown_and_disarmed(port: httpx.AsyncClient) -> None:
    answer = await port.put("/faults", content=f"{POINT}=raise:2")
    assert answer.json()["armed"] == [POINT]
    assert answer.json()["declared"][POINT] == "nothing is on disk"
    assert (await port.get("/faults")).json()["armed"] == [POINT]
    assert (await port.put("/faults", content="")).json()["armed"] == []


async def test_a_wrong_specification_is_answered_with_why(port: httpx.AsyncClient) -> None:
    for wrong in ("test.nowhere=kill", f"{POINT}=explode", "\xff".encode("latin-1")):
        answer = await port.put("/faults", content=wrong)
        assert answer.status_code == 400
        assert answer.json()["error"]


async def test_a_taken_port_is_one_clear_error_of_the_start(readiness: admin.Readiness) -> None:
    async with admin.serve("127.0.0.1:0", readiness) as taken:
        with pytest.raises(PortTaken, match=f"cannot listen on 127.0.0.1:{taken}"):
            async with admin.serve(f"127.0.0.1:{taken}", readiness):
                pass
    async with admin.serve(f"127.0.0.1:{taken}", readiness) as again:
        assert again == taken, "a stopped process leaves its port to the next one"


async def test_a_request_that_never_ends_does_not_keep_the_process(readiness: admin.Readiness) -> None:
    async with asyncio.timeout(5):
        async with admin.serve("127.0.0.1:0", readiness) as number:
            _, writer = await asyncio.open_connection("127.0.0.1", number)
            writer.write(b"PUT /faults HTTP/1.1\r\nhost: x\r\ncontent-length: 9\r\n\r\n")
            await writer.drain()
            async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{number}", trust_env=False) as client:
                assert (await client.get("/healthz")).text == "alive\n", "so the first one has been read too"
        writer.close()
