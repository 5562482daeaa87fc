"""What a call is about, so that its lines and spans can be found by an order's id."""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING, Any

from chassis import logs, traces

if TYPE_CHECKING:
    from google.protobuf.descriptor import Descriptor


def say_about(**facts: str) -> None:
    """Say on the call's lines and on its span what it is about, such as `order_id`; no fact that is empty."""
    known = {name: value for name, value in facts.items() if value}
    if known:
        logs.bind(**known)
        traces.describe(**known)


def order_in(message: Any) -> str:
    """The id of the one order that a request names or an answer holds; empty when there is none."""
    where = _where(message.DESCRIPTOR)
    if where == "order_id":
        return str(message.order_id)
    return str(message.order.order_id) if where == "order" else ""


@cache
def _where(descriptor: Descriptor) -> str:
    fields = descriptor.fields_by_name
    if "order_id" in fields and fields["order_id"].type == fields["order_id"].TYPE_STRING:
        return "order_id"
    holds = fields["order"].message_type if "order" in fields else None
    return "order" if holds is not None and "order_id" in holds.fields_by_name else ""
