"""What FastAPI calls when a route raises: each kind of exception becomes its problem."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, cast

from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException

from chassis.errors import InternalError, InvalidField, OrdermeshError
from gateway import bodies, problems
from gateway.edge import occasion, problem_response
from gateway.errors import MalformedJson, MeshRefused, MethodNotAllowed, NoSuchPath

if TYPE_CHECKING:
    from fastapi import FastAPI
    from starlette.requests import Request
    from starlette.responses import Response


def install(app: FastAPI) -> None:
    """Let the application answer with problems, whatever it raises."""
    handlers: dict[type[Exception], Any] = {
        OrdermeshError: _typed,
        MeshRefused: _mesh,
        RequestValidationError: _invalid,
        HTTPException: _of_framework,
        Exception: _unexpected,
    }
    for kind, handler in handlers.items():
        app.add_exception_handler(kind, handler)


async def _typed(request: Request, error: Exception) -> Response:
    return _refuse(request, cast("OrdermeshError", error))


async def _mesh(request: Request, error: Exception) -> Response:
    refusal = cast("MeshRefused", error).refusal
    return problem_response(problems.of_refusal(refusal, occasion(request.scope)), request.scope)


async def _invalid(request: Request, error: Exception) -> Response:
    wrong = cast("RequestValidationError", error)
    return _refuse(request, InvalidField(*bodies.violations(wrong.errors())))


async def _of_framework(request: Request, error: Exception) -> Response:
    raised = cast("HTTPException", error)
    if raised.status_code == 404:
        return _refuse(request, NoSuchPath())
    if raised.status_code == 405:
        return _refuse(request, MethodNotAllowed(), raised.headers)
    return _refuse(request, MalformedJson(expected="a well-formed request"))


async def _unexpected(request: Request, _: Exception) -> Response:
    """Answer; the exception itself goes on to the edge, which logs it."""
    return _refuse(request, InternalError())


def _refuse(request: Request, error: OrdermeshError, headers: Any = None) -> Response:
    return problem_response(problems.of_error(error, occasion(request.scope)), request.scope, headers)
