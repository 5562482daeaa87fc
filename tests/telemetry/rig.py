"""A full stack under light load with a Prometheus whose time goes faster, and what its alerts say.

Durations of the rules are shrunk as `FAST` says, the scrapes come each second; nothing else is different from
deploy/prometheus/rules.yml.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import AsyncIterator, Collection
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final
from uuid import uuid4

import grpc
import yaml

from chassis.clock import SYSTEM_CLOCK
from chassis.testing import eventually
from ops import mesh, seed
from ops.prometheus import PrometheusServer
from ops.seed import Plan
from ops.stack import local
from ordermesh.history.v1 import history_service_pb2 as history
from ordermesh.money.v1.money_pb2 import Money
from ordermesh.order.v1 import order_service_pb2 as pb
from ordermesh.order.v1.order_pb2 import Order
from telemetry import rules
from telemetry.rules import Time
from tests.stack import World

FAST: Final = Time(scale=1 / 20, longest_s=60)
"""The windows of budgets, of which the longest are hours, are a minute."""
SCRAPE_S: Final = 1.0
LOOK_EVERY_S: Final = 0.5
USERS: Final = (*(f"eyes-{number}" for number in range(8)), "vip.1")
EACH_S: Final = 0.25
"""One order and one page of some user so often, and one page of old orders of another."""
OLD: Final = Plan(users=20, orders=2000, months=27)
OLDER_THAN_S: Final = 3 * 86_400
"""Lists of what is older come from the read model."""
FIRES_WITHIN_S: Final = 120.0
CLEARS_WITHIN_S: Final = 150.0
QUIET_S: Final = 4.0
BUILT_WITHIN_S: Final = 300.0


@dataclass
class Rig:
    """The stack, its Prometheus, and the load."""

    world: World
    prometheus: PrometheusServer
    made: list[str] = field(default_factory=list)

    async def told(self) -> set[str]:
        """The alerts that are pending or firing now, as `Name` or `Name/label`."""
        return {_name(alert["labels"]) for alert in await self.prometheus.alerts()}

    async def firing(self) -> set[str]:
        """Those that are firing."""
        return {
            _name(alert["labels"]) for alert in await self.prometheus.alerts() if alert["state"] == "firing"
        }

    async def until_firing(self, wanted: Collection[str]) -> None:
        """Wait until all of these are firing."""
        now: set[str] = set()

        async def all_of_them() -> bool:
            now.clear()
            now.update(await self.firing())
            return set(wanted) <= now

        try:
            await eventually(all_of_them, within_s=FIRES_WITHIN_S, every_s=LOOK_EVERY_S)
        except AssertionError:
            missing = sorted(set(wanted) - now)
            raise AssertionError(f"{missing} did not fire; told: {sorted(await self.told())}") from None

    async def until_quiet(self) -> None:
        """Wait until nothing is pending or firing, and stays so for a while."""
        quiet_since = math.inf
        now: set[str] = set()

        async def quiet() -> bool:
            nonlocal quiet_since
            now.clear()
            now.update(await self.told())
            quiet_since = math.inf if now else min(quiet_since, time.monotonic())
            return time.monotonic() - quiet_since >= QUIET_S

        try:
            await eventually(quiet, within_s=CLEARS_WITHIN_S, every_s=LOOK_EVERY_S)
        except AssertionError:
            raise AssertionError(f"not cleared: {sorted(now)}") from None

    async def until_searched(self) -> None:
        """Wait until lists of old orders come from the read model: every month of theirs has been built."""

        async def searched() -> bool:
            page = await self.world.mesh.history.ListOrders(_old(0), timeout=3.0)
            return bool(page.read_info.read_model_asked)

        await eventually(searched, within_s=BUILT_WITHIN_S, every_s=LOOK_EVERY_S)

    async def watch(self, lasts: asyncio.Event) -> set[str]:
        """Everything that is told from now until the event is set."""
        seen: set[str] = set()
        while not lasts.is_set():
            seen |= await self.told()
            with suppress(TimeoutError):
                await asyncio.wait_for(lasts.wait(), LOOK_EVERY_S)
        return seen


def _name(labels: dict[str, str]) -> str:
    of = [labels[key] for key in ("instance", "shard", "lane", "upstream", "pool") if key in labels]
    return "/".join([labels["alertname"], *of[:1]])


async def _load(rig: Rig) -> None:
    """Orders and pages for ever; who is refused goes on."""
    number = 0
    while True:
        user = USERS[number % len(USERS)]
        number += 1
        with suppress(grpc.aio.AioRpcError):
            made = await rig.world.mesh.orders.CreateOrder(
                pb.CreateOrderRequest(
                    user_id=user,
                    request_id=str(uuid4()),
                    kind="payment",
                    amount=Money(currency_code="EUR", amount_minor=700),
                ),
                timeout=3.0,
            )
            rig.made.append(made.order.order_id)
            await rig.world.mesh.history.ListOrders(
                history.ListOrdersRequest(user_id=user, page_size=5), timeout=3.0
            )
            await rig.world.mesh.history.ListOrders(_old(number), timeout=3.0)
        await SYSTEM_CLOCK.sleep(EACH_S)


def _old(number: int) -> history.ListOrdersRequest:
    asked = history.ListOrdersRequest(user_id=OLD.user(number % OLD.users), page_size=5)
    asked.filter.until_time.FromSeconds(int(SYSTEM_CLOCK.now().timestamp()) - OLDER_THAN_S)
    return asked


async def _seed(world: World) -> None:
    """Write the old orders, and settle those that a person has to."""
    ledgers = {each.name: Path(each.ledger) for each in world.endpoints.upstreams}
    shards = world.endpoints.shard_dsns()
    await seed.run(OLD, shards, ledgers)
    await close_cases(world)


async def close_cases(world: World) -> int:
    """Do what a person does about every open case; how many there were."""
    closed = 0
    for shard in world.endpoints.shard_dsns():
        asked = pb.ListDeadLettersRequest(shard=shard, page_size=100)
        while cases := (await world.mesh.orders.ListDeadLetters(asked, timeout=10.0)).dead_letters:
            for case in cases:
                closed += 1
                await world.mesh.orders.ResolveDeadLetter(
                    pb.ResolveDeadLetterRequest(
                        order_id=case.order_id,
                        request_id=str(uuid4()),
                        outcome=Order.FAILED,
                        evidence="an order of a test",
                        reason="nobody waits for it",
                    ),
                    timeout=10.0,
                    metadata=mesh.spoken_by("a-test"),
                )
    return closed


@asynccontextmanager
async def ready(state_dir: Path, *, quiet: bool = True) -> AsyncIterator[Rig]:
    """The rig, under load. quiet: wait until nothing is told."""
    fast = {"LOOKBACK_S": "1"}
    async with (
        local.running(state_dir, port_base=0, full=True, durable=False, extra={"history_svc": fast}) as stack,
        mesh.connect(stack.endpoints) as stubs,
    ):
        prometheus = stack.prometheus
        assert prometheus is not None
        rule_file = state_dir / "fast-rules.yml"
        rule_file.write_text(yaml.safe_dump(rules.rules(FAST)), encoding="utf-8")
        prometheus.rules, prometheus.scrape_s = (rule_file,), SCRAPE_S
        prometheus.reload()
        rig = Rig(World(stack, stubs, state_dir), prometheus)
        await _seed(rig.world)
        load = asyncio.create_task(_load(rig), name="load")
        try:
            if quiet:
                await rig.until_quiet()
            yield rig
        finally:
            load.cancel()
            await asyncio.gather(load, return_exceptions=True)
