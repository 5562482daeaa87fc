"""How the routes answer."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any
from urllib.parse import urlencode

from starlette.responses import Response

if TYPE_CHECKING:
    from fastapi import Request
    from pydantic import BaseModel


def next_link(request: Request, token: str | None) -> dict[str, str]:
    """The header that names the next page, when there is one."""
    if token is None:
        return {}
    query = [(name, value) for name, value in request.query_params.multi_items() if name != "pageToken"]
    return {"link": f'<{request.url.path}?{urlencode([*query, ("pageToken", token)])}>; rel="next"'}


def answer(model: BaseModel, *, status: int = 200, headers: dict[str, str]) -> Response:
    """A model as JSON that nobody stores."""
    settled: dict[str, Any] = {"cache-control": "no-store", **headers}
    return Response(model.model_dump_json(exclude_none=True), status, settled, "application/json")
