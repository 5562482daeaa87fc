"""Problems, rates, seats, doors and settings of the gateway."""

import json
from pathlib import Path

import pytest
from grpc import StatusCode
from pydantic import ValidationError

from chassis import errors
from chassis.errors import OF_ONE_USER, InvalidField, Overloaded, Reason, TokenRefused, Violation
from chassis.rpc import RemoteError
from chassis.testing import FakeClock
from gateway import problems
from gateway.errors import FALLBACKS, MethodNotAllowed, RateLimited, StreamsFull, TooManyStreams
from gateway.listener import Door
from gateway.rates import Rates
from gateway.settings import GatewaySettings
from gateway.streams import Seats

HERE = problems.Occasion("/v1/orders", "r-1", "t-1")


def test_a_problem_says_all_that_the_typed_error_says():
    problem = problems.of_error(InvalidField(Violation("amount.currency_code", "must be EUR")), HERE)
    said = json.loads(problems.body_of(problem))
    assert said == {
        "type": "https://ordermesh.dev/errors#INVALID_FIELD",
        "title": "Invalid field",
        "status": 400,
        "detail": InvalidField.sentence(),
        "instance": "/v1/orders",
        "reason": "INVALID_FIELD",
        "domain": "ordermesh.dev",
        "metadata": {},
        "requestId": "r-1",
        "traceId": "t-1",
        "fieldViolations": [{"field": "amount.currencyCode", "description": "must be EUR"}],
    }


def test_when_to_come_back_is_said_twice_and_never_as_zero():
    problem = problems.of_error(Overloaded(), HERE)
    assert (problem.status, problem.retry_after_seconds) == (503, 0.25)
    assert problems.headers_of(problem)["retry-after"] == "1"


def test_who_has_too_much_under_way_itself_is_told_so_and_others_that_we_are_busy():
    assert problems.of_error(Overloaded(limiter="lane:s1"), HERE).status == 503
    itself = problems.of_error(Overloaded(limiter=OF_ONE_USER), HERE)
    assert (itself.status, itself.reason, itself.retry_after_seconds) == (429, "OVERLOADED", 0.25)


@pytest.mark.parametrize(
    ("code", "reason", "status"),
    [
        (StatusCode.FAILED_PRECONDITION, Reason.REQUEST_ID_REUSED, 422),
        (StatusCode.FAILED_PRECONDITION, Reason.ORDER_ARCHIVED, 400),
        (StatusCode.RESOURCE_EXHAUSTED, Reason.TOO_LARGE, 413),
        (StatusCode.PERMISSION_DENIED, Reason.NOT_YOUR_ORDER, 403),
        (StatusCode.NOT_FOUND, Reason.ORDER_NOT_FOUND, 404),
        (StatusCode.ABORTED, Reason.CONTENDED, 409),
        (StatusCode.UNAVAILABLE, Reason.SHARD_UNAVAILABLE, 503),
        (StatusCode.DEADLINE_EXCEEDED, Reason.DEADLINE_EXCEEDED, 504),
        (StatusCode.INTERNAL, Reason.INTERNAL_ERROR, 500),
        (StatusCode.DATA_LOSS, Reason.INTERNAL_ERROR, 500),
    ],
)
def test_codes_become_the_statuses_of_the_grpc_gateway(code, reason, status):
    assert problems.of_refusal(RemoteError(code, "why", reason.value), HERE).status == status


@pytest.mark.parametrize("code", list(StatusCode))
def test_text_that_did_not_come_from_our_services_is_never_repeated(code):
    problem = problems.of_refusal(RemoteError(code, "ipv4:10.0.0.7:7443 refused"), HERE)
    assert "10.0.0.7" not in problem.detail
    assert problem.reason in list(Reason)
    assert problem.status >= 400
    assert (problem.reason == "INTERNAL_ERROR") == (code not in FALLBACKS)


def test_the_trace_of_a_refusal_is_the_one_it_happened_in():
    refusal = RemoteError(StatusCode.INTERNAL, "x", "INTERNAL_ERROR", {"trace_id": "deep", "limiter": "pg"})
    problem = problems.of_refusal(refusal, HERE)
    assert (problem.trace_id, problem.metadata) == ("deep", {"limiter": "pg"})


def test_a_refused_token_names_the_scheme():
    missing = problems.headers_of(problems.of_error(TokenRefused("MISSING"), HERE))
    expired = problems.headers_of(problems.of_error(TokenRefused("EXPIRED"), HERE))
    assert missing["www-authenticate"] == 'Bearer realm="ordermesh"'
    assert "invalid_token" in expired["www-authenticate"]


def test_every_error_of_the_gateway_has_a_reason_of_the_catalogue():
    kinds: list[type[errors.OrdermeshError]] = [*errors.OrdermeshError.__subclasses__(), MethodNotAllowed]
    for kind in kinds:
        if kind.__module__.startswith(("gateway", "chassis")):
            assert kind.reason in list(Reason)
            assert kind.sentence().endswith(".")


def test_a_rate_admits_a_burst_then_the_long_run():
    clock = FakeClock()
    rates = Rates("requests", per_s=2, burst=3, keys_max=100, clock=clock)
    assert [rates.admit("alice").remaining for _ in range(3)] == [2, 1, 0]
    with pytest.raises(RateLimited) as refused:
        rates.admit("alice")
    assert refused.value.retry_after_s == pytest.approx(0.5)
    assert rates.admit("bob").remaining == 2
    clock.move(0.5)
    rates.admit("alice")
    clock.move(1000)
    assert rates.admit("alice").remaining == 2


def test_the_users_a_rate_remembers_are_bounded():
    rates = Rates("requests", per_s=0.001, burst=1, keys_max=10, clock=FakeClock())
    for number in range(1000):
        rates.admit(f"user-{number}")
    assert len(rates._buckets) == 10
    rates.admit("user-0")
    with pytest.raises(RateLimited):
        rates.admit("user-999")


def test_seats_are_bounded_in_all_and_per_user_and_come_back():
    seats = Seats(3, 2)
    seats.take("alice")
    seats.take("alice")
    with pytest.raises(TooManyStreams):
        seats.take("alice")
    seats.take("bob")
    with pytest.raises(StreamsFull):
        seats.take("carol")
    with pytest.raises(TooManyStreams):
        seats.take("alice")
    seats.leave("alice")
    seats.take("carol")


def test_a_door_counts_connections_in_all_and_per_address():
    door = Door(3, 2)
    assert [door.enter(address) for address in ("a", "a", "a", "b", "c")] == [True, True, False, True, False]
    door.leave("a")
    assert door.enter("c")


def settings(**changes: object) -> GatewaySettings:
    here = Path()
    facts = {"tls_dir": here, "subject_dir": here, "mesh_target": "a:1", "jwks_url": "https://i.example/k"}
    return GatewaySettings(**{**facts, **changes})  # type: ignore[arg-type]


def test_profile_local_is_generous_unless_told_otherwise():
    assert settings().creates_per_user_per_s == 5
    assert settings(profile="local").creates_per_user_per_s == 500
    assert settings(profile="local", creates_per_user_per_s=1).creates_per_user_per_s == 1


@pytest.mark.parametrize(
    "url", ["http://issuer.example/k", "ftp://127.0.0.1:1/k", "file:///etc/passwd", "127.0.0.1:80"]
)
def test_keys_come_over_https_or_from_this_machine(url):
    with pytest.raises(ValidationError):
        settings(jwks_url=url)
    assert settings(jwks_url="http://127.0.0.1:9/k").jwks_url
