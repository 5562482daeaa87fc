"""The chapters about one order: made by curl, killed in mid-flight, parked and redriven, and its journal."""

from __future__ import annotations

import json
import os
import signal
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from uuid import uuid4

import httpx
from google.protobuf.duration_pb2 import Duration
from rich.table import Table

from ops import mesh
from ops.issuer import mint_token
from ops.stack import layout
from ordermesh.money.v1.money_pb2 import Money
from ordermesh.order.v1 import order_service_pb2 as pb
from ordermesh.order.v1.order_pb2 import Order
from ordermesh.upstream.v1 import simulator_service_pb2 as sim

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from ops.demo.stage import Stage
    from ops.stack.endpoints import Endpoints


@dataclass(slots=True)
class Story:
    """The chapters; each prints what it does and fails loudly when the platform does not keep its promise."""

    stage: Stage
    endpoints: Callable[[], Endpoints]
    stubs: mesh.Mesh

    async def an_order_by_curl(self) -> None:
        """Create an order over REST, twice with one key."""
        self.stage.title(
            "An order by curl", "gateway -> shard_proxy -> order_svc -> Postgres -> upstream, and back."
        )
        token = mint_token(layout.Places(self.stage.state_dir).issuer, "alice", ("user",), 3600)
        key, body = str(uuid4()), {"kind": "payment", "amount": {"currencyCode": "EUR", "amountMinor": 1250}}
        url = f"{self.endpoints().gateway}/v1/orders"
        self.stage.command(
            f"curl {url} -H 'Authorization: Bearer '$(ordermesh token --user alice) \\\n"
            f"       -H 'Idempotency-Key: {key}' -H 'Prefer: wait=5' \\\n"
            f"       -H 'Content-Type: application/json' -d '{json.dumps(body)}'"
        )
        headers = {"Authorization": f"Bearer {token}", "Idempotency-Key": key, "Prefer": "wait=5"}
        async with httpx.AsyncClient(timeout=15.0) as http:
            first = await http.post(url, json=body, headers=headers)
            again = await http.post(url, json=body, headers=headers)
        order = first.json()
        self.stage.expect(
            first.status_code == httpx.codes.CREATED, f"201 expected, got {first.status_code}: {first.text}"
        )
        self.stage.say(f"201 Created: order {order['orderId']} is [bold]{order['status']}[/].")
        same = again.json()["orderId"] == order["orderId"]
        self.stage.expect(
            same and again.status_code == httpx.codes.OK, "the repeat did not find the first order"
        )
        self.stage.say("The same call again: 200, the same order (Idempotent-Replayed: true).")

    async def a_kill_in_mid_flight(self) -> None:
        """Kill order_svc while its upstream works, and watch recovery finish the order."""
        self.stage.title(
            "kill -9 in mid-flight", "The upstream executes, but whoever asked it is dead before the answer."
        )
        async with mesh.simulator(self.endpoints(), "payments") as payments:
            slow = sim.Fault(
                kind=sim.Fault.SLOW, user_id_prefix="alice", duration=Duration(seconds=3), limit=1
            )
            await payments.SetFault(sim.SetFaultRequest(fault=slow), timeout=mesh.TIMEOUT_S)
        order = await self._create("alice")
        victim = self.endpoints().service("order_svc", "s1")
        await self._executed(order.order_id)
        os.kill(victim.pid, signal.SIGKILL)
        killed = time.monotonic()
        self.stage.command(
            f"kill -9 {victim.pid}   # order_svc of s1, while `payments` works on order {order.order_id}"
        )
        await self.stage.until("order_svc to come back", self._is_back(victim.pid))
        self.stage.say(
            f"A new order_svc runs after {time.monotonic() - killed:.1f} s (pid {self._pid('s1')})."
        )
        settled = await self.stage.until("recovery", self._in_state(order.order_id, Order.DONE))
        self.stage.expect(
            settled.status == Order.SUCCESS, f"SUCCESS expected, got {Order.Status.Name(settled.status)}"
        )
        took = time.monotonic() - killed
        executions = await self._executions(order.order_id)
        self.stage.expect(executions == 1, f"the upstream executed {executions} times")
        self.stage.say(
            f"recovery_svc asked the upstream what became of it: [bold]SUCCESS[/] {took:.1f} s "
            "after the kill, executed exactly once (the upstream's own ledger says so)."
        )

    async def a_dead_letter(self) -> str:
        """An upstream that never knows: park, look, redrive."""
        self.stage.title(
            "An upstream that says UNKNOWN",
            "No proof either way: nobody guesses. The order is parked as a dead letter.",
        )
        async with mesh.simulator(self.endpoints(), "payments") as payments:
            fault = sim.Fault(kind=sim.Fault.UNKNOWN, user_id_prefix="bob")
            await payments.SetFault(sim.SetFaultRequest(fault=fault), timeout=mesh.TIMEOUT_S)
            order = await self._create("bob")
            self.stage.say(f"Order {order.order_id}: waiting until the budget of probes is spent ...")
            await self.stage.until("parking", self._in_state(order.order_id, Order.PARKED))
            await payments.ClearFaults(sim.ClearFaultsRequest(), timeout=mesh.TIMEOUT_S)
        self.stage.command("ordermesh dlq list")
        case = await self.stubs.orders.GetDeadLetter(
            pb.GetDeadLetterRequest(order_id=order.order_id), timeout=mesh.TIMEOUT_S
        )
        table = Table("order", "user", "reason", "severity", "opened")
        letter = case.dead_letter
        opened = letter.open_time.ToDatetime().strftime("%H:%M:%S")
        table.add_row(letter.order_id, letter.user_id, letter.reason, str(letter.severity), opened)
        self.stage.console.print(table)
        self.stage.command(f"ordermesh dlq redrive {order.order_id} --reason 'payments knows again'")
        redrive = pb.RedriveDeadLetterRequest(
            order_id=order.order_id, request_id=str(uuid4()), reason="payments knows again"
        )
        await self.stubs.orders.RedriveDeadLetter(redrive, timeout=mesh.TIMEOUT_S)
        settled = await self.stage.until("the redrive", self._in_state(order.order_id, Order.DONE))
        self.stage.expect(
            settled.status == Order.SUCCESS, f"SUCCESS expected, got {Order.Status.Name(settled.status)}"
        )
        self.stage.say("Automation has it again, probes first, and finds it executed: [bold]SUCCESS[/].")
        return order.order_id

    async def the_journal(self, order_id: str) -> None:
        """Everything that happened to the last order."""
        self.stage.title("The journal", "Append-only, written in the same statement as each change.")
        self.stage.command(f"ordermesh order journal {order_id}")
        page = await self.stubs.orders.ListOrderEvents(
            pb.ListOrderEventsRequest(order_id=order_id, page_size=100), timeout=mesh.TIMEOUT_S
        )
        table = Table("v", "time", "what", "stage", "actor", "upstream says", "proof")
        for event in page.events:
            stage = f"{Order.Stage.Name(event.from_stage)} -> " if event.from_stage else ""
            table.add_row(
                str(event.version),
                event.event_time.ToDatetime().strftime("%H:%M:%S.%f")[:-3],
                event.kind,
                stage + Order.Stage.Name(event.to_stage),
                event.actor,
                json.loads(event.evidence_json or "{}").get("verdict", ""),
                event.proof,
            )
        self.stage.console.print(table)

    async def _create(self, user: str) -> Order:
        request = pb.CreateOrderRequest(
            user_id=user,
            request_id=str(uuid4()),
            kind="payment",
            amount=Money(currency_code="EUR", amount_minor=4200),
        )
        made = await self.stubs.orders.CreateOrder(request, timeout=mesh.TIMEOUT_S)
        return made.order

    async def _executions(self, order_id: str) -> int:
        async with mesh.simulator(self.endpoints(), "payments") as payments:
            ledger = await payments.GetLedger(sim.GetLedgerRequest(order_id=order_id), timeout=mesh.TIMEOUT_S)
        return len(ledger.executions)

    async def _executed(self, order_id: str) -> None:
        async def look() -> bool:
            return await self._executions(order_id) > 0

        await self.stage.until("the upstream to execute", look)

    def _is_back(self, old_pid: int) -> Callable[[], Awaitable[bool]]:
        async def look() -> bool:
            return self._pid("s1") not in (0, old_pid)

        return look

    def _pid(self, shard: str) -> int:
        return self.endpoints().service("order_svc", shard).pid

    def _in_state(self, order_id: str, stage: int) -> Callable[[], Awaitable[Any]]:
        async def look() -> Order | None:
            try:
                found = await self.stubs.orders.GetOrder(
                    pb.GetOrderRequest(order_id=order_id), timeout=mesh.TIMEOUT_S
                )
            except mesh.CallFailed:
                return None
            return found.order if found.order.stage == stage else None

        return look
