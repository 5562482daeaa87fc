"""Users who are moved during a load, as planned: every so often one more is promoted, or sent back.

Which user is drawn; what is asked next follows from what was answered last. A move that nobody answers is
asked for again with the same request id, as an operator does.
"""

from __future__ import annotations

import asyncio
import random
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING
from uuid import uuid4

import grpc

from chassis import rpc
from ordermesh.routing.v1 import routing_service_pb2 as routing

if TYPE_CHECKING:
    from collections.abc import Sequence

    from ordermesh.routing.v1.routing_service_pb2_grpc import RoutingServiceAsyncStub

MOVE_S = 15.0
AGAIN_S = 0.25
TRIES_MAX = 40
REASON = "moved by a load run"


@dataclass(frozen=True, slots=True)
class Moved:
    """One move that was asked for. said: DONE, or why it is not."""

    at_s: float
    user_id: str
    kind: str
    said: str
    frozen_ms: float | None
    tries: int


@dataclass(slots=True)
class UserMover:
    """Carries out --vip-moves until it is cancelled; `done` grows."""

    stub: RoutingServiceAsyncStub
    users: Sequence[str]
    every_s: float
    seed: int
    done: list[Moved]
    vips: set[str]
    """Who is one now, as far as known."""

    async def run(self) -> None:
        """Move somebody at each multiple of the interval, or as soon as the last move is over."""
        draw, started, turn = random.Random(self.seed), time.monotonic(), 0
        while True:
            turn += 1
            await asyncio.sleep(max(0.0, started + turn * self.every_s - time.monotonic()))
            user = draw.choice(sorted(self.vips) if self.vips and draw.random() < 0.5 else self.users)
            await self._move(user, started)

    async def _move(self, user: str, started: float) -> None:
        demotes = user in self.vips
        kind = "DEMOTE" if demotes else "PROMOTE"
        request_id, said, tries, frozen_ms = str(uuid4()), "NO_ANSWER", 0, None
        while tries < TRIES_MAX:
            tries += 1
            try:
                move = await self._ask(user, request_id, demotes=demotes)
            except grpc.aio.AioRpcError as failed:
                refusal = rpc.error_of(failed)
                said = refusal.reason or refusal.code.name
                if refusal.code is grpc.StatusCode.FAILED_PRECONDITION:
                    # The last answer about this user was lost; now we know.
                    (self.vips.add if said == "ALREADY_VIP" else self.vips.discard)(user)
                    break
            else:
                said = routing.VipMove.Phase.Name(move.phase)
                frozen_ms = move.frozen_ms if move.HasField("frozen_ms") else None
                if move.phase == routing.VipMove.DONE:
                    (self.vips.discard if demotes else self.vips.add)(user)
                    break
            await asyncio.sleep(AGAIN_S)
        at_s = round(time.monotonic() - started, 1)
        self.done.append(Moved(at_s, user, kind, said, frozen_ms, tries))

    async def _ask(self, user: str, request_id: str, *, demotes: bool) -> routing.VipMove:
        asked = {"user_id": user, "request_id": request_id, "reason": REASON}
        if demotes:
            return (await self.stub.DemoteVip(routing.DemoteVipRequest(**asked), timeout=MOVE_S)).move
        return (await self.stub.PromoteVip(routing.PromoteVipRequest(**asked), timeout=MOVE_S)).move
