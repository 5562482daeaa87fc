"""The orders a run asks for, and when: drawn once from the seed, so that a run can be asked for again.
Pure.
"""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import TYPE_CHECKING
from uuid import UUID

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from ops.load.plan import Plan

AMOUNT_MINOR_MAX = 99_999
KINDS = ("payment", "payment", "payment", "purchase")
"""One in four has two legs."""


@dataclass(frozen=True, slots=True)
class Ask:
    """One order that somebody wants. number: from 0, also its place in the log; due_s: seconds into the
    run.
    """

    number: int
    due_s: float
    user_id: str
    request_id: UUID
    kind: str
    amount_minor: int
    currency_code: str
    over_rest: bool
    replay: bool
    """Whether the same request is sent once more after its acknowledgement, on purpose."""


def asks(plan: Plan, run_id: str, vips: Sequence[str], walked: Sequence[str] = ()) -> Iterator[Ask]:
    """Every order of a run, in the order they are due.

    Arrivals are a Poisson stream of plan.rate: like people, they do not wait for each other. Users are the
    run's own, so that whatever they have was asked for here; vips get plan.vip_share of the orders, when
    there are any. walked: users with a history, who order in the run's own users' place.
    """
    draw = random.Random(f"{plan.seed}/{run_id}")
    users = walked or users_of(plan, run_id)
    due_s = draw.expovariate(plan.rate)
    number = 0
    while due_s < plan.seconds:
        is_vip = bool(vips) and draw.random() < plan.vip_share
        yield Ask(
            number=number,
            due_s=due_s,
            user_id=draw.choice(vips if is_vip else users),
            request_id=UUID(int=draw.getrandbits(128), version=4),
            kind=draw.choice(KINDS),
            amount_minor=draw.randint(1, AMOUNT_MINOR_MAX),
            currency_code=draw.choice(("EUR", "USD", "JPY")),
            over_rest={"rest": True, "grpc": False}.get(plan.transport, draw.random() < 0.5),
            replay=draw.random() < plan.replay_share,
        )
        number += 1
        due_s += draw.expovariate(plan.rate)


def users_of(plan: Plan, run_id: str) -> list[str]:
    """The users of a run."""
    return [f"load.{run_id}.{number}" for number in range(plan.users)]


def description(run_id: str) -> str:
    """What marks an order as one of a run."""
    return f"load {run_id}"
