"""The OpenAPI document: what FastAPI derives from the routes, with our problems, our security and the
bodies of requests. `/docs` (gateway/docs.py) shows it to people.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from fastapi.openapi.utils import get_openapi
from pydantic.json_schema import models_json_schema

from gateway import seen, statement_wire, wire
from gateway.problems import MEDIA_TYPE, Problem

if TYPE_CHECKING:
    from fastapi import FastAPI
    from pydantic import BaseModel

TITLE = "ordermesh"
DESCRIPTION = """Orders that are never lost and never left hanging.

Every request needs a bearer token. Users see only their own orders; somebody else's is 403 `NOT_YOUR_ORDER`,
as it is PERMISSION_DENIED over gRPC. Every error is `application/problem+json` with a `reason` from the
catalogue. Every answer carries `X-Request-Id`: yours, if you send one. `X-Request-Timeout` sets the deadline,
such as `2.5` or `800ms`; it is 5 s otherwise, to which `Prefer: wait=N` adds, and at most 35 s. Lists are
paged by `pageToken`, also given as `Link: rel=next`.

A statement is a document of all of a user's orders in a period, also of those that are archived. It is asked
for, made, announced by e-mail, and can be downloaded until its `expireTime`.

Every write of an order is answered with `Ordermesh-Consistency-Token`, and with the same in a cookie that
lives for a minute. A list that is asked for with either shows that write, whichever store answers. The token
identifies nobody and allows nothing; in the header it has to be one of ours, in the cookie nonsense is
ignored.
"""
PROBLEMS = {
    400: "Something in the request is wrong; `fieldViolations` say what",
    401: "No valid token",
    403: "Not yours, or a role is missing",
    404: "No such order, or no such statement",
    405: "The path does not know this method",
    408: "The request did not arrive in time",
    409: "The order is changing; send the request again. Or the statement is not ready; see Retry-After",
    410: "The statement is gone; ask for it anew",
    412: "The order has another version than If-Match says; get it and decide anew",
    413: "The body is larger than the limit",
    415: "The body is not JSON",
    422: "The Idempotency-Key was used before with another request",
    429: "Too many requests; see Retry-After",
    500: "Something went wrong inside; `traceId` leads to it",
    503: "Too busy, or a part of the mesh cannot be reached now; see Retry-After",
    504: "The deadline passed; with an Idempotency-Key, sending the request again is safe",
}
_ANSWERS: dict[str, dict[int, tuple[type[BaseModel] | None, str]]] = {
    "create_order": {
        201: (wire.Order, "The new order"),
        200: (wire.Order, "The order that the first try made"),
    },
    "get_order": {200: (wire.Order, "The order"), 304: (None, "It is still the version you have")},
    "update_order": {200: (wire.Order, "The order with its labels")},
    "list_orders": {200: (wire.OrderPage, "A page of orders")},
    "follow_order": {200: (None, "Events, each an order"), 204: (None, "Nothing more will come")},
    "read_journal": {200: (wire.Journal, "A page of the journal")},
    "request_statement": {
        202: (statement_wire.Statement, "It is being made; look again where Location says"),
        200: (statement_wire.Statement, "What is meant was there, and is over"),
    },
    "get_statement": {200: (statement_wire.Statement, "The statement")},
    "list_statements": {200: (statement_wire.StatementPage, "A page of statements")},
    "cancel_statement": {200: (statement_wire.Statement, "The statement, ended unless it was over")},
    "download_statement": {302: (None, "The file is where Location says, for some minutes")},
}
_TOLD_AFTER_A_WRITE = {
    seen.HEADER: {
        "description": "What you have seen by now, for your next list or write; also set as a cookie.",
        "schema": {"type": "string"},
    }
}
_ONLY_WITH_BODY = frozenset({413, 415, 422})
_ONLY_OF_UPDATES = frozenset({412})
_ONLY_OF_DOWNLOADS = frozenset({410})
_WRITES_OF_ORDERS: dict[str, type[BaseModel]] = {
    "create_order": wire.CreateOrder,
    "update_order": wire.UpdateOrder,
}
_BODIES: dict[str, type[BaseModel]] = {
    **_WRITES_OF_ORDERS,
    "request_statement": statement_wire.RequestStatement,
}


_EXAMPLES: dict[str, dict[str, Any]] = {
    "create_order": {"kind": "payment", "amount": {"currencyCode": "EUR", "amountMinor": 1250}},
    "update_order": {"labels": {"invoice": "2024-117"}},
    "request_statement": {
        "firstDay": "2024-04-01",
        "lastDay": "2025-03-31",
        "timeZone": "Asia/Kolkata",
        "formats": ["CSV", "PDF"],
    },
}


def install(app: FastAPI) -> None:
    """Give the application its document, made once."""

    def document() -> dict[str, Any]:
        if not app.openapi_schema:
            app.openapi_schema = _document(app)
        return app.openapi_schema

    app.openapi = document  # type: ignore[method-assign]


def _document(app: FastAPI) -> dict[str, Any]:
    made = get_openapi(title=TITLE, version=app.version, description=DESCRIPTION, routes=app.routes)
    components = made.setdefault("components", {})
    components["schemas"] = _schemas()
    components["securitySchemes"] = {"token": {"type": "http", "scheme": "bearer", "bearerFormat": "JWT"}}
    for path in made["paths"].values():
        for operation in path.values():
            if operation.get("tags"):
                _complete(operation)
    return made


def _schemas() -> dict[str, Any]:
    models: list[type[BaseModel]] = [*_BODIES.values(), wire.Order, wire.OrderPage, wire.Journal, Problem]
    models += [statement_wire.Statement, statement_wire.StatementPage]
    _, definitions = models_json_schema(
        [(model, "validation") for model in models],
        by_alias=True,
        ref_template="#/components/schemas/{model}",
    )
    schemas: dict[str, Any] = definitions["$defs"]
    return schemas


def _complete(operation: dict[str, Any]) -> None:
    name = operation["operationId"].split("_v1_")[0]
    operation["operationId"] = name
    operation["security"] = [{"token": []}]
    body = _BODIES.get(name)
    if body is not None:
        content = {"application/json": _ref(body.__name__) | {"example": _EXAMPLES[name]}}
        operation["requestBody"] = {"required": True, "content": content}
    answers = {str(status): _answer(name, model, text) for status, (model, text) in _ANSWERS[name].items()}
    refusals = {
        str(status): {"description": text, "content": {MEDIA_TYPE: _ref("Problem")}}
        for status, text in PROBLEMS.items()
        if (body is not None or status not in _ONLY_WITH_BODY)
        and (name == "update_order" or status not in _ONLY_OF_UPDATES)
        and (name == "download_statement" or status not in _ONLY_OF_DOWNLOADS)
    }
    operation["responses"] = {**answers, **refusals}


def _answer(name: str, model: type[BaseModel] | None, text: str) -> dict[str, Any]:
    if model is not None:
        answer = {"description": text, "content": {"application/json": _ref(model.__name__)}}
        return {**answer, "headers": _TOLD_AFTER_A_WRITE} if name in _WRITES_OF_ORDERS else answer
    if name == "follow_order" and text.startswith("Events"):
        return {"description": text, "content": {"text/event-stream": {"schema": {"type": "string"}}}}
    return {"description": text}


def _ref(name: str) -> dict[str, Any]:
    return {"schema": {"$ref": f"#/components/schemas/{name}"}}
