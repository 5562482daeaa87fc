"""What a mobile app sees: orders over REST, on a real socket, with a mesh behind mTLS."""

import uuid
from collections.abc import AsyncIterator
from typing import Any

import pytest

from chassis.auth import Role
from chassis.errors import ShardUnavailable
from tests import gateways
from tests.gateways import Rest, new_order


@pytest.fixture(scope="module")
async def directory(tmp_path_factory):
    return tmp_path_factory.mktemp("gateway")


@pytest.fixture
async def rest(directory) -> AsyncIterator[Rest]:
    async with gateways.opened(directory, profile="local") as opened:
        yield opened


async def test_a_created_order_is_found_where_location_says(rest):
    made = await rest.create(body=new_order(description="two tickets", labels={"cart": "7"}))
    assert made.status_code == 201
    found = await rest.get(made.headers["location"])
    assert found.status_code == 200
    assert found.json() == made.json()
    assert made.json()["amount"] == {"currencyCode": "EUR", "amountMinor": 1250}
    assert made.json()["labels"] == {"cart": "7"}
    assert made.json()["status"] == "PENDING"
    assert made.json()["createTime"].endswith("Z")
    assert "traceparent" not in made.json()
    assert "failureReason" not in made.json()


async def test_the_same_key_gives_the_first_order_and_another_body_is_refused(rest):
    key = str(uuid.uuid4())
    first = await rest.create(key=key)
    again = await rest.create(key=f'"{key}"')
    other = await rest.create(key=key, body=new_order(description="more"))
    assert (first.status_code, again.status_code, other.status_code) == (201, 200, 422)
    assert "idempotent-replayed" not in first.headers
    assert again.headers["idempotent-replayed"] == "true"
    assert again.json() == first.json()
    assert again.headers["location"] == first.headers["location"]
    assert other.json()["reason"] == "REQUEST_ID_REUSED"
    assert len(rest.mesh.orders) == 1


async def test_a_preference_to_wait_is_passed_on_with_a_deadline_that_has_room_for_it(rest):
    waited = await rest.create(prefer="wait=12")
    plain = await rest.create()
    assert waited.headers["preference-applied"] == "wait=12"
    assert "preference-applied" not in plain.headers
    assert rest.mesh.creates[0].wait.seconds == 12
    assert not rest.mesh.creates[1].HasField("wait")
    first, second = (call.deadline for call in rest.mesh.calls)
    assert 11 < first - second < 12.5


async def test_the_longest_wait_and_timeout_are_bounded(rest):
    asked = await rest.create(prefer="wait=86400")
    assert asked.headers["preference-applied"] == "wait=30"
    await rest.create(prefer="wait=30", x_request_timeout="999999")
    await rest.create(x_request_timeout="1500ms")
    waiting, bounded, short = (call.deadline for call in rest.mesh.calls)
    assert abs(bounded - waiting) < 1
    assert 32 < bounded - short < 34


async def test_the_mesh_is_told_who_asks_and_that_the_gateway_vouches(rest):
    await rest.create("bob")
    await rest.get("/v1/orders", "mira", "operator", userid="x")
    create, listing = rest.mesh.calls
    assert (create.caller, create.subject.name, create.subject.roles) == ("gateway", "bob", {Role.USER})
    assert create.subject.act == "spiffe://ordermesh/gateway"
    assert listing.subject.roles == {Role.USER, Role.OPERATOR}


async def test_an_order_that_did_not_change_is_304(rest):
    order_id = (await rest.create()).json()["orderId"]
    path = f"/v1/orders/{order_id}"
    first = await rest.get(path)
    same = await rest.get(path, if_none_match=first.headers["etag"])
    assert (first.headers["etag"], same.status_code, same.content) == ('"1"', 304, b"")
    assert same.headers["etag"] == '"1"'
    await rest.mesh.settle(order_id)
    changed = await rest.get(path, if_none_match='W/"1"')
    assert (changed.status_code, changed.headers["etag"]) == (200, '"2"')
    assert changed.json()["status"] == "SUCCESS"
    assert changed.json()["settleTime"]
    assert changed.headers["cache-control"] == "private, no-cache"


async def test_labels_are_replaced_when_the_version_is_the_one_that_was_seen(rest):
    made = await rest.create(body=new_order(labels={"cart": "7"}))
    path = made.headers["location"]
    changed = await rest.patch(path, {"labels": {"shop": "3"}}, if_match=made.headers["etag"])
    assert (changed.status_code, changed.headers["etag"]) == (200, '"2"')
    assert changed.json()["labels"] == {"shop": "3"}
    late = await rest.patch(path, {"labels": {}}, if_match=made.headers["etag"])
    assert (late.status_code, late.json()["reason"]) == (412, "VERSION_MISMATCH")
    assert late.json()["metadata"] == {"version": "2"}
    for any_version in ({"if_match": "*"}, {}):
        assert (await rest.patch(path, {"labels": {}}, **any_version)).status_code == 200
    assert "labels" not in (await rest.get(path)).json()
    stranger = await rest.patch(path, {"labels": {}}, "bob")
    assert (stranger.status_code, stranger.json()["reason"]) == (403, "NOT_YOUR_ORDER")


@pytest.mark.parametrize(
    ("body", "if_match", "wrong"),
    [
        ({}, "*", "labels"),
        ({"labels": {"": "x"}}, "*", "labels"),
        ({"labels": None}, "*", "labels"),
        ({"labels": {}, "status": "SUCCESS"}, "*", "status"),
        ({"labels": {}}, '"0"', "If-Match"),
        ({"labels": {}}, 'W/"1"', "If-Match"),
        ({"labels": {}}, '"1", "2"', "If-Match"),
        ({"labels": {}}, "1", "If-Match"),
    ],
)
async def test_a_change_that_makes_no_sense_is_refused_with_its_field(rest, body, if_match, wrong):
    path = (await rest.create()).headers["location"]
    refused = await rest.patch(path, body, if_match=if_match)
    assert (refused.status_code, refused.json()["reason"]) == (400, "INVALID_FIELD")
    assert refused.json()["fieldViolations"][0]["field"].startswith(wrong)
    assert (await rest.get(path)).headers["etag"] == '"1"'


async def test_another_users_order_is_forbidden_on_every_path_and_an_operator_may_look(rest):
    order_id = (await rest.create("alice")).json()["orderId"]
    for path in (f"/v1/orders/{order_id}", f"/v1/orders/{order_id}/events", f"/v1/orders/{order_id}/journal"):
        stranger = await rest.get(path, "bob")
        assert (stranger.status_code, stranger.json()["reason"]) == (403, "NOT_YOUR_ORDER")
        assert "alice" not in stranger.text
    listed = await rest.get("/v1/orders?userId=alice", "bob")
    assert (listed.status_code, listed.json()["reason"]) == (403, "NOT_YOUR_ORDER")
    assert (await rest.get(f"/v1/orders/{order_id}", "mira", "operator")).status_code == 200
    assert (await rest.get("/v1/orders?userId=alice", "mira", "operator")).json()["orders"]


async def test_the_gateway_itself_hides_another_users_order_should_the_mesh_not(rest, monkeypatch):
    order = gateways.order_of("alice")
    rest.mesh.orders[order.order_id] = order
    monkeypatch.setattr(rest.mesh, "_seen", lambda order_id, _: rest.mesh.orders[order_id])
    stranger = await rest.get(f"/v1/orders/{order.order_id}", "bob")
    assert (stranger.status_code, stranger.json()["reason"]) == (403, "NOT_YOUR_ORDER")


async def test_the_journal_shows_what_happened(rest):
    order_id = (await rest.create()).json()["orderId"]
    journal = await rest.get(f"/v1/orders/{order_id}/journal")
    (opened,) = journal.json()["events"]
    assert (opened["version"], opened["kind"], opened["toStage"]) == (1, "OPENED", "SUBMITTING")
    assert opened["evidence"] == {"kind": "payment"}
    assert "fromStage" not in opened


async def test_every_answer_carries_its_id_and_where_the_time_went(rest):
    mine = await rest.get("/v1/orders", x_request_id="checkout-17")
    assert mine.headers["x-request-id"] == "checkout-17"
    assert "mesh;dur=" in mine.headers["server-timing"]
    assert mine.headers["x-content-type-options"] == "nosniff"
    refused = await rest.http.get("/v1/orders", headers={"x-request-id": 'odd"id'})
    assert refused.headers["x-request-id"] == refused.json()["requestId"] != 'odd"id'


async def test_what_the_mesh_refuses_is_repeated_with_its_reason(rest):
    rest.mesh.refusal = ShardUnavailable(shard="s2")
    refused = await rest.get("/v1/orders")
    assert refused.status_code == 503
    problem = refused.json()
    assert (problem["reason"], problem["metadata"]) == ("SHARD_UNAVAILABLE", {"shard": "s2"})
    assert (problem["retryAfterSeconds"], refused.headers["retry-after"]) == (0.5, "1")
    assert problem["detail"] == ShardUnavailable.sentence()


async def test_what_breaks_inside_is_told_to_nobody(rest, monkeypatch):
    rest.mesh.refusal = ValueError("password=hunter2")
    behind = await rest.get("/v1/orders")
    assert (behind.status_code, behind.json()["reason"]) == (500, "INTERNAL_ERROR")
    assert "hunter2" not in behind.text

    async def broken(*_: object) -> None:
        raise ValueError("password=hunter2")

    monkeypatch.setattr(type(rest.gateway.house.mesh), "list_orders", broken)
    here = await rest.get("/v1/orders")
    assert (here.status_code, here.json()["reason"]) == (500, "INTERNAL_ERROR")
    assert here.headers["content-type"] == "application/problem+json"
    assert "hunter2" not in here.text


async def test_a_mesh_that_is_away_is_unavailable_and_its_address_stays_secret(directory):
    async with gateways.opened(directory, mesh_target="127.0.0.1:1") as rest:
        refused = await rest.get("/v1/orders")
        assert (refused.status_code, refused.json()["reason"]) == (503, "SHARD_UNAVAILABLE")
        assert "127.0.0.1" not in refused.text


async def test_users_are_held_to_their_rates_and_told_when_to_come_back(directory):
    rates: dict[str, Any] = {
        "requests_per_user_per_s": 0.01,
        "requests_burst": 4,
        "creates_per_user_per_s": 0.01,
        "creates_burst": 2,
    }
    async with gateways.opened(directory, **rates) as rest:
        creates = [await rest.create() for _ in range(3)]
        assert [one.status_code for one in creates] == [201, 201, 429]
        refused = creates[-1]
        assert (refused.json()["reason"], refused.json()["metadata"]) == (
            "RATE_LIMITED",
            {"policy": "creates"},
        )
        assert int(refused.headers["retry-after"]) > 90
        assert (await rest.get("/v1/orders")).headers["ratelimit"].startswith('"requests";r=0;')
        assert (await rest.get("/v1/orders")).json()["metadata"] == {"policy": "requests"}
        assert (await rest.create("bob")).status_code == 201
        assert len(rest.mesh.creates) == 3


async def test_the_document_lists_every_path_with_its_problems(rest):
    document = (await rest.http.get("/openapi.json")).json()
    assert set(document["paths"]) == {
        "/v1/orders",
        "/v1/orders/{order_id}",
        "/v1/orders/{order_id}/events",
        "/v1/orders/{order_id}/journal",
        "/v1/statements",
        "/v1/statements/{statement_id}",
        "/v1/statements/{statement_id}/download",
    }
    create = document["paths"]["/v1/orders"]["post"]
    update = document["paths"]["/v1/orders/{order_id}"]["patch"]
    assert "412" in update["responses"]
    assert update["requestBody"]["content"]["application/json"]["schema"]["$ref"].endswith("/UpdateOrder")
    assert "412" not in create["responses"]
    assert create["requestBody"]["content"]["application/json"]["schema"]["$ref"].endswith("/CreateOrder")
    for methods in document["paths"].values():
        for operation in methods.values():
            assert operation["security"] == [{"token": []}]
            for status in ("400", "401", "403", "404", "405", "429", "500", "503", "504"):
                assert "application/problem+json" in operation["responses"][status]["content"]
    assert {"CreateOrder", "Order", "OrderPage", "Journal", "Problem", "Money", "Statement"} <= set(
        document["components"]["schemas"]
    )
    assert "HTTPValidationError" not in document["components"]["schemas"]


async def test_the_page_for_people_needs_nothing_from_elsewhere(rest):
    page = await rest.http.get("/docs")
    assert page.status_code == 200
    assert "/v1/orders/{order_id}/events" in page.text
    assert "Idempotency-Key" in page.text
    for loaded in ("<script", "src=", "https://cdn", "@import"):
        assert loaded not in page.text
    assert "default-src 'none'" in page.headers["content-security-policy"]
