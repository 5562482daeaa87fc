"""What recovery decides, without anybody to ask: worth of probes, time, rhythm, shards."""

from __future__ import annotations

from typing import Any

import grpc
import pytest
from hypothesis import given
from hypothesis import strategies as st

from chassis.errors import InvalidField
from chassis.rpc import RemoteError
from ordermesh.upstream.v1 import upstream_service_pb2 as upstream
from recovery_svc import wire
from recovery_svc.domain import (
    PUSHBACK_S_MAX,
    REPORT_PAUSE_S_MAX,
    Claim,
    ProbeClass,
    Rhythm,
    classify,
    hold_reason,
    hold_scope,
    page_size,
    probe_time_s,
    report_pause_s,
    shift,
)
from recovery_svc.settings import RecoverySettings

draws = st.floats(0, 1, exclude_max=True)
OUR_FAULTS = {
    "INVALID_ARGUMENT",
    "FAILED_PRECONDITION",
    "OUT_OF_RANGE",
    "PERMISSION_DENIED",
    "UNAUTHENTICATED",
    "UNIMPLEMENTED",
}


@pytest.mark.parametrize("code", [code for code in grpc.StatusCode if code is not grpc.StatusCode.OK])
def test_no_grpc_error_is_a_verdict_and_only_wrong_requests_are_our_fault(code: grpc.StatusCode) -> None:
    found = classify(code.name)

    assert found.answer is None
    assert found.probe_class is (ProbeClass.OUR_FAULT if code.name in OUR_FAULTS else ProbeClass.NO_ANSWER)


def body(**fields: object) -> bytes:
    return upstream.ProbeResponse(answer=upstream.Answer(**fields)).SerializeToString()  # type: ignore[arg-type]


@pytest.mark.parametrize("verdict", ["SUCCEEDED", "FAILED", "IN_PROGRESS", "NOT_FOUND", "UNKNOWN"])
def test_every_verdict_of_the_contract_is_an_answer(verdict: str) -> None:
    found = wire.finding(body(verdict=upstream.Verdict.Value(f"VERDICT_{verdict}"), upstream_ref="pay-1"))

    assert (found.probe_class, found.verdict) == (ProbeClass.ANSWERED, verdict)


def test_a_verdict_that_was_not_said_is_read_as_unknown() -> None:
    found = wire.finding(body())

    assert (found.probe_class, found.verdict) == (ProbeClass.ANSWERED, "UNKNOWN")


@pytest.mark.parametrize(
    ("nonsense", "detail"),
    [
        (b"", "the body has no answer"),
        (b"\xff\xff\xff", "the body cannot be decoded"),
        (body(verdict=99), "verdict 99 is not in the contract"),
        (body(verdict=upstream.VERDICT_SUCCEEDED), "SUCCEEDED without upstream_ref"),
        (
            body(verdict=upstream.VERDICT_FAILED, upstream_ref="x" * 257),
            "upstream_ref is longer than 256 characters",
        ),
    ],
)
def test_an_answer_that_makes_no_sense_is_malformed_and_brings_no_verdict(
    nonsense: bytes, detail: str
) -> None:
    found = wire.finding(nonsense)

    assert (found.probe_class, found.answer, found.detail) == (ProbeClass.MALFORMED, None, detail)


@given(st.binary(max_size=200))
def test_no_body_whatsoever_breaks_the_reader(nonsense: bytes) -> None:
    found = wire.finding(nonsense)

    assert (found.answer is None) == (found.probe_class is ProbeClass.MALFORMED)


def test_what_is_passed_on_is_cut_to_its_limits() -> None:
    said = upstream.Answer(verdict=upstream.VERDICT_IN_PROGRESS, reason="r" * 1000)
    said.pushback.seconds = 10**9
    found = wire.finding(upstream.ProbeResponse(answer=said).SerializeToString())

    assert found.answer is not None
    assert (len(found.answer.reason), found.answer.pushback_s) == (256, PUSHBACK_S_MAX)
    assert len(classify("UNAVAILABLE", message="m" * 9999).detail) == 512


@pytest.mark.parametrize(
    ("retry_after_s", "header", "pushback_s"),
    [
        (None, None, 0.0),
        (2.5, None, 2.5),
        (None, "1500", 1.5),
        (9.0, "250", 0.25),
        (None, "-1", 0.0),
        (None, "9" * 400, 0.0),
        (1e9, None, 900.0),
    ],
)
def test_the_wish_to_be_left_alone_is_read_from_both_places(
    retry_after_s: float | None, header: str | None, pushback_s: float
) -> None:
    error = RemoteError(grpc.StatusCode.UNAVAILABLE, "down", retry_after_s=retry_after_s)
    trailers = [] if header is None else [("grpc-retry-pushback-ms", header)]

    found = wire.failure(error, trailers)

    assert found.pushback_s == pushback_s
    assert wire.report(found).pushback.ToTimedelta().total_seconds() == pushback_s


@given(draws, st.integers(0, 1000))
def test_a_period_stays_within_its_jitter_and_its_cap(draw: float, failures: int) -> None:
    rhythm = Rhythm(period_s=1.0, jitter=0.3, backoff_s_max=10.0)

    assert 0.7 <= rhythm.pause_s(draw) <= 1.3
    assert 0.7 <= rhythm.pause_s(draw, failures=failures) <= 13.0


def test_two_processes_with_other_draws_do_not_sweep_in_step() -> None:
    rhythm = Rhythm(period_s=1.0, jitter=0.3, backoff_s_max=10.0)

    assert rhythm.pause_s(0.1) != rhythm.pause_s(0.9)
    assert rhythm.pause_s(0.5, failures=3) == 8.0


@given(draws, st.integers(1, 1000), st.none() | st.floats(0, 1e6))
def test_a_report_is_sent_again_soon_but_not_sooner_than_asked(
    draw: float, tries: int, asked_s: float | None
) -> None:
    pause_s = report_pause_s(tries, draw, asked_s=asked_s)

    assert 0 <= pause_s <= REPORT_PAUSE_S_MAX
    assert pause_s >= min(asked_s or 0, REPORT_PAUSE_S_MAX)


@pytest.mark.parametrize(
    ("left_s", "time_s"), [(30.0, 5.0), (6.0, 3.0), (3.04, 0.0), (3.0, 0.0), (-9.0, 0.0)]
)
def test_a_probe_leaves_time_for_its_report_or_is_not_begun(left_s: float, time_s: float) -> None:
    assert probe_time_s(left_s, timeout_s=5.0, reserve_s=3.0) == pytest.approx(time_s)


names = st.frozensets(st.sampled_from(["s1", "s2", "s3", "v1"]))


@given(names, names)
def test_the_sweep_follows_the_map_and_a_map_without_shards_changes_nothing(
    swept: frozenset[str], listed: frozenset[str]
) -> None:
    change = shift(swept, listed)

    assert (swept | change.begin) - change.leave == (listed or swept)
    assert not change.begin & swept
    assert change.leave <= swept


def test_a_claim_is_suspect_when_a_probe_of_it_was_never_reported() -> None:
    def claim(unfinished: int) -> Claim:
        return Claim("s1", "o", 0, 1, "payments", "o/0", "e", "t", unfinished, "")

    assert [claim(count).is_suspect for count in (0, 1, 2)] == [False, True, True]


def test_pages_scopes_and_reasons_are_bounded() -> None:
    known = frozenset({"payments"})

    assert (page_size(0), page_size(7)) == (50, 7)
    assert (hold_scope("", known), hold_scope("payments", known)) == ("all", "upstream:payments")
    assert hold_reason("bank is down", "mira") == "mira: bank is down"
    assert len(hold_reason("x" * 512, "mira")) == 512
    for wrong in (
        lambda: page_size(101),
        lambda: page_size(-1),
        lambda: hold_scope("nobody", known),
        lambda: hold_reason("", "mira"),
        lambda: hold_reason("x" * 513, "mira"),
    ):
        with pytest.raises(InvalidField):
            wrong()


def test_waits_are_long_in_production_and_short_locally_unless_said_otherwise(tmp_path) -> None:
    def waits(**fields: Any) -> tuple[float, float]:
        settings = RecoverySettings(
            proxy_target="a:1", upstreams={}, tls_dir=tmp_path, subject_dir=tmp_path, **fields
        )
        return settings.startup_grace_s, settings.lease_s

    assert (waits(), waits(profile="local")) == ((60.0, 30.0), (0.0, 10.0))
    assert waits(profile="local", startup_grace_s=5) == (5.0, 10.0)


def test_a_lease_that_does_not_hold_a_claim_a_probe_and_a_report_is_refused(tmp_path) -> None:
    with pytest.raises(ValueError, match="must be at least 12 s"):
        RecoverySettings(proxy_target="a:1", upstreams={}, tls_dir=tmp_path, subject_dir=tmp_path, lease_s=14)
