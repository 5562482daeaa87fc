"""Where a change stands in a shard's log, and how far somebody has read it. Pure.

Positions order the changes of one stream partition; they never decide which state of an order is newer. That
is the order's version: a transaction takes its xid before it waits for a row, so two changes of one order may
stand in the log the other way round.
"""

from __future__ import annotations

from typing import NamedTuple


class Position(NamedTuple):
    """A place in the log of one shard.

    log_epoch: grows when a shard's database came back with less than it had, since its xids repeat then.
    xid, seq:  transaction, and the outbox's sequence, which starts at 1.
    """

    log_epoch: int
    xid: int
    seq: int

    def __str__(self) -> str:
        return f"{self.log_epoch}:{self.xid}:{self.seq}"


BEGINNING = Position(0, 0, 0)
"""Before every change."""


def before_xid(log_epoch: int, xid: int) -> Position:
    """The place after everything of earlier transactions and before everything of this one."""
    return Position(log_epoch, xid, 0)


def parse_position(text: str) -> Position:
    """Read what `str` wrote.

    Raises: ValueError.
    """
    log_epoch, xid, seq = text.split(":")
    return Position(int(log_epoch), int(xid), int(seq))
