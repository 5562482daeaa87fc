"""Server-sent events of an order: each change once, resumable, ended in time, bounded in number."""

import asyncio
import json
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import httpx
import pytest

from chassis.errors import ShardUnavailable
from chassis.testing import eventually
from gateway.metrics import SHED, STREAMS
from tests import gateways
from tests.gateways import Rest

WITHIN_S = 10.0


@pytest.fixture(scope="module")
async def directory(tmp_path_factory):
    return tmp_path_factory.mktemp("gateway")


@pytest.fixture
async def rest(directory) -> AsyncIterator[Rest]:
    async with gateways.opened(directory, profile="local", heartbeat_s=0.05) as opened:
        yield opened


class Events:
    """The events of one stream, as an EventSource reads them."""

    def __init__(self, answer: httpx.Response) -> None:
        self.answer = answer
        self._lines = answer.aiter_lines()
        self.comments: list[str] = []

    async def next(self) -> dict[str, Any] | None:
        """The next event; None at the end of the stream."""
        found: dict[str, Any] = {}
        async with asyncio.timeout(WITHIN_S):
            async for line in self._lines:
                name, _, value = line.partition(": ")
                if line.startswith(":"):
                    self.comments.append(line)
                elif name == "data":
                    found["order"] = json.loads(value)
                elif line:
                    found[name] = value
                elif "order" in found:
                    return found
        return None

    async def comment(self) -> str:
        """Wait for a sign of life."""
        async with asyncio.timeout(WITHIN_S):
            async for line in self._lines:
                if line.startswith(":"):
                    return line
        raise AssertionError("the stream ended")


@asynccontextmanager
async def following(rest: Rest, order_id: str, user: str = "alice", **headers: str) -> AsyncIterator[Events]:
    url = f"/v1/orders/{order_id}/events"
    async with rest.http.stream("GET", url, headers=rest.headers(user, **headers)) as answer:
        yield Events(answer)


async def new_order(rest: Rest, user: str = "alice") -> str:
    order_id: str = (await rest.create(user)).json()["orderId"]
    return order_id


async def test_a_follower_sees_each_change_once_and_the_stream_ends_with_the_outcome(rest):
    order_id = await new_order(rest)
    async with following(rest, order_id) as events:
        assert events.answer.headers["content-type"].startswith("text/event-stream")
        assert events.answer.headers["x-accel-buffering"] == "no"
        assert events.answer.headers["cache-control"] == "no-store"
        first = await events.next()
        assert first is not None
        assert (first["id"], first["event"], first["order"]["status"]) == ("1", "order", "PENDING")
        await rest.mesh.settle(order_id)
        last = await events.next()
        assert last is not None
        assert (last["id"], last["order"]["status"]) == ("2", "SUCCESS")
        assert await events.next() is None


async def test_a_follower_who_was_cut_off_goes_on_where_he_was(rest):
    order_id = await new_order(rest)
    async with following(rest, order_id) as events:
        await events.next()
    await rest.mesh.settle(order_id)
    async with following(rest, order_id, last_event_id="1") as events:
        missed = await events.next()
        assert missed is not None
        assert missed["id"] == "2"
        assert await events.next() is None


async def test_a_reconnect_after_the_outcome_is_told_to_stop(rest):
    order_id = await new_order(rest)
    await rest.mesh.settle(order_id)
    again = await rest.get(f"/v1/orders/{order_id}/events", last_event_id="2")
    assert (again.status_code, again.content) == (204, b"")
    async with following(rest, order_id) as events:
        late = await events.next()
        assert late is not None
        assert late["order"]["status"] == "SUCCESS"


async def test_silence_is_filled_with_signs_of_life(rest):
    order_id = await new_order(rest)
    async with following(rest, order_id, last_event_id="1") as events:
        assert await events.comment() == await events.comment() == ": still here"
        await rest.mesh.settle(order_id)
        assert (await events.next() or {})["id"] == "2"


async def test_a_follower_who_hangs_up_frees_his_seat_and_the_mesh(rest):
    order_id = await new_order(rest)
    before = open_streams()
    async with following(rest, order_id) as events:
        await events.next()
        assert open_streams() == before + 1
    async with asyncio.timeout(WITHIN_S):
        await rest.mesh.unwatched.wait()
    await eventually(lambda: as_expected(before))


async def test_a_mesh_that_breaks_off_ends_the_stream_and_the_client_resumes(rest):
    order_id = await new_order(rest)
    async with following(rest, order_id) as events:
        await events.next()
        rest.mesh.orders.pop(order_id)
        async with rest.mesh.changed:
            rest.mesh.changed.notify_all()
        assert await events.next() is None
        assert ": interrupted, resume" in events.comments


async def test_what_is_refused_before_the_stream_is_a_problem_and_not_a_stream(rest):
    order_id = await new_order(rest)
    rest.mesh.refusal = ShardUnavailable()
    refused = await rest.get(f"/v1/orders/{order_id}/events")
    assert (refused.status_code, refused.headers["content-type"]) == (503, "application/problem+json")


async def test_a_stream_ends_when_its_time_or_the_token_is_over(directory):
    async with (
        gateways.opened(directory, profile="local", stream_s_max=0.3) as rest,
        following(rest, await new_order(rest)) as events,
    ):
        assert (await events.next() or {})["id"] == "1"
        assert await events.next() is None
    async with gateways.opened(directory, profile="local") as rest:
        order_id = await new_order(rest)
        short = {"authorization": f"Bearer {rest.token(now=time.time() - 100, ttl_s=92)}"}
        async with rest.http.stream("GET", f"/v1/orders/{order_id}/events", headers=short) as answer:
            events = Events(answer)
            assert (await events.next() or {})["id"] == "1"
            assert await events.next() is None


async def test_streams_are_bounded_per_user_and_in_all_and_only_the_latter_is_shed(directory):
    async with gateways.opened(directory, profile="local", streams_per_user_max=2, streams_max=3) as rest:
        mine, theirs = await new_order(rest), await new_order(rest, "bob")
        async with following(rest, mine), following(rest, mine):
            shed = requests_shed()
            third = await rest.get(f"/v1/orders/{mine}/events")
            assert (third.status_code, third.json()["reason"]) == (429, "RATE_LIMITED")
            assert third.headers["retry-after"] == "5"
            assert requests_shed() == shed
            async with following(rest, theirs, "bob") as events:
                assert await events.next()
                fourth = await rest.get(f"/v1/orders/{theirs}/events", "bob")
                assert (fourth.status_code, fourth.json()["reason"]) == (503, "OVERLOADED")
                assert fourth.headers["retry-after"] == "5"
                assert requests_shed() == shed + 1


async def test_a_gateway_that_stops_ends_its_streams_and_is_gone_quickly(directory):
    async with gateways.opened(directory, profile="local") as rest:
        order_id = await new_order(rest)
        async with following(rest, order_id) as events:
            await events.next()
            await rest.gateway.house.seats.close()
            assert await events.next() is None
        async with asyncio.timeout(WITHIN_S / 2):
            await rest.gateway.rest.stop()


def requests_shed() -> float:
    (metric,) = SHED.collect()
    return metric.samples[0].value


def open_streams() -> float:
    (metric,) = STREAMS.collect()
    return metric.samples[0].value


async def as_expected(value: float) -> bool:
    return open_streams() == value
