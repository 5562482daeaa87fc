"""`ordermesh where`: where a user or an order lives, by the map that the proxy routes with."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated
from uuid import UUID

import typer

from ops.cli import output
from ops.cli.calls import TIMEOUT_S, ask, shards_of
from ops.cli.options import Format, Output, StateDir
from ordermesh.routing.v1 import routing_service_pb2 as routing

if TYPE_CHECKING:
    from rich.table import Table

    from ops.mesh import Mesh

_REASONS = {
    routing.Placement.HASH: "the hash of the user id",
    routing.Placement.VIP: "a row of the VIP table",
    routing.Placement.SALTED: "a row of the VIP table with several buckets",
    routing.Placement.ORDER_ID: "the order id carries its bucket",
}


def where(
    name: Annotated[str, typer.Argument(metavar="USER|ORDER", help="A user id or an order id.")],
    state_dir: StateDir,
    user: Annotated[
        bool, typer.Option("--user", help="It is a user, though it looks like an order id.")
    ] = False,
    form: Output = Format.TABLE,
) -> None:
    """Say where a user or an order lives, and why.

    \b
    Example:
      ordermesh where vip.1
    """
    if user or not is_order_id(name):
        request = routing.WhereRequest(user_id=name)
    else:
        request = routing.WhereRequest(order_id=name)

    async def work(mesh: Mesh) -> tuple[routing.WhereResponse, dict[str, routing.Shard]]:
        answer = await mesh.routing.Where(request, timeout=TIMEOUT_S)
        return answer, {each.shard: each for each in await shards_of(mesh)}

    answer, shards = ask(state_dir, work)
    output.emit(form, answer, _table(name, answer, shards))


def is_order_id(text: str) -> bool:
    """Whether it is written like an order id: a UUIDv7."""
    try:
        return UUID(text).version == 7
    except ValueError:
        return False


def _table(name: str, answer: routing.WhereResponse, shards: dict[str, routing.Shard]) -> Table:
    place = answer.placement
    shard = shards.get(place.shard, routing.Shard())
    earlier = [each for each in answer.placements if each.bucket != place.bucket]
    return output.facts(
        ("user" if answer.placements else "name", name),
        ("shard", f"{place.shard}{' (VIP)' if shard.vip else ''}"),
        ("bucket", f"{place.bucket}, epoch {place.epoch}"),
        ("because", _REASONS.get(place.reason, "")),
        ("older orders", ", ".join(f"{each.shard} (bucket {each.bucket})" for each in earlier)),
        ("created", output.when(answer.create_time)),
        ("order_svc", shard.lane_target),
        ("history_svc", shard.history_target),
        ("map version", str(answer.map_version)),
    )
