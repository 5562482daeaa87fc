"""Lists over REST: every filter, how fresh a page is, and that a caller reads what it wrote."""

from collections.abc import AsyncIterator
from http.cookies import SimpleCookie
from typing import Any

import pytest

from chassis import consistency
from gateway.seen import COOKIE, HEADER
from history_svc.errors import ReadModelUnavailable
from ordermesh.history.v1 import history_service_pb2 as history
from ordermesh.order.v1.order_pb2 import Order
from tests import gateways
from tests.gateways import Rest

NONSENSE = ("nonsense", "YWJj", "!", "x" * 2000, consistency.sealed({"s1": (1, 7)}) + "AA")


@pytest.fixture(scope="module")
async def directory(tmp_path_factory):
    return tmp_path_factory.mktemp("gateway")


@pytest.fixture
async def rest(directory) -> AsyncIterator[Rest]:
    async with gateways.opened(directory, profile="local") as opened:
        yield opened


async def test_a_page_links_to_the_next_one_and_passes_its_filters_on(rest):
    await rest.create()
    rest.mesh.next_page_token = "abc+/="
    query = (
        "pageSize=2&status=PENDING&from=2026-01-01T00:00:00Z&until=2027-01-01T00:00:00%2B01:00&kind=payment"
        "&currency=EUR&minAmount=100&maxAmount=2000&q=two%20tick&consistency=eventual&partial=true"
    )
    page = await rest.get(f"/v1/orders?{query}")
    assert page.status_code == 200, page.text
    assert len(page.json()["orders"]) == 1
    asked = rest.mesh.pages[0]
    assert (asked.user_id, asked.page_size, asked.filter.status) == ("alice", 2, Order.PENDING)
    assert asked.from_time.ToJsonString() == "2026-01-01T00:00:00Z"
    assert asked.until_time.ToJsonString() == "2026-12-31T23:00:00Z"
    assert (asked.filter.kind, asked.filter.text) == ("payment", "two tick")
    assert asked.filter.amount == history.AmountRange(currency_code="EUR", min_minor=100, max_minor=2000)
    assert (asked.consistency, asked.return_partial_success) == (history.CONSISTENCY_EVENTUAL, True)
    link = page.headers["link"]
    assert link.startswith("</v1/orders?")
    assert link.endswith('>; rel="next"')
    await rest.get(link[1:].partition(">")[0])
    follow = rest.mesh.pages[1]
    assert follow.page_token == "abc+/="
    follow.page_token = ""
    assert follow == asked


async def test_a_page_says_where_it_came_from_and_the_last_one_links_nowhere(rest):
    rest.mesh.unreachable = ("read-model",)
    page = await rest.get("/v1/orders")
    assert "link" not in page.headers
    assert "nextPageToken" not in page.json()
    assert page.json()["unreachable"] == ["read-model"]
    said = page.json()["readInfo"]
    assert said.pop("asOf").endswith("Z")
    assert said == {
        "servedBy": "MERGED",
        "sources": ["sql:s1", "read_model"],
        "indexLagSeconds": 2.5,
        "overlayCount": 1,
        "readModelAsked": True,
    }
    rest.mesh.unreachable = ()
    assert (await rest.get("/v1/orders")).json()["unreachable"] == []


@pytest.mark.parametrize(
    ("name", "level"),
    [
        ("strong", history.CONSISTENCY_STRONG),
        ("default", history.CONSISTENCY_DEFAULT),
        ("eventual", history.CONSISTENCY_EVENTUAL),
    ],
)
async def test_how_fresh_a_page_has_to_be_is_passed_on(rest, name, level):
    assert (await rest.get(f"/v1/orders?consistency={name}")).status_code == 200
    assert rest.mesh.pages[0].consistency == level


@pytest.mark.parametrize(
    ("query", "field"),
    [
        ("status=DONE", "status"),
        ("kind=Two%20words", "kind"),
        ("from=yesterday", "from"),
        ("from=2026-01-01T00:00:00", "from"),
        ("until=2026-13-01T00:00:00Z", "until"),
        ("until=0001-01-01T00:00:00%2B02:00", "until"),
        ("currency=euro", "currency"),
        ("minAmount=5", "currency"),
        ("maxAmount=5", "currency"),
        ("currency=EUR&minAmount=-1", "minAmount"),
        ("currency=EUR&minAmount=1.5", "minAmount"),
        ("currency=EUR&minAmount=99999999999999999999", "minAmount"),
        ("currency=EUR&maxAmount=0", "maxAmount"),
        ("currency=EUR&minAmount=7&maxAmount=6", "maxAmount"),
        ("q=", "q"),
        ("q=---", "q"),
        ("q=a+b+c+d+e+f+g+h+i", "q"),
        (f"q={'x' * 129}", "q"),
        ("pageSize=0", "pageSize"),
        ("pageSize=101", "pageSize"),
        (f"pageToken={'x' * 513}", "pageToken"),
        ("consistency=sometimes", "consistency"),
        ("partial=perhaps", "partial"),
        ("partial=true", "partial"),
        ("partial=true&consistency=strong", "partial"),
        ("fromTime=2026-01-01T00:00:00Z", "fromTime"),
        ("q=a&q=b", "q"),
    ],
)
async def test_a_parameter_that_makes_no_sense_is_refused_by_its_name_in_rest(rest, query, field):
    refused = await rest.get(f"/v1/orders?{query}")
    assert (refused.status_code, refused.json()["reason"]) == (400, "INVALID_FIELD"), refused.text
    assert [wrong["field"] for wrong in refused.json()["fieldViolations"]] == [field]
    assert refused.headers["content-type"] == "application/problem+json"
    assert rest.mesh.pages == []


async def test_words_without_a_read_model_are_unavailable_and_say_when_to_come_back(rest):
    rest.mesh.refusal = ReadModelUnavailable(because="it is down")
    refused = await rest.get("/v1/orders?q=tickets")
    assert (refused.status_code, refused.json()["reason"]) == (503, "READ_MODEL_UNAVAILABLE")
    assert refused.headers["retry-after"] == "1"


def cookie_of(answer: Any) -> Any:
    return SimpleCookie(answer.headers["set-cookie"])[COOKIE]


async def listed_with(rest: Rest) -> str:
    """The token that the next list goes to the mesh with, cookies and all."""
    assert (await rest.get("/v1/orders")).status_code == 200
    token: str = rest.mesh.pages[-1].consistency_token
    return token


async def test_whoever_keeps_cookies_reads_its_own_writes(rest):
    assert await listed_with(rest) == ""
    made = await rest.create()
    assert await listed_with(rest) == made.headers[HEADER]
    assert consistency.opened(made.headers[HEADER]) == {"s1": (1, 101)}
    cookie = cookie_of(made)
    assert cookie.value == made.headers[HEADER]
    assert (cookie["httponly"], cookie["samesite"], cookie["path"]) == (True, "Strict", "/v1")
    assert (cookie["max-age"], cookie["secure"]) == ("60", "")
    changed = await rest.patch(made.headers["location"], {"labels": {}})
    assert consistency.opened(await listed_with(rest)) == {"s1": (1, 102)}
    assert cookie_of(changed).value == changed.headers[HEADER]
    assert "set-cookie" not in (await rest.get("/v1/orders")).headers


async def test_writes_on_several_shards_merge_and_the_newest_of_each_counts(rest):
    await rest.create()
    rest.mesh.shard, rest.mesh.xid = "v1", 7
    last = await rest.create()
    assert consistency.opened(await listed_with(rest)) == {"v1": (1, 8), "s1": (1, 101)}
    rest.mesh.shard, rest.mesh.xid = "s1", 50
    behind = await rest.create()
    assert consistency.opened(behind.headers[HEADER]) == {"s1": (1, 101), "v1": (1, 8)}
    rest.http.cookies.clear()
    mine = consistency.sealed({"s2": (2, 5)})
    told = await rest.patch(last.headers["location"], {"labels": {}}, ordermesh_consistency_token=mine)
    assert consistency.opened(told.headers[HEADER]) == {"s1": (1, 52), "s2": (2, 5)}


async def test_the_header_goes_before_the_cookie_and_eventual_looks_at_no_cookie(rest):
    await rest.create()
    mine = consistency.sealed({"s2": (2, 5)})
    await rest.get("/v1/orders", ordermesh_consistency_token=mine)
    await rest.get("/v1/orders?consistency=eventual")
    await rest.get("/v1/orders?consistency=eventual", ordermesh_consistency_token=mine)
    assert [page.consistency_token for page in rest.mesh.pages] == [mine, "", mine]


@pytest.mark.parametrize("nonsense", NONSENSE)
async def test_nonsense_is_ignored_in_a_cookie_and_refused_in_a_header(rest, nonsense):
    rest.http.cookies.set(COOKIE, nonsense)
    assert await listed_with(rest) == ""
    assert consistency.opened((await rest.create()).headers[HEADER]) == {"s1": (1, 101)}
    for refused in (
        await rest.get("/v1/orders", ordermesh_consistency_token=nonsense),
        await rest.create(ordermesh_consistency_token=nonsense),
        await rest.patch("/v1/orders/7", {"labels": {}}, ordermesh_consistency_token=nonsense),
    ):
        assert (refused.status_code, refused.json()["reason"]) == (400, "INVALID_FIELD")
        assert [wrong["field"] for wrong in refused.json()["fieldViolations"]] == [HEADER]
    assert len(rest.mesh.orders) == 1


async def test_a_token_lets_nobody_in_and_shows_nobody_elses_orders(rest):
    made = await rest.create("alice")
    assert rest.http.cookies.get(COOKIE) == made.headers[HEADER]
    assert (await rest.http.get("/v1/orders")).status_code == 401
    bobs = await rest.get("/v1/orders", "bob")
    assert bobs.json()["orders"] == []
    assert (await rest.get("/v1/orders?userId=alice", "bob")).status_code == 403
    assert (await rest.get(made.headers["location"], "bob")).status_code == 403


async def test_cookies_of_production_are_for_https_only_and_live_as_long_as_is_set(directory):
    async with gateways.opened(directory, consistency_cookie_s=5) as rest:
        cookie = cookie_of(await rest.create())
        assert (cookie["secure"], cookie["max-age"]) == (True, "5")


async def test_the_document_describes_every_parameter_and_the_header_of_writes(rest):
    paths = (await rest.http.get("/openapi.json")).json()["paths"]
    listing = {each["name"]: each for each in paths["/v1/orders"]["get"]["parameters"]}
    assert {
        *("status", "kind", "from", "until", "currency", "minAmount", "maxAmount", "q", "pageSize"),
        *("pageToken", "consistency", "partial", "userId", HEADER),
    } <= listing.keys()
    assert all(each["description"] for each in listing.values())
    create = paths["/v1/orders"]["post"]["responses"]
    update = paths["/v1/orders/{order_id}"]["patch"]["responses"]
    for answer in (create["200"], create["201"], update["200"]):
        assert HEADER in answer["headers"]
    page = (await rest.http.get("/docs")).text
    assert "minAmount" in page
    assert "ReadInfo" in page
