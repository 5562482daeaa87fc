"""What happens to old orders while they are walked: their labels are changed, and parked ones are resolved.

Labels go through REST, as the user, with the version that the user knows in `If-Match`; a change that nobody
answers is asked for again under the same key. Only what was answered is promised to anybody.
"""

from __future__ import annotations

import asyncio
import json
import random
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final
from uuid import UUID, uuid4

import grpc

from chassis import rpc
from ops.load.http import ConnectionLost
from ops.load.senders import SEEN_HEADER, object_of, reason_of
from ops.mesh import spoken_by
from ordermesh.order.v1 import order_service_pb2 as pb
from ordermesh.order.v1.order_pb2 import Order

if TYPE_CHECKING:
    from collections.abc import Sequence

    from ops.load.http import Http, Response
    from ops.load.senders import Bearers
    from ops.load.walk.book import Book
    from ops.load.walk.figures import Walked
    from ordermesh.order.v1.order_service_pb2_grpc import OrderServiceAsyncStub

IN_FLIGHT_MAX: Final = 32
TRY_S: Final = 4.0
TRIES_MAX: Final = 10
AGAIN_S: Final = 0.3
RESOLVE_EVERY_S: Final = 2.0
CASES_MAX: Final = 100
ACTOR: Final = "load-walk"


@dataclass(slots=True)
class Relabeller:
    """Gives orders of some users other labels, at a rate, until cancelled. orders: user and order id."""

    http: Http
    bearers: Bearers
    book: Book
    walked: Walked
    orders: Sequence[tuple[str, str]]
    rate: float
    draw: random.Random
    _changing: set[str] = field(default_factory=set, init=False)

    async def run(self) -> None:
        """Begin changes as they are due; an order that is being changed is left alone."""
        async with asyncio.TaskGroup() as group:
            while True:
                await asyncio.sleep(self.draw.expovariate(self.rate))
                user, order_id = self.draw.choice(self.orders)
                if order_id not in self._changing and len(self._changing) < IN_FLIGHT_MAX:
                    group.create_task(self._alone(user, order_id), name=f"relabel-{order_id}")

    async def _alone(self, user: str, order_id: str) -> None:
        self._changing.add(order_id)
        try:
            await self._change(user, order_id)
        finally:
            self._changing.discard(order_id)

    async def _change(self, user: str, order_id: str) -> None:
        """Change one order once; given up, nobody knows whether it was."""
        key, labels = str(uuid4()), {"walk": str(self.draw.randrange(1_000_000))}
        version = self.book.newest(user, order_id)
        for _ in range(TRIES_MAX):
            try:
                answer = await self._patch(user, order_id, key, labels, version)
            except (ConnectionLost, OSError, TimeoutError) as failed:
                self.walked.failures[f"relabel {type(failed).__name__}"] += 1
            else:
                if answer.status == 200:
                    self._told(user, answer)
                    self.walked.relabelled += 1
                    return
                self.walked.failures[f"relabel {reason_of(answer)}"] += 1
                if answer.status == 401:
                    self.bearers.forget(user)
                elif answer.status in (409, 412, 428):
                    # Somebody else changed it, or a change of ours came through unheard.
                    await self._look(user, order_id)
                    return
            await asyncio.sleep(self.draw.uniform(AGAIN_S / 2, AGAIN_S * 2))

    async def _patch(
        self, user: str, order_id: str, key: str, labels: dict[str, str], version: int
    ) -> Response:
        headers = {
            "authorization": self.bearers.of(user),
            "content-type": "application/json",
            "idempotency-key": key,
            "if-match": f'"{version}"',
        }
        body = json.dumps({"labels": labels}).encode()
        return await self.http.send("PATCH", f"/v1/orders/{order_id}", headers, body, timeout_s=TRY_S)

    async def _look(self, user: str, order_id: str) -> None:
        """Learn the version of an order as it is now, which is a promise, too."""
        headers = {"authorization": self.bearers.of(user)}
        try:
            answer = await self.http.send("GET", f"/v1/orders/{order_id}", headers, timeout_s=TRY_S)
        except (ConnectionLost, OSError, TimeoutError):
            return
        if answer.status == 200:
            order = object_of(answer.body)
            self.book.see(user, order_id, order["version"], at=time.monotonic())

    def _told(self, user: str, answer: Response) -> None:
        order = object_of(answer.body)
        self.book.tell(
            user,
            order["orderId"],
            order["version"],
            at=time.monotonic(),
            labels=order.get("labels", {}),
            token=answer.headers.get(SEEN_HEADER, ""),
        )


@dataclass(slots=True)
class Resolver:
    """Closes open cases of some users, shard by shard, until cancelled, as an operator does."""

    stub: OrderServiceAsyncStub
    shards: Sequence[str]
    book: Book
    walked: Walked
    draw: random.Random

    async def run(self) -> None:
        """Resolve at most one case of one shard at each interval."""
        users, turn = set(self.book.users), 0
        while True:
            await asyncio.sleep(RESOLVE_EVERY_S)
            turn += 1
            try:
                await self._resolve_one(self.shards[turn % len(self.shards)], users)
            except grpc.aio.AioRpcError as failed:
                said = rpc.error_of(failed)
                self.walked.failures[f"resolve {said.reason or said.code.name}"] += 1

    async def _resolve_one(self, shard: str, users: set[str]) -> None:
        listed = await self.stub.ListDeadLetters(
            pb.ListDeadLettersRequest(shard=shard, page_size=CASES_MAX), timeout=TRY_S
        )
        cases = [case for case in listed.dead_letters if case.user_id in users]
        if not cases:
            return
        case = self.draw.choice(cases)
        outcome = self.draw.choice((Order.SUCCESS, Order.FAILED))
        answer = await self.stub.ResolveDeadLetter(
            pb.ResolveDeadLetterRequest(
                order_id=case.order_id,
                request_id=str(UUID(int=self.draw.getrandbits(128), version=4)),
                outcome=outcome,
                evidence="a walk resolves what it finds",
                reason="resolved by a load run",
                upstream_ref="load-walk" if outcome == Order.SUCCESS else "",
            ),
            timeout=TRY_S,
            metadata=spoken_by(ACTOR),
        )
        order = answer.order
        self.book.tell(
            order.user_id,
            order.order_id,
            order.version,
            at=time.monotonic(),
            labels=dict(order.labels),
            token=answer.consistency_token,
        )
        self.walked.resolved += 1
