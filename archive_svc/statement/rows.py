"""The row of a statement: what it tells of an order, the same from a table and from a segment. Pure."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from archive_svc.columns import ORDERS

if TYPE_CHECKING:
    from collections.abc import Mapping


class Row(NamedTuple):
    """One order.

    Sorts by its first two fields as a statement does; of two rows of one order the higher version is later.
    created_us, settled_us, updated_us: microseconds since 1970, UTC; settled_us is None while the order is
                            pending, and updated_us is when it last changed.
    order_id:               in lower-case hex with dashes.
    note:                   what was corrected after the order was archived; empty when nothing was.
    """

    created_us: int
    order_id: str
    version: int
    status: str
    kind: str
    amount_minor: int
    currency_code: str
    currency_exp: int
    description: str
    upstream_ref: str
    failure_reason: str
    settled_us: int | None
    updated_us: int = 0
    note: str = ""


COLUMNS = (
    "created_at",
    "order_id",
    "version",
    "status",
    "kind",
    "amount_minor",
    "currency_code",
    "currency_exp",
    "description",
    "upstream_ref",
    "failure_reason",
    "settled_at",
    "updated_at",
)
"""Of orders, in the order of a row's fields."""
_TYPES: Mapping[str, str] = {column.name: column.type.out for column in ORDERS.columns}
_AS_TEXT = {"order_id"}


def select_list(alias: str) -> str:
    """What to select of the table called `alias`, so that it comes as it lies in a segment."""
    return ", ".join(
        _TYPES[name].format(f"{alias}.{name}") + ("::text" if name in _AS_TEXT else "") for name in COLUMNS
    )
