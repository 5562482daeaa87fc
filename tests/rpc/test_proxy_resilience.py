"""What the proxy does about lanes that are gone, slow or drowned, and about users who want too much at
once.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from grpc import StatusCode
from prometheus_client import REGISTRY

from chassis import rpc
from chassis.errors import Reason, ShardUnavailable, Stopping
from chassis.testing import eventually
from shard_proxy.lanes import RetryBudget
from tests import echo, proxies
from tests.listeners import refused
from tests.proxies import ON_S1, VIP, Lane, Proxy, for_ever, refusing

ON_S2 = "bob"
OTHERS_ON_S1 = ("carol", "dave", "erin")


@pytest.fixture
async def proxy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Proxy]:
    async with proxies.opened(tmp_path, monkeypatch) as opened:
        yield opened


async def until_running(lane: Lane, count: int) -> None:
    async def there() -> bool:
        return lane.running == count

    await eventually(there)


async def until_down(proxy: Proxy, lane: Lane) -> None:
    async def down() -> bool:
        return not proxy.routes.lanes.states()[lane.name]

    await eventually(down)


@pytest.mark.parametrize("name", ["Unary", "Once", "Out"])
async def test_a_call_to_a_process_that_is_being_started_again_waits_for_it(proxy: Proxy, name: str) -> None:
    await proxy.s1.stop()
    await until_down(proxy, proxy.s1)
    call = proxy.call(name, echo.EchoRequest(user_id=ON_S1, say="hi"))
    waiting = asyncio.ensure_future(call.read() if name == "Out" else call)
    await proxy.say(ON_S2)
    assert not waiting.done()
    await proxy.s1.start()
    assert (await waiting).said[0].startswith("s1:hi")
    assert len(proxy.s1.calls) == 1


async def test_a_process_that_stays_away_is_unavailable_at_once_and_others_are_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with proxies.opened(tmp_path, monkeypatch, bridge_s=0.3) as proxy:
        await proxy.s1.stop()
        await until_down(proxy, proxy.s1)
        with refused(StatusCode.UNAVAILABLE, Reason.SHARD_UNAVAILABLE):
            await proxy.say(ON_S1)
        began = time.monotonic()
        for _ in range(20):
            with refused(StatusCode.UNAVAILABLE, Reason.SHARD_UNAVAILABLE) as facts:
                await proxy.say(ON_S1)
            assert facts[0].message == ShardUnavailable.sentence()
        assert time.monotonic() - began < 0.3 * 20 / 4
        assert await proxy.say(ON_S2) == "s2:hi"


async def lose_the_answer(proxy: Proxy, call: Any) -> None:
    """Take the process away under a running call and bring it back."""
    await until_running(proxy.s1, 1)
    await proxy.s1.stop()
    proxy.s1.behave.clear()
    await proxy.s1.start()


async def test_a_lost_answer_is_asked_for_again_when_a_repeat_does_no_harm(proxy: Proxy) -> None:
    proxy.s1.behave["Unary"] = for_ever
    call = proxy.call("Unary", echo.EchoRequest(user_id=ON_S1, say="hi"))
    await lose_the_answer(proxy, call)
    assert list((await call).said) == ["s1:hi"]
    assert len(proxy.s1.calls) == 2


async def test_a_lost_answer_of_a_method_that_may_not_be_repeated_is_the_callers_to_decide(
    proxy: Proxy,
) -> None:
    proxy.s1.behave["Once"] = for_ever
    call = proxy.call("Once", echo.EchoRequest(user_id=ON_S1, say="hi"))
    await lose_the_answer(proxy, call)
    with refused(StatusCode.UNAVAILABLE, Reason.SHARD_UNAVAILABLE) as facts:
        await call
    assert facts[0].message == ShardUnavailable.sentence()
    assert len(proxy.s1.calls) == 1


async def test_a_call_that_a_stopping_process_turned_away_goes_to_its_successor(proxy: Proxy) -> None:
    turned_away = 0

    async def once_away(request: Any, context: Any) -> Any:
        nonlocal turned_away
        turned_away += 1
        if turned_away == 1:
            await context.abort(*rpc.to_status(Stopping()))
        return proxy.s1.answer(request)

    proxy.s1.behave["Once"] = once_away
    assert await proxy.say(name="Once") == "s1:hi"
    assert turned_away == 2


async def test_a_lanes_own_unavailable_is_passed_on_and_not_repeated(proxy: Proxy) -> None:
    proxy.s1.behave["Unary"] = refusing(rpc.to_status(ShardUnavailable(shard="s1", sqlstate="57P01")))
    with refused(StatusCode.UNAVAILABLE, Reason.SHARD_UNAVAILABLE) as facts:
        await proxy.say()
    assert facts[0].metadata["sqlstate"] == "57P01"
    assert len(proxy.s1.calls) == 1


async def test_a_lane_that_keeps_failing_is_not_asked_for_ever(proxy: Proxy) -> None:
    proxy.s1.behave["Unary"] = refusing(rpc.to_status(Stopping()))
    with refused(StatusCode.UNAVAILABLE, Reason.STOPPING):
        await proxy.say()
    assert len(proxy.s1.calls) == 4


def test_the_retry_budget_is_a_burst_and_then_a_tenth_of_what_succeeds() -> None:
    now = 0.0
    budget = RetryBudget(now=lambda: now)
    assert [budget.spend() for _ in range(65)] == [True] * 64 + [False]
    for _ in range(11):
        assert not budget.spend()
        budget.earn()
    assert budget.spend()
    now = 1.5
    assert budget.spend()
    assert not budget.spend()


def shed(method: str) -> float:
    """How many calls were shed at the entrance."""
    service, _, name = echo.path_of(method)[1:].partition("/")
    labels = {"grpc_service": service, "grpc_method": name}
    return REGISTRY.get_sample_value("ordermesh_rpc_shed_total", labels) or 0.0


async def test_a_slow_shard_keeps_its_own_slots_busy_and_nobody_elses(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with proxies.opened(tmp_path, monkeypatch, lane_slots=2, lane_queue=1) as proxy:
        proxy.s1.behave["Unary"] = for_ever
        stuck = [asyncio.ensure_future(proxy.say(user)) for user in OTHERS_ON_S1]
        await until_running(proxy.s1, 2)
        before = shed("Unary")
        with refused(StatusCode.RESOURCE_EXHAUSTED, Reason.OVERLOADED) as facts:
            await proxy.say(ON_S1)
        assert shed("Unary") == before + 1
        assert facts[0].metadata["limiter"] == "lane:s1"
        assert facts[0].retry_after_s is not None
        for _ in range(10):
            assert await proxy.say(ON_S2) == "s2:hi"
            assert await proxy.say(VIP) == "v1:hi"
        for each in stuck:
            each.cancel()
        await asyncio.gather(*stuck, return_exceptions=True)
        await until_running(proxy.s1, 0)
        proxy.s1.behave.clear()
        assert await proxy.say(ON_S1) == "s1:hi"


async def test_open_streams_do_not_take_the_room_of_calls(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with proxies.opened(tmp_path, monkeypatch, lane_streams=2, lane_slots=1) as proxy:
        proxy.s1.behave["Out"] = for_ever
        open_streams = [proxy.call("Out", echo.EchoRequest(user_id=user)) for user in OTHERS_ON_S1[:2]]
        await until_running(proxy.s1, 2)
        assert await proxy.say(ON_S1) == "s1:hi"
        with refused(StatusCode.RESOURCE_EXHAUSTED, Reason.OVERLOADED):
            await proxy.call("Out", echo.EchoRequest(user_id=OTHERS_ON_S1[2])).read()
        for stream in open_streams:
            stream.cancel()


async def test_one_users_burst_is_refused_and_other_users_are_served(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with proxies.opened(tmp_path, monkeypatch, user_calls=2, vip_calls=3) as proxy:
        for user, lane, bound in ((ON_S1, proxy.s1, 2), (VIP, proxy.v1, 3)):
            lane.behave["Unary"] = for_ever
            stuck = [asyncio.ensure_future(proxy.say(user)) for _ in range(bound)]
            await until_running(lane, bound)
            before = shed("Unary")
            with refused(StatusCode.RESOURCE_EXHAUSTED, Reason.OVERLOADED) as facts:
                await proxy.say(user)
            assert facts[0].metadata["limiter"] == "user"
            assert shed("Unary") == before, "others are served"
            lane.behave.clear()
            for each in stuck:
                each.cancel()
            await asyncio.gather(*stuck, return_exceptions=True)
        assert await proxy.say(OTHERS_ON_S1[0]) == "s1:hi"

        async def served_again() -> bool:
            return await proxy.say(ON_S1) == "s1:hi"

        await eventually(served_again)
