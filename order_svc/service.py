"""The handlers of OrderService: proto -> domain -> store -> proto. Who may call is decided at the gate; here
only whose order it is.
"""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING

import structlog

from chassis.errors import Contended, DeadlineExceeded, Overloaded, ShardUnavailable, StaleRoute
from order_svc import labels, metrics, points, wire
from order_svc.domain import open_order, transition
from order_svc.errors import UnknownKind, UnknownShard
from order_svc.events import AnyEvent
from order_svc.order import Change, Decision, Order, Outcome, Seen
from ordermesh.order.v1 import order_service_pb2 as pb

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Mapping
    from uuid import UUID

    from chassis.ids import OrderIds
    from chassis.rpc import Call
    from chassis.supervise import OwnedTasks
    from chassis.tokens import PageTokens
    from order_svc.changes import Changes
    from order_svc.contract import Rules
    from order_svc.driver import LegDriver
    from order_svc.poison import Poison
    from order_svc.rows import Claim
    from order_svc.store import Created, Decided, OrderStore


log = structlog.get_logger("orders")


@dataclass(frozen=True, slots=True)
class OrderService:
    """Every method of the proto. jitter: draws a number in [0, 1).

    Writes are owned tasks: a cancelled call does not cancel them.
    """

    shard: str
    kinds: Mapping[str, tuple[str, ...]]
    rules: Rules
    orders: OrderStore
    driver: LegDriver
    changes: Changes
    poison: Poison
    order_ids: OrderIds
    owned: OwnedTasks
    tokens: PageTokens
    jitter: Callable[[], float]

    async def CreateOrder(self, request: pb.CreateOrderRequest, call: Call) -> pb.CreateOrderResponse:
        """Record an order, submit its first leg, and wait for the end when asked to."""
        asked = wire.asked(request)
        call.subject.must_own(asked.user_id)
        route = wire.route(call.metadata, asked.user_id)
        legs = self._legs(asked.kind)

        elsewhere = wire.replayed_order(call.metadata)
        if elsewhere is not None:
            created = await self._for(call).replay(elsewhere, asked.user_id, asked.request_id)
            return await self._created(created, asked.wait_s, call)

        def make() -> Change:
            return open_order(asked.wish(legs, self.order_ids.new(route.bucket), call), self.rules)

        began = time.perf_counter()
        created = await self.driver.create(
            legs[0],
            make,
            epoch=route.epoch,
            fingerprint=asked.fingerprint(),
            deadline=call.deadline,
        )
        metrics.CREATE_SECONDS.observe(time.perf_counter() - began)
        return await self._created(created, asked.wait_s, call)

    async def GetOrder(self, request: pb.GetOrderRequest, call: Call) -> pb.GetOrderResponse:
        """One order as it is now."""
        return pb.GetOrderResponse(order=wire.order(await self._mine(request.order_id, call)))

    async def UpdateOrder(self, request: pb.UpdateOrderRequest, call: Call) -> pb.UpdateOrderResponse:
        """Give an order other labels, wherever it stands."""
        event = wire.relabelled(request, call)
        order_id = (await self._mine(request.order_id, call)).order_id
        decided = await self._decide(order_id, event, call, points.UPDATE)
        if decided.decision is None:
            await self._for(call).must_be_relabelling(order_id, event.event_id, labels.digest(event.labels))
        return pb.UpdateOrderResponse(
            order=wire.order(decided.order), consistency_token=wire.consistency_token(decided.position)
        )

    async def BatchGetOrders(
        self, request: pb.BatchGetOrdersRequest, call: Call
    ) -> pb.BatchGetOrdersResponse:
        """Those of some orders that exist; somebody else's are missing to a user."""
        wanted = wire.order_ids(request)
        found = {order.order_id: order for order in await self._for(call).get_many(wanted)}
        seen = {key: order for key, order in found.items() if _may_see(order, call)}
        return pb.BatchGetOrdersResponse(
            orders=[wire.order(order) for order in seen.values()],
            missing_order_ids=[str(key) for key in wanted if key not in seen],
        )

    async def WatchOrder(
        self, request: pb.WatchOrderRequest, call: Call
    ) -> AsyncIterator[pb.WatchOrderResponse]:
        """The order now and after every change, until it is settled."""
        order = await self._mine(request.order_id, call)
        orders = self._for(call)
        async for changed in self.changes.follow(orders, order, request.after_version):
            yield pb.WatchOrderResponse(order=wire.order(changed))

    async def ListOrderEvents(
        self, request: pb.ListOrderEventsRequest, call: Call
    ) -> pb.ListOrderEventsResponse:
        """A page of the journal."""
        order = await self._mine(request.order_id, call)
        size, query = wire.page_size(request.page_size), f"events {order.order_id}"
        after = int(self._opened(request.page_token, query) or b"0")
        events = await self._for(call).events(order.order_id, after, size + 1)
        more = str(events[size - 1].version).encode() if len(events) > size else None
        return pb.ListOrderEventsResponse(
            events=[wire.event(event) for event in events[:size]], next_page_token=self._sealed(more, query)
        )

    async def ClaimDueOrders(
        self, request: pb.ClaimDueOrdersRequest, call: Call
    ) -> pb.ClaimDueOrdersResponse:
        """Lease due orders to recovery; those that look poisonous are parked instead."""
        self._must_be_here(request.shard)
        asked = wire.claim_asked(request)
        claims = await self._claimed(asked, call)
        metrics.CLAIMED.labels("PROBE").inc(len(claims))
        holds = [] if claims else await self._for(call).holds()
        held = [hold.reason for hold in holds if hold.scope == "all"]
        return pb.ClaimDueOrdersResponse(
            claims=[wire.claim(claim) for claim in self.poison.sift(claims)], hold_reason="".join(held)
        )

    async def ReportVerdict(self, request: pb.ReportVerdictRequest, call: Call) -> pb.ReportVerdictResponse:
        """Let the rules decide on what a probe found out."""
        order_id, event = wire.order_id(request.order_id), wire.reported(request, call)
        token = wire.lease_token(request)
        decided = await self._decide(order_id, event, call, points.REPORT, lease_token=token)
        self.driver.nudge(decided.order)
        return pb.ReportVerdictResponse(
            order=wire.order(decided.order), consistency_token=wire.consistency_token(decided.position)
        )

    async def ListDueOrders(self, request: pb.ListDueOrdersRequest, call: Call) -> pb.ListDueOrdersResponse:
        """A page of orders that wait, the most overdue first."""
        self._must_be_here(request.shard)
        size, query = wire.page_size(request.page_size), f"due {request.shard} {request.overdue_only}"
        after = wire.position(self._opened(request.page_token, query))
        due = await self._for(call).list_due(after, overdue_only=request.overdue_only, limit=size + 1)
        last = due[size - 1] if len(due) > size else None
        more = None if last is None else wire.packed_position(last.due_at, last.order.order_id)
        return pb.ListDueOrdersResponse(
            due_orders=[wire.due_order(each) for each in due[:size]],
            next_page_token=self._sealed(more, query),
        )

    async def ListDeadLetters(
        self, request: pb.ListDeadLettersRequest, call: Call
    ) -> pb.ListDeadLettersResponse:
        """A page of cases, the oldest first."""
        self._must_be_here(request.shard)
        size, query = wire.page_size(request.page_size), f"cases {request.shard} {request.include_closed}"
        after = wire.position(self._opened(request.page_token, query))
        cases = await self._for(call).dead_letters(
            after, include_closed=request.include_closed, limit=size + 1
        )
        last = cases[size - 1] if len(cases) > size else None
        more = None if last is None else wire.packed_position(last.opened_at, last.dead_letter_id)
        return pb.ListDeadLettersResponse(
            dead_letters=[wire.dead_letter(case) for case in cases[:size]],
            next_page_token=self._sealed(more, query),
        )

    async def GetDeadLetter(self, request: pb.GetDeadLetterRequest, call: Call) -> pb.GetDeadLetterResponse:
        """The open case of an order, or the last closed one."""
        order = await self._mine(request.order_id, call)
        case = await self._for(call).dead_letter(order.order_id)
        return pb.GetDeadLetterResponse(dead_letter=wire.dead_letter(case), order=wire.order(order))

    async def RedriveDeadLetter(
        self, request: pb.RedriveDeadLetterRequest, call: Call
    ) -> pb.RedriveDeadLetterResponse:
        """Put a parked order back to automation."""
        order_id, event = wire.order_id(request.order_id), wire.redriven(request, call)
        decided = await self._decide(order_id, event, call, points.REDRIVE)
        case = await self._for(call).closed_case(order_id, event.event_id, Outcome.REDRIVEN)
        return pb.RedriveDeadLetterResponse(
            order=wire.order(decided.order),
            dead_letter=wire.dead_letter(case),
            consistency_token=wire.consistency_token(decided.position),
        )

    async def ResolveDeadLetter(
        self, request: pb.ResolveDeadLetterRequest, call: Call
    ) -> pb.ResolveDeadLetterResponse:
        """Close a case on a person's word."""
        order_id, event = wire.order_id(request.order_id), wire.resolved(request, call)
        decided = await self._decide(order_id, event, call, points.RESOLVE)
        case = await self._for(call).closed_case(order_id, event.event_id, Outcome(event.outcome.value))
        return pb.ResolveDeadLetterResponse(
            order=wire.order(decided.order),
            dead_letter=wire.dead_letter(case),
            consistency_token=wire.consistency_token(decided.position),
        )

    async def PutHold(self, request: pb.PutHoldRequest, call: Call) -> pb.PutHoldResponse:
        """Keep recovery away from some orders."""
        self._must_be_here(request.shard)
        asked = wire.hold_asked(request)
        work = self._for(call).put_hold(
            asked.request_id, asked.scope, asked.reason, call.subject.name, asked.until
        )
        return pb.PutHoldResponse(hold=wire.hold(await self.owned.run(work, name="put hold")))

    async def LiftHold(self, request: pb.LiftHoldRequest, call: Call) -> pb.LiftHoldResponse:
        """End a hold."""
        self._must_be_here(request.shard)
        asked = wire.hold_asked(request)
        work = self._for(call).lift_hold(asked.request_id, asked.scope, call.subject.name, asked.reason)
        lifted = await self.owned.run(work, name="lift hold")
        return pb.LiftHoldResponse(hold=None if lifted is None else wire.hold(lifted))

    async def GetShardStatus(
        self, request: pb.GetShardStatusRequest, call: Call
    ) -> pb.GetShardStatusResponse:
        """Counts of what waits, and the holds."""
        self._must_be_here(request.shard)
        orders = self._for(call)
        waiting, cases, holds = await orders.waiting(), await orders.open_cases(), await orders.holds()
        return wire.shard_status(request.shard, waiting, cases, holds)

    async def _created(self, created: Created, wait_s: float, call: Call) -> pb.CreateOrderResponse:
        """The answer to a create, once its order is quiet or the wait is over."""
        order = await self.changes.until_quiet(self._for(call), created.order, wire.wait_s(wait_s, call))
        return pb.CreateOrderResponse(
            order=wire.order(order),
            replayed=created.replayed,
            consistency_token=wire.consistency_token(created.position),
        )

    def _legs(self, kind: str) -> tuple[str, ...]:
        """The legs of a kind. Raises: UnknownKind."""
        legs = self.kinds.get(kind)
        if legs is None:
            raise UnknownKind(kind=kind)
        return legs

    def _must_be_here(self, shard: str) -> None:
        """Raises: UnknownShard unless this process serves the shard."""
        if shard != self.shard:
            raise UnknownShard(shard=shard, here=self.shard)

    async def _mine(self, text: str, call: Call) -> Order:
        """An order that the caller may see. Raises: OrderIdInvalid, OrderNotFound, NotYourOrder,
        StaleRoute.
        """
        order = await self._for(call).get(wire.order_id(text))
        call.subject.must_own(order.user_id)
        return order

    def _for(self, call: Call) -> OrderStore:
        """The orders within the call's deadline: its reads end by then, its writes have begun by then."""
        return self.orders.until(call.deadline)

    async def _claimed(self, asked: wire.ClaimAsked, call: Call) -> list[Claim]:
        """Claim. If cancelled here: what is claimed all the same is given back, as nobody will hear of it."""
        orders = self._for(call)
        if asked.order_id is not None:
            work = orders.claim_one(asked.order_id, asked.lease, asked.claimed_by)
        else:
            work = orders.claim_probes(asked.limit, asked.lease, asked.claimed_by)
        task = self.owned.start(work, name="claim")
        try:
            return await asyncio.shield(task)
        except asyncio.CancelledError:
            self.owned.start(self._give_back(task), name="give claims back")
            raise

    async def _give_back(self, claiming: asyncio.Task[list[Claim]]) -> None:
        """Give back what was claimed for a caller who has gone."""
        for claim in await claiming:
            try:
                await self.orders.give_back(claim, timedelta(0))
            except (Contended, DeadlineExceeded, Overloaded, ShardUnavailable, StaleRoute) as failed:
                # It is claimed again when its lease has run out.
                order_id = str(claim.order.order_id)
                log.warning("claim_not_given_back", order_id=order_id, reason=failed.reason)

    async def _decide(
        self,
        order_id: UUID,
        event: AnyEvent,
        call: Call,
        at: points.Commit,
        *,
        lease_token: UUID | None = None,
    ) -> Decided:
        def rule(seen: Seen) -> Decision:
            return transition(seen, event, self.rules, jitter=self.jitter())

        work = self._for(call).decide(order_id, event.event_id, rule, at=at, lease_token=lease_token)
        return await self.owned.run(work, name=f"decide {order_id}")

    def _opened(self, token: str, query: str) -> bytes | None:
        return self.tokens.open(token, query) if token else None

    def _sealed(self, position: bytes | None, query: str) -> str:
        return "" if position is None else self.tokens.seal(position, query)


def _may_see(order: Order, call: Call) -> bool:
    return not call.subject.is_only_user or call.subject.name == order.user_id
