"""Bad input on REST: a table of what is sent and what is answered. Each is a typed problem, and nothing
reaches the mesh.
"""

import json
import uuid
from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest

from ordermesh.errors.v1 import reason_pb2
from tests import gateways
from tests.gateways import Rest, new_order

KEY = {"idempotency-key": "8e03978e-40d5-43e8-bc93-6894a57f9324"}
JSON = {"content-type": "application/json"}
SOUND = json.dumps(new_order()).encode()
ORDER = "/v1/orders/01a20ad7-7a4f-72ec-80af-5daa9a70fe8d"


@pytest.fixture(scope="module")
async def rest(tmp_path_factory) -> AsyncIterator[Rest]:
    async with gateways.opened(tmp_path_factory.mktemp("gateway"), profile="local") as opened:
        yield opened


CREATES = {
    "no key": ({}, SOUND, 400, "INVALID_FIELD", "Idempotency-Key"),
    "key is no UUID": ({"idempotency-key": "order-7"}, SOUND, 400, "INVALID_FIELD", "Idempotency-Key"),
    "key is empty": ({"idempotency-key": ""}, SOUND, 400, "INVALID_FIELD", "Idempotency-Key"),
    "odd timeout": ({**KEY, "x-request-timeout": "soon"}, SOUND, 400, "INVALID_FIELD", "X-Request-Timeout"),
    "empty body": (KEY, b"", 400, "MALFORMED_REQUEST", ""),
    "half a body": (KEY, SOUND[:-1], 400, "MALFORMED_REQUEST", ""),
    "a list": (KEY, b"[]", 400, "MALFORMED_REQUEST", ""),
    "too deep": (KEY, b'{"a":' + b"[" * 30 + b"]" * 30 + b"}", 400, "MALFORMED_REQUEST", ""),
    "100k deep": (KEY, b"[" * 60_000, 400, "MALFORMED_REQUEST", ""),
    "not a number": (KEY, SOUND.replace(b"1250", b"NaN"), 400, "MALFORMED_REQUEST", ""),
    "not UTF-8": (KEY, b'{"kind": "\xff"}', 400, "MALFORMED_REQUEST", ""),
    "a name twice": (KEY, b'{"kind": "a", "kind": "b"}', 400, "MALFORMED_REQUEST", ""),
    "amount is text": (KEY, SOUND.replace(b"1250", b'"1250"'), 400, "INVALID_FIELD", "amount.amountMinor"),
    "amount is a fraction": (
        KEY,
        SOUND.replace(b"1250", b"12.5"),
        400,
        "INVALID_FIELD",
        "amount.amountMinor",
    ),
    "amount is negative": (KEY, SOUND.replace(b"1250", b"-1"), 400, "INVALID_FIELD", "amount.amountMinor"),
    "amount is beyond all": (
        KEY,
        SOUND.replace(b"1250", b"9" * 18),
        400,
        "INVALID_FIELD",
        "amount.amountMinor",
    ),
    "no amount": (KEY, b'{"kind": "payment"}', 400, "INVALID_FIELD", "amount"),
    "a field too many": (KEY, SOUND[:-1] + b', "userId": "bob"}', 400, "INVALID_FIELD", "userId"),
    "a control character": (
        KEY,
        SOUND[:-1] + b', "description": "a\\u0000"}',
        400,
        "INVALID_FIELD",
        "description",
    ),
    "half a character": (
        KEY,
        SOUND[:-1] + b', "description": "\\ud800"}',
        400,
        "INVALID_FIELD",
        "description",
    ),
    "half a name": (KEY, SOUND[:-1] + b', "\\ud800": 1}', 400, "INVALID_FIELD", "body"),
    "5 MB": (KEY, b"x" * 5_000_000, 413, "TOO_LARGE", ""),
    "a byte too long": (KEY, SOUND[:-1] + b" " * (65_537 - len(SOUND)) + b"}", 413, "TOO_LARGE", ""),
    "text": ({**KEY, "content-type": "text/plain"}, SOUND, 415, "UNSUPPORTED_MEDIA_TYPE", ""),
    "a form": (
        {**KEY, "content-type": "application/x-www-form-urlencoded"},
        SOUND,
        415,
        "UNSUPPORTED_MEDIA_TYPE",
        "",
    ),
    "no type": ({**KEY, "content-type": ""}, SOUND, 415, "UNSUPPORTED_MEDIA_TYPE", ""),
}


@pytest.mark.parametrize("name", CREATES)
async def test_a_bad_order_is_a_typed_problem_and_creates_nothing(rest, name):
    headers, body, status, reason, wrong_field = CREATES[name]
    answer = await rest.http.post("/v1/orders", content=body, headers={**rest.headers(), **JSON, **headers})
    problem = proper_problem(answer)
    assert (problem["status"], problem["reason"]) == (status, reason), problem
    assert [violation["field"] for violation in problem["fieldViolations"]][:1] == [wrong_field][
        : bool(wrong_field)
    ]
    assert rest.mesh.creates == []


PATHS = {
    "unknown path": ("GET", "/v2/orders", 404, "NO_SUCH_PATH"),
    "root": ("GET", "/", 404, "NO_SUCH_PATH"),
    "wrong method": ("DELETE", "/v1/orders", 405, "METHOD_NOT_ALLOWED"),
    "wrong method on an order": ("POST", ORDER, 405, "METHOD_NOT_ALLOWED"),
    "a method nobody knows": ("BREW", "/v1/orders", 405, "METHOD_NOT_ALLOWED"),
    "head": ("HEAD", "/v1/orders", 405, None),
    "id is no UUID": ("GET", "/v1/orders/7", 400, "ORDER_ID_INVALID"),
    "id is a UUIDv4": ("GET", f"/v1/orders/{uuid.uuid4()}", 400, "ORDER_ID_INVALID"),
    "id without hyphens": ("GET", ORDER.replace("-", ""), 400, "ORDER_ID_INVALID"),
    "id is SQL": ("GET", "/v1/orders/'%20OR%201=1--", 400, "ORDER_ID_INVALID"),
    "id is long": ("GET", "/v1/orders/" + "1" * 100, 400, "INVALID_FIELD"),
    "id of nothing": ("GET", ORDER, 404, "ORDER_NOT_FOUND"),
    "events of nothing": ("GET", ORDER + "/events", 404, "ORDER_NOT_FOUND"),
    "journal of nothing": ("GET", ORDER + "/journal", 404, "ORDER_NOT_FOUND"),
    "unknown parameter": ("GET", "/v1/orders?limit=5", 400, "INVALID_FIELD"),
    "parameter where there is none": ("GET", ORDER + "?x=1", 400, "INVALID_FIELD"),
    "parameter twice": ("GET", "/v1/orders?pageSize=1&pageSize=2", 400, "INVALID_FIELD"),
    "page of none": ("GET", "/v1/orders?pageSize=0", 400, "INVALID_FIELD"),
    "page of all": ("GET", "/v1/orders?pageSize=1000000000", 400, "INVALID_FIELD"),
    "page of words": ("GET", "/v1/orders?pageSize=many", 400, "INVALID_FIELD"),
    "unknown status": ("GET", "/v1/orders?status=DONE", 400, "INVALID_FIELD"),
    "time of words": ("GET", "/v1/orders?fromTime=yesterday", 400, "INVALID_FIELD"),
    "time without offset": ("GET", "/v1/orders?fromTime=2026-01-01T00:00:00", 400, "INVALID_FIELD"),
    "time before all times": ("GET", "/v1/orders?fromTime=0001-01-01T00:00:00%2B01:00", 400, "INVALID_FIELD"),
    "odd user": ("GET", "/v1/orders?userId=a%20b", 400, "INVALID_FIELD"),
    "long token": ("GET", "/v1/orders?pageToken=" + "x" * 600, 400, "INVALID_FIELD"),
    "bytes that are no text": ("GET", "/v1/orders?%ff=1", 400, "INVALID_FIELD"),
}


@pytest.mark.parametrize("name", PATHS)
async def test_a_bad_path_or_parameter_is_a_typed_problem(rest, name):
    method, path, status, reason = PATHS[name]
    answer = await rest.http.request(method, path, headers=rest.headers())
    assert answer.status_code == status
    if reason is not None:
        assert proper_problem(answer)["reason"] == reason
    if status == 405:
        assert answer.headers["allow"]


@pytest.mark.parametrize("last", ["-1", "x", "9" * 30])
async def test_an_odd_last_event_id_is_refused(rest, last):
    answer = await rest.get(ORDER + "/events", last_event_id=last)
    assert proper_problem(answer)["fieldViolations"][0]["field"] == "Last-Event-ID"


TOKENS = {
    "none": {},
    "basic": {"authorization": "Basic YWxpY2U6eA=="},
    "nonsense": {"authorization": "Bearer x.y.z"},
    "unsigned": {"authorization": "Bearer eyJhbGciOiJub25lIiwidHlwIjoiSldUIn0.eyJzdWIiOiJhbGljZSJ9."},
    "10 KB": {"authorization": "Bearer " + "x" * 10_000},
}


@pytest.mark.parametrize("name", TOKENS)
@pytest.mark.parametrize("path", ["/v1/orders", ORDER, ORDER + "/events", ORDER + "/journal"])
async def test_without_a_sound_token_nothing_is_said_about_anything(rest, name, path):
    answer = await rest.http.get(path, headers=TOKENS[name])
    assert proper_problem(answer)["reason"] == "UNAUTHENTICATED"
    assert answer.headers["www-authenticate"].startswith("Bearer")


async def test_an_expired_token_is_refused_before_the_body_is_looked_at(rest):
    stale = {"authorization": f"Bearer {rest.token(now=1_000_000_000)}", **KEY, **JSON}
    answer = await rest.http.post("/v1/orders", content=b"{", headers=stale)
    problem = proper_problem(answer)
    assert (problem["status"], problem["metadata"]) == (401, {"cause": "EXPIRED"})
    assert rest.mesh.creates == []


async def test_headers_of_the_mesh_from_outside_change_nothing(rest):
    rest.mesh.calls.clear()
    forged = {"x-ordermesh-subject": "forged", "x-ordermesh-user": "bob", "x-ordermesh-bucket": "1"}
    answer = await rest.http.get("/v1/orders", headers={**rest.headers(), **forged})
    assert answer.status_code == 200
    (call,) = rest.mesh.calls
    assert call.subject.name == "alice"
    assert "x-ordermesh-user" not in call.metadata
    assert call.metadata["x-ordermesh-subject"] != "forged"


def proper_problem(answer: httpx.Response) -> dict[str, Any]:
    """The problem of an answer, which is one in every respect."""
    assert answer.headers["content-type"] == "application/problem+json"
    assert answer.headers["cache-control"] == "no-store"
    problem: dict[str, Any] = answer.json()
    assert problem["status"] == answer.status_code
    assert problem["domain"] == "ordermesh.dev"
    assert problem["requestId"] == answer.headers["x-request-id"]
    assert problem["type"].endswith("#" + problem["reason"])
    assert f"REASON_{problem['reason']}" in set(reason_pb2.Reason.keys())
    assert problem["title"]
    assert problem["detail"]
    assert "instance" in problem
    return problem
