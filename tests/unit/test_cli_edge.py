"""Errors end as one line and one exit code, in words or in JSON, and never as a traceback."""

import json
from collections.abc import Sequence
from uuid import UUID

import grpc
import pytest
from grpc.aio import AioRpcError, Metadata

from chassis import rpc
from chassis.errors import InvalidField, OrdermeshError, ShardUnavailable, Violation
from ops.cli import edge
from ops.cli.options import FORMAT_KEY, REQUEST_ID_KEY, Format
from ops.errors import OpsError
from ops.stack.endpoints import StackDown

REQUEST_ID = UUID("01939c5e-7a3b-4000-8af5-0123456789ab")
TRACE_ID = "4bf92f3577b34da6a3ce929d0e0e4736"


def refused(error: OrdermeshError) -> AioRpcError:
    """The error as a caller gets it from the wire."""
    code, message, trailers = rpc.to_status(error, TRACE_ID)
    return failed(code, message, trailers)


def failed(
    code: grpc.StatusCode, message: str, trailers: Sequence[tuple[str, str | bytes]] = ()
) -> AioRpcError:
    return AioRpcError(code, Metadata(), Metadata(*trailers), message)


def expected(error: Exception) -> edge.Told:
    told = edge.told(error)
    assert told is not None
    return told


def test_a_refusal_tells_reason_sentence_violations_and_trace(capsys: pytest.CaptureFixture[str]) -> None:
    told = expected(refused(InvalidField(Violation("user_id", "must match [A-Za-z0-9_.:-]{1,64}"))))
    assert told.exit_code == 4
    edge.tell(told, {REQUEST_ID_KEY: REQUEST_ID})
    lines = capsys.readouterr().err.splitlines()
    assert lines == [
        "error: INVALID_FIELD: A field of the request is missing or malformed.",
        "  user_id: must match [A-Za-z0-9_.:-]{1,64}",
        f"  trace {TRACE_ID}",
    ]


def test_the_same_refusal_as_json(capsys: pytest.CaptureFixture[str]) -> None:
    edge.tell(expected(refused(InvalidField(Violation("kind", "is unknown")))), {FORMAT_KEY: Format.JSON})
    body = json.loads(capsys.readouterr().err)["error"]
    assert body["reason"] == "INVALID_FIELD"
    assert body["violations"] == [{"field": "kind", "description": "is unknown"}]
    assert (body["exitCode"], body["traceId"]) == (4, TRACE_ID)


def test_after_a_lost_answer_the_line_says_how_to_repeat_safely(capsys: pytest.CaptureFixture[str]) -> None:
    edge.tell(expected(refused(ShardUnavailable())), {REQUEST_ID_KEY: REQUEST_ID})
    text = capsys.readouterr().err
    assert f"--request-id {REQUEST_ID}" in text
    assert "retry after 0.5 s" in text


def test_a_status_that_nobody_of_ours_made_means_that_the_stack_is_not_reachable() -> None:
    told = expected(failed(grpc.StatusCode.UNAVAILABLE, "connection refused"))
    assert told.exit_code == 3
    assert "doctor" in told.message
    assert expected(failed(grpc.StatusCode.INTERNAL, "")).exit_code == 4


def test_each_kind_of_local_error_has_its_exit_code() -> None:
    assert expected(StackDown("none runs")).exit_code == 3
    assert expected(OpsError("port 7400 is busy")).exit_code == 1
    assert expected(PermissionError(13, "Permission denied", "/x/endpoints.json")).message == (
        "/x/endpoints.json: Permission denied"
    )
    assert expected(InvalidField.of("labels", "each is NAME=VALUE")).exit_code == 4


def test_a_defect_of_ours_is_not_explained_away() -> None:
    assert edge.told(KeyError("defect")) is None
