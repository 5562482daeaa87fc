"""What processes show under use: registered metrics, the words of their labels, and no series for a user."""

from __future__ import annotations

from uuid import uuid4

import grpc
import pytest

from chassis import rpc
from ops.top import readings
from ops.top.readings import Reading
from ordermesh.history.v1 import history_service_pb2 as history
from ordermesh.order.v1 import order_service_pb2 as pb
from telemetry import registry
from tests.stack import World

pytestmark = pytest.mark.timeout(180)
OURS = ("ordermesh_", "grpc_server_", "grpc_client_", "http_server_")
OF_HISTOGRAMS = ("_bucket", "_count", "_sum")


async def use(world: World, users: int) -> None:
    """Whatever people do, by users that nobody saw before; also what is refused."""
    for number in range(users):
        user = f"seen-{uuid4().hex}"
        made = await world.create(user, kind="purchase" if number % 2 else "payment")
        await world.get(made.order_id)
        await world.mesh.history.ListOrders(history.ListOrdersRequest(user_id=user, page_size=5), timeout=5.0)
        with pytest.raises(grpc.aio.AioRpcError):
            await world.mesh.orders.GetOrder(pb.GetOrderRequest(order_id=str(uuid4())), timeout=5.0)
        async with world.rest(user) as http:
            await http.get(f"/v1/orders/{made.order_id}")
            await http.get(f"/nowhere/{uuid4()}")
        await world.until_settled(made.order_id)


def series(reading: Reading) -> set[tuple[str, str, frozenset[tuple[str, str]]]]:
    return {
        (process.name, name, labels)
        for process in reading.processes
        for name, found in process.series.items()
        for labels in found
        if name.startswith(OURS)
    }


async def test_labels_say_only_what_their_vocabularies_allow(world: World) -> None:
    await use(world, 2)
    known = {metric.name: metric for metric in registry.metrics()}
    wrong = []
    shown = series(await readings.read(world.endpoints))
    shards = set(world.endpoints.shard_dsns())
    for process, name, labels in shown:
        bases = [name, *(name.removesuffix(end) for end in OF_HISTOGRAMS)]
        metric = next((known[base] for base in bases if base in known), None)
        if metric is None:
            wrong.append(f"{process} shows {name}, which nobody registered")
            continue
        for label, value in labels:
            if label == "le":
                continue
            vocabulary = metric.labels[label]
            if vocabulary.values and value not in vocabulary.values:
                wrong.append(f"{process}: {name} says {label}={value!r}, not in {vocabulary.name}")
            if vocabulary.name == "shard" and value not in shards:
                wrong.append(f"{process}: {name} says shard={value!r}")
    assert len(shown) > 1000
    assert wrong == []


async def test_new_users_and_orders_add_no_series(world: World) -> None:
    await use(world, 2)
    before = series(await readings.read(world.endpoints))
    await use(world, 10)
    more = series(await readings.read(world.endpoints)) - before
    assert more == set()


async def test_failures_that_never_happened_are_there_as_zero(world: World) -> None:
    """An alert on an increase would miss the first of them otherwise."""
    reading = await readings.read(world.endpoints)
    faults = {code.name for code in rpc.SERVER_FAULTS}
    for process in ("shard_proxy", "order_svc.s1"):
        shown = {
            labels["grpc_code"]
            for labels, _ in reading.values(
                "grpc_server_handled_total", process=process, grpc_method="CreateOrder"
            )
        }
        assert faults | {"OK"} <= shown
    for name, label in (
        ("ordermesh_dead_letters_opened_total", "severity"),
        ("ordermesh_order_submits_total", "said"),
        ("ordermesh_recovery_probes_total", "probe_class"),
    ):
        assert len({labels[label] for labels, _ in reading.values(name)}) > 1, name
