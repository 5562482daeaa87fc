"""`ordermesh demo`: a guided story on real processes: an order, a kill -9, the recovery, a dead letter and
its redrive.
"""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import signal
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any
from uuid import uuid4

import httpx
import typer
from google.protobuf.duration_pb2 import Duration
from rich.console import Console
from rich.table import Table

from ops import mesh, places
from ops.errors import OpsError
from ops.issuer import mint_token
from ops.stack import layout, local
from ordermesh.money.v1.money_pb2 import Money
from ordermesh.order.v1 import order_service_pb2 as pb
from ordermesh.order.v1.order_pb2 import Order
from ordermesh.upstream.v1 import simulator_service_pb2 as sim

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from ops.stack.endpoints import Endpoints

WIDTH = 118
"""Of the text; a narrower terminal wraps it."""
IMPATIENCE = json.dumps({"probes_max": 4, "cap_s": 1.5, "submit_margin_s": 0.2})
"""A story of a minute gives up sooner than even a laptop's stack."""
WAIT_S_MAX = 40.0
"""No step of the story takes longer; when one does, the demo fails instead of hanging."""


def demo(
    state_dir: Annotated[
        Path | None,
        typer.Option("--state-dir", help="Where to keep everything; default: a directory of its own."),
    ] = None,
    keep: Annotated[bool, typer.Option("--keep", help="Keep the data of the demo afterwards.")] = False,
) -> None:
    """Show the whole platform in less than a minute.

    Example: ordermesh demo
    """
    where = state_dir or places.default_state_dir().with_name("demo")
    if state_dir is None and not keep:
        shutil.rmtree(where, ignore_errors=True)
    asyncio.run(_tell(where))


async def _tell(state_dir: Path) -> None:
    console = Console(highlight=False, width=WIDTH)
    began = time.monotonic()
    console.print(
        "[bold]ordermesh demo[/]: real Postgres, every service a process of its own, mTLS between them.\n"
        "Starting 2 Postgres servers (control; shards s1, s2 and VIP shard v1), 3 order_svc, shard_proxy,\n"
        "gateway, history_svc and its projector, recovery_svc, archive_svc, an S3, 2 simulated upstreams ..."
    )
    extra = {f"order_svc.{shard}": {"POLICY": IMPATIENCE} for shard in layout.ALL_SHARDS}
    async with (
        local.running(state_dir, port_base=0, extra=extra) as stack,
        mesh.connect(stack.endpoints) as stubs,
    ):
        story = Story(console, lambda: stack.endpoints, stubs, state_dir)
        console.print(f"Everything is ready after {time.monotonic() - began:.1f} s.")
        await story.an_order_by_curl()
        await story.a_kill_in_mid_flight()
        order_id = await story.a_dead_letter()
        await story.the_journal(order_id)
    console.print(
        f"\n[bold green]The story is over[/] after {time.monotonic() - began:.0f} s; nothing runs any more."
    )
    console.print("Next: [bold]make up[/] leaves it running; the README shows what to try.")


@dataclass(slots=True)
class Story:
    """The chapters; each prints what it does and fails loudly when the platform does not keep its promise."""

    console: Console
    endpoints: Callable[[], Endpoints]
    stubs: mesh.Mesh
    state_dir: Path
    chapter: int = field(default=0)

    async def an_order_by_curl(self) -> None:
        """Create an order over REST, twice with one key."""
        self._title(
            "An order by curl", "gateway -> shard_proxy -> order_svc -> Postgres -> upstream, and back."
        )
        token = mint_token(layout.Places(self.state_dir).issuer, "alice", ("user",), 3600)
        key, body = str(uuid4()), {"kind": "payment", "amount": {"currencyCode": "EUR", "amountMinor": 1250}}
        url = f"{self.endpoints().gateway}/v1/orders"
        self._command(
            f"curl {url} -H 'Authorization: Bearer '$(ordermesh token --user alice) \\\n"
            f"       -H 'Idempotency-Key: {key}' -H 'Prefer: wait=5' \\\n"
            f"       -H 'Content-Type: application/json' -d '{json.dumps(body)}'"
        )
        headers = {"Authorization": f"Bearer {token}", "Idempotency-Key": key, "Prefer": "wait=5"}
        async with httpx.AsyncClient(timeout=15.0) as http:
            first = await http.post(url, json=body, headers=headers)
            again = await http.post(url, json=body, headers=headers)
        order = first.json()
        self._expect(
            first.status_code == httpx.codes.CREATED, f"201 expected, got {first.status_code}: {first.text}"
        )
        self._say(f"201 Created: order {order['orderId']} is [bold]{order['status']}[/].")
        same = again.json()["orderId"] == order["orderId"]
        self._expect(same and again.status_code == httpx.codes.OK, "the repeat did not find the first order")
        self._say("The same call again: 200, the same order (Idempotent-Replayed: true).")

    async def a_kill_in_mid_flight(self) -> None:
        """Kill order_svc while its upstream works, and watch recovery finish the order."""
        self._title(
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
        self._command(
            f"kill -9 {victim.pid}   # order_svc of s1, while `payments` works on order {order.order_id}"
        )
        await self._until("order_svc to come back", self._is_back(victim.pid))
        self._say(f"A new order_svc runs after {time.monotonic() - killed:.1f} s (pid {self._pid('s1')}).")
        settled = await self._until("recovery", self._in_state(order.order_id, Order.DONE))
        self._expect(
            settled.status == Order.SUCCESS, f"SUCCESS expected, got {Order.Status.Name(settled.status)}"
        )
        took = time.monotonic() - killed
        executions = await self._executions(order.order_id)
        self._expect(executions == 1, f"the upstream executed {executions} times")
        self._say(
            f"recovery_svc asked the upstream what became of it: [bold]SUCCESS[/] {took:.1f} s "
            "after the kill, executed exactly once (the upstream's own ledger says so)."
        )

    async def a_dead_letter(self) -> str:
        """An upstream that never knows: park, look, redrive."""
        self._title(
            "An upstream that says UNKNOWN",
            "No proof either way: nobody guesses. The order is parked as a dead letter.",
        )
        async with mesh.simulator(self.endpoints(), "payments") as payments:
            fault = sim.Fault(kind=sim.Fault.UNKNOWN, user_id_prefix="bob")
            await payments.SetFault(sim.SetFaultRequest(fault=fault), timeout=mesh.TIMEOUT_S)
            order = await self._create("bob")
            self._say(f"Order {order.order_id}: waiting until the budget of probes is spent ...")
            await self._until("parking", self._in_state(order.order_id, Order.PARKED))
            await payments.ClearFaults(sim.ClearFaultsRequest(), timeout=mesh.TIMEOUT_S)
        self._command("ordermesh dlq list")
        case = await self.stubs.orders.GetDeadLetter(
            pb.GetDeadLetterRequest(order_id=order.order_id), timeout=mesh.TIMEOUT_S
        )
        table = Table("order", "user", "reason", "severity", "opened")
        letter = case.dead_letter
        opened = letter.open_time.ToDatetime().strftime("%H:%M:%S")
        table.add_row(letter.order_id, letter.user_id, letter.reason, str(letter.severity), opened)
        self.console.print(table)
        self._command(f"ordermesh dlq redrive {order.order_id} --reason 'payments knows again'")
        redrive = pb.RedriveDeadLetterRequest(
            order_id=order.order_id, request_id=str(uuid4()), reason="payments knows again"
        )
        await self.stubs.orders.RedriveDeadLetter(redrive, timeout=mesh.TIMEOUT_S)
        settled = await self._until("the redrive", self._in_state(order.order_id, Order.DONE))
        self._expect(
            settled.status == Order.SUCCESS, f"SUCCESS expected, got {Order.Status.Name(settled.status)}"
        )
        self._say("Automation has it again, probes first, and finds it executed: [bold]SUCCESS[/].")
        return order.order_id

    async def the_journal(self, order_id: str) -> None:
        """Everything that happened to the last order."""
        self._title("The journal", "Append-only, written in the same statement as each change.")
        self._command(f"ordermesh order journal {order_id}")
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
        self.console.print(table)

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

        await self._until("the upstream to execute", look)

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

    async def _until(self, what: str, look: Callable[[], Awaitable[Any]]) -> Any:
        end = time.monotonic() + WAIT_S_MAX
        while True:
            found = await look()
            if found:
                return found
            self._expect(time.monotonic() < end, f"waited {WAIT_S_MAX:.0f} s for {what}")
            await asyncio.sleep(0.05)

    def _title(self, title: str, about: str) -> None:
        self.chapter += 1
        self.console.print(f"\n[bold]{self.chapter}. {title}[/]  [dim]{about}[/]")

    def _say(self, text: str) -> None:
        self.console.print(f"   {text}")

    def _command(self, text: str) -> None:
        self.console.print(f"   [cyan]$ {text}[/]", soft_wrap=True)

    def _expect(self, kept: bool, otherwise: str) -> None:
        if not kept:
            raise OpsError(
                f"the demo failed in chapter {self.chapter}: {otherwise}; see {self.state_dir}/logs"
            )
