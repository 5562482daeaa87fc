"""What goes through the proxy comes out as it went in: messages, metadata, status, deadline, cancellation;
all arities.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import grpc
import pytest
from grpc import StatusCode

from chassis import rpc
from chassis.auth import SUBJECT_HEADER, SubjectVerifier
from chassis.errors import InvalidField, Reason, ShardUnavailable
from chassis.testing import eventually
from tests import echo, proxies
from tests.listeners import refused
from tests.proxies import ON_S1, Proxy, for_ever, refusing

ARITIES = ["Unary", "Out", "In", "Both"]
BIN = b"\x00\xff\x01"


@pytest.fixture
async def proxy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Proxy]:
    async with proxies.opened(tmp_path, monkeypatch) as opened:
        yield opened


def requests_of(name: str, *says: str) -> Any:
    """What to call a method with: one request, or all of them as a stream."""
    requests = [echo.EchoRequest(user_id=ON_S1, say=say) for say in says or ("a", "b")]
    return iter(requests) if name in ("In", "Both") else requests[0]


async def answers_of(call: Any, name: str) -> list[str]:
    if name in ("Out", "Both"):
        return [said async for answer in call for said in answer.said]
    return list((await call).said)


async def failure_of(call: Any, name: str) -> grpc.aio.AioRpcError:
    with pytest.raises(grpc.aio.AioRpcError) as failed:
        await answers_of(call, name)
    return failed.value


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("Unary", ["s1:a"]),
        ("Out", ["s1:a:0", "s1:a:1", "s1:a:2"]),
        ("In", ["s1:a", "s1:b"]),
        ("Both", ["s1:a", "s1:b"]),
    ],
)
async def test_messages_and_trailers_pass_in_every_arity(proxy: Proxy, name: str, said: list[str]) -> None:
    plain = getattr(proxy.s1, echo.METHODS[echo.path_of(name)].arity)

    async def with_metadata(request: Any, context: Any) -> Any:
        await context.send_initial_metadata((("x-began", "yes"), ("x-began-bin", BIN)))
        context.set_trailing_metadata((("x-twice", "1"), ("x-twice", "2"), ("x-trail-bin", BIN)))
        return await plain(request, context)

    proxy.s1.behave[name] = with_metadata
    call = proxy.call(name, requests_of(name))

    assert await answers_of(call, name) == said
    initial = dict(await call.initial_metadata())
    trailers = list(await call.trailing_metadata())
    assert (initial["x-began"], initial["x-began-bin"]) == ("yes", BIN)
    assert [value for key, value in trailers if key == "x-twice"] == ["1", "2"]
    assert dict(trailers)["x-trail-bin"] == BIN
    assert dict(trailers)["x-ordermesh-shard"] == "s1"
    assert dict(trailers)["x-ordermesh-route"] == "b=701 e=1 v=1 r=hash"


@pytest.mark.parametrize("name", ARITIES)
async def test_a_lanes_status_passes_byte_by_byte_and_as_trailers_only(proxy: Proxy, name: str) -> None:
    code, message, trailers = rpc.to_status(InvalidField.of("say", "is wrong: ä"))
    proxy.s1.behave[name] = refusing((code, message, (*trailers, ("x-more", "1"))))

    failed = await failure_of(proxy.call(name, requests_of(name)), name)

    assert (failed.code(), failed.details()) == (code, message)
    assert not list(failed.initial_metadata() or ())
    came = dict(failed.trailing_metadata() or ())
    assert came["grpc-status-details-bin"] == trailers[0][1]
    assert came["x-more"] == "1"
    assert came["x-ordermesh-shard"] == "s1"
    assert rpc.error_of(failed).violations[0].field == "say"


@pytest.mark.parametrize("name", ["Out", "Both"])
async def test_a_status_after_some_answers_passes_with_them(proxy: Proxy, name: str) -> None:
    async def two_then_refuse(_: Any, context: Any) -> None:
        await context.write(echo.EchoResponse(said=["1"]))
        await context.write(echo.EchoResponse(said=["2"]))
        await context.abort(*rpc.to_status(ShardUnavailable(shard="s1")))

    proxy.s1.behave[name] = two_then_refuse
    call = proxy.call(name, requests_of(name))
    said: list[str] = []
    with refused(StatusCode.UNAVAILABLE, Reason.SHARD_UNAVAILABLE):
        async for answer in call:
            said += answer.said
    assert said == ["1", "2"]
    assert len(proxy.s1.calls) == 1


@pytest.mark.parametrize("name", ARITIES)
async def test_a_caller_that_goes_away_cancels_its_call_at_the_lane(proxy: Proxy, name: str) -> None:
    proxy.s1.behave[name] = for_ever
    call = proxy.call(name, requests_of(name))

    async def runs() -> bool:
        return proxy.s1.running == 1

    async def ended() -> bool:
        return proxy.s1.running == 0

    await eventually(runs)
    call.cancel()
    await eventually(ended)
    lane = proxy.routes.lanes.of("order_svc", "s1")

    async def slots_are_back() -> bool:
        return lane.slots.taken == 0 and lane.stream_slots.taken == 0

    await eventually(slots_are_back)


@pytest.mark.parametrize("name", ARITIES)
async def test_a_call_without_deadline_gets_the_methods_own(proxy: Proxy, name: str) -> None:
    await answers_of(proxy.call(name, requests_of(name), timeout=None), name)
    assert 4.5 < proxy.s1.deadlines[0] < 5.1


@pytest.mark.parametrize("name", ARITIES)
async def test_the_lane_gets_less_time_than_the_caller_has_and_never_more_than_the_method_allows(
    proxy: Proxy, name: str
) -> None:
    await answers_of(proxy.call(name, requests_of(name), timeout=2.0), name)
    await answers_of(proxy.call(name, requests_of(name), timeout=60.0), name)
    short, long = proxy.s1.deadlines
    # A timeout travels with three digits, rounded up: the caller's two seconds may come as 2.01, and what is
    # left of them without the margin, 1.99 at most, as 2.00. Passed on whole, they would come as 2.01 again.
    assert short < 2.0
    assert long < 5.1


@pytest.mark.parametrize("name", ARITIES)
async def test_a_deadline_that_passes_ends_the_call_at_the_lane_with_a_typed_error(
    proxy: Proxy, name: str
) -> None:
    proxy.s1.behave[name] = for_ever
    with refused(StatusCode.DEADLINE_EXCEEDED, Reason.DEADLINE_EXCEEDED) as facts:
        await answers_of(proxy.call(name, requests_of(name), timeout=0.3), name)
    assert facts[0].metadata["limiter"] == "lane"

    async def ended() -> bool:
        return proxy.s1.running == 0

    await eventually(ended)


async def test_a_call_with_too_little_time_never_reaches_a_lane(proxy: Proxy) -> None:
    with pytest.raises(grpc.aio.AioRpcError) as failed:
        await proxy.say(timeout=0.015)
    assert failed.value.code() is StatusCode.DEADLINE_EXCEEDED
    assert proxy.s1.calls == []


@pytest.mark.parametrize("name", ARITIES)
async def test_metadata_of_the_caller_passes_and_that_of_the_mesh_is_the_proxys_own(
    proxy: Proxy, name: str, tmp_path: Path
) -> None:
    sent = (
        ("x-request-id", "r1"),
        ("x-blob-bin", BIN),
        ("traceparent", "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"),
        ("x-ordermesh-subject", "forged"),
        ("x-ordermesh-bucket", "9"),
        ("x-ordermesh-epoch", "9"),
        ("x-ordermesh-placement", "9:s9:9"),
        ("x-ordermesh-anything", "9"),
        ("x-ordermesh-user", ON_S1),
    )
    await answers_of(proxy.call(name, requests_of(name), metadata=sent), name)

    came = proxy.s1.calls[0]
    assert (came["x-request-id"], came["x-blob-bin"]) == ("r1", BIN)
    assert came["traceparent"].split("-")[1] == "0af7651916cd43dd8448eb211c80319c"
    assert (came["x-ordermesh-bucket"], came["x-ordermesh-epoch"]) == ("701", "1")
    assert not {"x-ordermesh-placement", "x-ordermesh-anything", "x-ordermesh-user"} & came.keys()
    subject = SubjectVerifier(tmp_path / "subject").verify(came[SUBJECT_HEADER])
    assert (subject.name, subject.act) == ("dev", "spiffe://ordermesh/dev")


async def test_a_stream_passes_each_answer_before_the_next_request(proxy: Proxy) -> None:
    call = proxy.call("Both")
    for say in ("a", "b", "c"):
        await call.write(echo.EchoRequest(user_id=ON_S1, say=say))
        assert list((await call.read()).said) == [f"s1:{say}"]
    await call.done_writing()
    assert await call.read() is grpc.aio.EOF
    assert await call.code() is StatusCode.OK


async def test_a_lane_that_ends_a_stream_of_requests_early_is_heard_at_once(proxy: Proxy) -> None:
    proxy.s1.behave["Both"] = refusing(rpc.to_status(InvalidField.of("say", "enough")), at_once=True)
    call = proxy.call("Both")
    await call.write(echo.EchoRequest(user_id=ON_S1, say="a"))
    assert await call.code() is StatusCode.INVALID_ARGUMENT


async def test_an_empty_stream_of_requests_has_no_key(proxy: Proxy) -> None:
    with refused(StatusCode.INVALID_ARGUMENT, Reason.ROUTING_KEY_MISSING):
        await answers_of(proxy.call("In", iter(())), "In")
