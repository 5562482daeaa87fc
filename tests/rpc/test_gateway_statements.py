"""What a mobile app sees of statements: asked for, looked at, fetched; each user their own."""

import uuid
from collections.abc import AsyncIterator
from typing import Any

import pytest

from ordermesh.archive.v1.statement_service_pb2 import Statement, StatementTotal, StatementWish
from tests import gateways
from tests.gateways import Rest

YEAR = {
    "firstDay": "2024-04-01",
    "lastDay": "2025-03-31",
    "timeZone": "Asia/Kolkata",
    "formats": ["CSV", "PDF"],
}


@pytest.fixture(scope="module")
async def directory(tmp_path_factory):
    return tmp_path_factory.mktemp("gateway")


@pytest.fixture
async def rest(directory) -> AsyncIterator[Rest]:
    async with gateways.opened(directory, profile="local") as opened:
        yield opened


async def asked(rest: Rest, user: str = "alice", *, key: str = "", body: Any = None) -> Any:
    headers = {"Authorization": f"Bearer {rest.token(user)}", "Idempotency-Key": key or str(uuid.uuid4())}
    return await rest.http.post("/v1/statements", json=YEAR if body is None else body, headers=headers)


def ready(rest: Rest, statement_id: str) -> None:
    told = rest.mesh.statements.made[statement_id]
    told.state = Statement.READY
    told.order_count, told.size_bytes, told.sha256 = 3, 1234, "ab" * 32
    told.totals.append(
        StatementTotal(currency_code="INR", status="SUCCESS", order_count=3, amount_minor=str(2**60))
    )
    for stamp in (told.end_time, told.expire_time, told.as_of_time):
        stamp.GetCurrentTime()


async def test_a_statement_is_accepted_looked_at_and_fetched(rest):
    accepted = await asked(rest)
    assert accepted.status_code == 202
    assert accepted.headers["retry-after"] == "2"
    where = accepted.headers["location"]
    assert accepted.json()["state"] == "WAITING"
    assert (accepted.json()["firstDay"], accepted.json()["formats"]) == ("2024-04-01", ["CSV", "PDF"])
    wish = rest.mesh.statements.made[accepted.json()["statementId"]].wish
    assert (wish.time_zone, list(wish.formats)) == ("Asia/Kolkata", [StatementWish.CSV, StatementWish.PDF])

    early = await rest.get(f"{where}/download")
    assert (early.status_code, early.json()["reason"]) == (409, "STATEMENT_NOT_READY")
    assert (early.headers["retry-after"], early.json()["metadata"]) == ("2", {"state": "WAITING"})
    assert (await rest.get(where)).headers["retry-after"] == "2"

    ready(rest, accepted.json()["statementId"])
    found = await rest.get(where)
    assert (found.status_code, found.json()["state"]) == (200, "READY")
    assert "retry-after" not in found.headers
    assert found.json()["totals"] == [
        {"currencyCode": "INR", "status": "SUCCESS", "orderCount": 3, "amountMinor": 2**60}
    ]
    assert found.json()["sha256"] == "ab" * 32
    fetched = await rest.get(f"{where}/download")
    assert fetched.status_code == 302
    assert fetched.headers["location"] == "https://s3.invalid/file?signed=1"
    assert fetched.headers["cache-control"] == "no-store"


@pytest.mark.parametrize(
    ("state", "status"), [(Statement.FAILED, 409), (Statement.CANCELLED, 409), (Statement.EXPIRED, 410)]
)
async def test_a_statement_that_is_over_without_a_file_is_nothing_to_come_back_for(rest, state, status):
    accepted = await asked(rest)
    rest.mesh.statements.made[accepted.json()["statementId"]].state = state
    refused = await rest.get(f"{accepted.headers['location']}/download")
    assert (refused.status_code, refused.json()["reason"]) == (status, "STATEMENT_NOT_READY")
    assert "retry-after" not in refused.headers
    assert refused.json()["metadata"] == {"state": Statement.State.Name(state)}
    assert refused.json()["fieldViolations"] == []


async def test_the_same_key_gives_the_same_statement_and_a_second_one_has_to_wait(rest):
    key = str(uuid.uuid4())
    first, again, other = await asked(rest, key=key), await asked(rest, key=key), await asked(rest)
    assert (first.status_code, again.status_code) == (202, 202)
    assert again.headers["location"] == first.headers["location"]
    assert "idempotent-replayed" not in first.headers
    assert again.headers["idempotent-replayed"] == "true"
    assert (other.status_code, other.json()["reason"]) == (429, "STATEMENT_RUNNING")
    assert int(other.headers["retry-after"]) == 30
    ready(rest, first.json()["statementId"])
    assert (await asked(rest, key=key)).status_code == 200


async def test_the_link_of_a_mail_leads_to_a_page_that_says_how_to_go_on(rest):
    made = (await asked(rest)).json()["statementId"]
    page = await rest.http.get(f"/statements/{made}")
    assert (page.status_code, page.headers["content-type"]) == (200, "text/html; charset=utf-8")
    assert f"$GATEWAY/v1/statements/{made}/download" in page.text
    # Whether there is such a statement, it does not say.
    other = str(uuid.uuid4())
    assert (await rest.http.get(f"/statements/{other}")).text == page.text.replace(made, other)
    assert (await rest.http.get("/statements/<b>")).status_code == 400


async def test_nobody_sees_a_statement_of_somebody_else(rest):
    where = (await asked(rest)).headers["location"]
    for path in (where, f"{where}/download"):
        refused = await rest.get(path, "bob")
        assert (refused.status_code, refused.json()["reason"]) == (404, "STATEMENT_NOT_FOUND")
    assert (await rest.get("/v1/statements", "bob")).json() == {"statements": []}
    headers = {"Authorization": f"Bearer {rest.token('bob')}"}
    assert (await rest.http.delete(where, headers=headers)).status_code == 404
    assert rest.mesh.statements.calls[0].subject.name == "alice"


async def test_every_state_of_the_mesh_can_be_said(rest):
    made = (await asked(rest)).json()["statementId"]
    for number in Statement.State.values():
        if number:
            rest.mesh.statements.made[made].state = number
            found = await rest.get(f"/v1/statements/{made}")
            assert (found.status_code, found.json()["state"]) == (200, Statement.State.Name(number))


async def test_statements_are_listed_and_ended(rest):
    made = (await asked(rest)).json()["statementId"]
    page = await rest.get("/v1/statements?pageSize=5")
    assert [each["statementId"] for each in page.json()["statements"]] == [made]
    assert page.json()["nextPageToken"] == "more"
    assert 'pageToken=more>; rel="next"' in page.headers["link"]
    headers = {"Authorization": f"Bearer {rest.token('alice')}"}
    ended = await rest.http.delete(f"/v1/statements/{made}", headers=headers)
    assert (ended.status_code, ended.json()["state"]) == (200, "CANCELLED")


async def test_a_statement_that_failed_says_why(rest):
    made = (await asked(rest)).json()["statementId"]
    rest.mesh.statements.made[made].state = Statement.FAILED
    found = await rest.get(f"/v1/statements/{made}")
    assert found.json()["error"] == {"code": 15, "detail": "a segment is damaged"}


async def test_what_became_of_the_mail_is_shown(rest):
    made = (await asked(rest)).json()["statementId"]
    assert "mail" not in (await rest.get(f"/v1/statements/{made}")).json()
    ready(rest, made)
    for number in Statement.Mail.values():
        rest.mesh.statements.made[made].mail = number
        found = (await rest.get(f"/v1/statements/{made}")).json()
        assert found.get("mail") == (Statement.Mail.Name(number).removeprefix("MAIL_") if number else None)


async def test_a_wait_is_passed_on(rest):
    where = (await asked(rest)).headers["location"]
    headers = {"Authorization": f"Bearer {rest.token('alice')}", "Prefer": "wait=7"}
    waited = await rest.http.get(where, headers=headers)
    assert waited.headers["preference-applied"] == "wait=7"
    assert rest.mesh.statements.waits[-1].wait.seconds == 7


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({}, "firstDay"),
        ({**YEAR, "firstDay": "2024-4-1"}, "firstDay"),
        ({**YEAR, "lastDay": "2024-02-30"}, "lastDay"),
        ({**YEAR, "firstDay": "<b>hello!!"}, "firstDay"),
        ({**YEAR, "firstDay": "2024-W10-4"}, "firstDay"),
        ({**YEAR, "formats": ["DOC"]}, "formats.0"),
        ({**YEAR, "email": "someone@else.invalid"}, "email"),
    ],
)
async def test_a_wrong_wish_is_refused_by_field(rest, body, field):
    refused = await asked(rest, body=body)
    assert refused.status_code == 400
    assert field in {each["field"] for each in refused.json()["fieldViolations"]}
    assert rest.mesh.statements.made == {}


async def test_a_day_that_is_none_is_told_what_one_is_and_not_repeated(rest):
    for day in ("<b>hello!!", "2024-02-30", "20240401--"):
        refused = await asked(rest, body={**YEAR, "firstDay": day})
        assert refused.json()["fieldViolations"] == [
            {"field": "firstDay", "description": "must be a day such as 2024-04-01"}
        ]
        assert day not in refused.text


async def test_a_statement_needs_a_key_and_a_sound_id(rest):
    headers = {"Authorization": f"Bearer {rest.token('alice')}"}
    assert (await rest.http.post("/v1/statements", json=YEAR, headers=headers)).status_code == 400
    assert (await rest.get("/v1/statements/nonsense")).status_code == 400
