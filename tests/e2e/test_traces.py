"""P8: from an order id one gets to its journal, its trace and its logs."""

import json
from typing import Any
from uuid import uuid4

import pytest

from chassis.testing import eventually
from ordermesh.order.v1 import order_service_pb2 as pb
from tests.stack import World

pytestmark = pytest.mark.timeout(120)


def logged(world: World, process: str) -> list[dict[str, Any]]:
    lines = world.places.log(process).read_text().splitlines()
    return [json.loads(line) for line in lines if line.startswith("{")]


async def test_an_order_id_leads_to_its_journal_its_trace_and_the_logs_of_every_room_it_passed(
    world: World,
) -> None:
    trace_id = uuid4().hex
    headers = {
        "idempotency-key": str(uuid4()),
        "prefer": "wait=5",
        "traceparent": f"00-{trace_id}-00f067aa0ba902b7-01",
    }
    body = {"kind": "payment", "amount": {"currencyCode": "EUR", "amountMinor": 1250}}
    async with world.rest("alice") as http:
        made = (await http.post("/v1/orders", json=body, headers=headers)).json()
    assert made["status"] == "SUCCESS"

    order = await world.get(made["orderId"])
    assert order.traceparent.split("-")[1] == trace_id
    request = pb.ListOrderEventsRequest(order_id=order.order_id)
    page = await world.mesh.orders.ListOrderEvents(request, timeout=5.0)
    assert [event.traceparent.split("-")[1] for event in page.events] == [trace_id] * 2

    async def in_the_logs() -> bool:
        about = [line for line in logged(world, "order_svc.s1") if line.get("order_id") == order.order_id]
        asked = [line for line in logged(world, "gateway") if line.get("trace.id") == trace_id]
        changes = [line for line in about if line["event.action"] == "order_changed"]
        kinds = [line["kind"] for line in changes]
        same = {line["trace.id"] for line in changes} == {trace_id}
        return kinds == ["OPENED", "SETTLED"] and same and len(asked) > 0

    await eventually(in_the_logs)
