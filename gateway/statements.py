"""The routes of `/v1/statements`: ask for one, look how it stands, fetch it."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Header, Path, Request
from starlette.responses import Response

from chassis.ids import parse_uuid
from gateway import asks, bodies, replies
from gateway import statement_wire as wire
from gateway.clients import STATEMENTS
from gateway.house import Entrance, Inside
from gateway.params import IdempotencyKey, PageSize, PageToken

router = APIRouter(prefix="/v1", tags=["statements"])
LOOK_AGAIN_S = 2
"""When a statement that is being made is worth another look."""

StatementId = Annotated[str, Path(description="The statement, a UUID.", max_length=64)]
Prefer = Annotated[str | None, Header(description="`wait=N`: wait up to N seconds for its end.")]


@router.post("/statements", status_code=202, summary="Ask for a statement")
async def request_statement(
    ask: Entrance, house: Inside, request: Request, idempotency_key: IdempotencyKey
) -> Response:
    """Begin to make a document of all your orders in a period. An e-mail says when it is ready; that it
    failed is said only where Location leads, and so is what became of the mail. A repeat with the same
    Idempotency-Key gives the first one, and so does the same wish while that is being made and when it was
    first asked for within an hour; either begins one that failed again. `Idempotent-Replayed: true` says that
    nothing was begun: the one that is meant was there, whichever key it was asked for with.
    """
    ask.visit.allowance = house.creates.admit(ask.who.user_id)
    body = bodies.read(wire.RequestStatement, await request.body(), request.headers.get("content-type"))
    request_id = asks.idempotency_key(idempotency_key)
    wanted = wire.request(body, user_id=ask.who.user_id, request_id=request_id)
    operation = await house.mesh.request_statement(wanted, ask)
    statement = wire.statement(operation)
    headers = {"location": f"/v1/statements/{statement.statement_id}", **_look_again(statement)}
    if wire.was_there(operation):
        headers["idempotent-replayed"] = "true"
    return replies.answer(statement, status=200 if operation.done else 202, headers=headers)


@router.get("/statements/{statement_id}", summary="Look how a statement stands")
async def get_statement(
    ask: Entrance, house: Inside, request: Request, statement_id: StatementId, prefer: Prefer = None
) -> Response:
    """Show a statement as it is now, or when it is over if you prefer to wait."""
    wait_s = asks.wait_s(prefer, house.settings.wait_s_max)
    if wait_s and "x-request-timeout" not in request.headers:
        ask.deadline = min(ask.deadline + wait_s, ask.visit.arrived + house.settings.timeout_s_max)
    wanted = STATEMENTS.WaitStatementRequest(user_id=ask.who.user_id, statement_id=_id(statement_id))
    if wait_s:
        wanted.wait.seconds = wait_s
    statement = wire.statement(await house.mesh.wait_statement(wanted, ask))
    headers = _look_again(statement)
    if wait_s is not None:
        headers["preference-applied"] = f"wait={wait_s}"
    return replies.answer(statement, headers=headers)


@router.get("/statements", summary="List statements")
async def list_statements(
    ask: Entrance, house: Inside, request: Request, page_size: PageSize = None, page_token: PageToken = None
) -> Response:
    """List your statements, newest first."""
    wanted = STATEMENTS.ListStatementsRequest(
        user_id=ask.who.user_id, page_size=page_size or 0, page_token=page_token or ""
    )
    page = wire.page(await house.mesh.list_statements(wanted, ask))
    return replies.answer(page, headers=replies.next_link(request, page.next_page_token))


@router.delete("/statements/{statement_id}", summary="End a statement that is not ready yet")
async def cancel_statement(ask: Entrance, house: Inside, statement_id: StatementId) -> Response:
    """End a statement that is being made; one that is ready stays. Shows it as it is then."""
    wanted = STATEMENTS.CancelStatementRequest(user_id=ask.who.user_id, statement_id=_id(statement_id))
    return replies.answer(wire.statement(await house.mesh.cancel_statement(wanted, ask)), headers={})


@router.get("/statements/{statement_id}/download", status_code=302, summary="Fetch a statement that is ready")
async def download_statement(ask: Entrance, house: Inside, statement_id: StatementId) -> Response:
    """Send you to the file, by a link that works for minutes and for nobody who was not given it. 409 while
    the statement is being made, with `Retry-After`, and when it failed or was ended; 410 when it is gone.
    """
    wanted = STATEMENTS.LinkStatementRequest(user_id=ask.who.user_id, statement_id=_id(statement_id))
    link = await house.mesh.link_statement(wanted, ask)
    headers = {"location": link.url, "cache-control": "no-store", "referrer-policy": "no-referrer"}
    return Response(status_code=302, headers=headers)


def _id(text: str) -> str:
    return str(parse_uuid(text, field_name="statementId"))


def _look_again(statement: wire.Statement) -> dict[str, str]:
    return {} if statement.state in wire.OVER else {"retry-after": str(LOOK_AGAIN_S)}
