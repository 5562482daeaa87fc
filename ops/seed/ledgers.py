"""The upstreams' side of seeded histories, in the files of their ledgers: what the orders say was executed
there really was.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from ops.upstream.domain import Submission, Verdict
from ops.upstream.ledger import Execution, Ledger

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from pathlib import Path

    from ops.seed.lives import Executed


class Ledgers:
    """The ledgers of some upstreams; what belongs to another upstream is not written. Written in threads, as
    SQLite blocks.
    """

    def __init__(self, paths: Mapping[str, Path]) -> None:
        self._paths = paths

    async def forget(self, user_ids: Iterable[str]) -> None:
        """Remove what a seeding left that ended before it wrote its first month."""
        users = list(user_ids)
        for upstream, path in self._paths.items():
            await asyncio.to_thread(_forget, upstream, path, users)

    async def remember(self, executed: Iterable[Executed]) -> None:
        """Write what was executed, once per reference or key, however often it is told."""
        by_upstream: dict[str, list[Executed]] = {}
        for each in executed:
            by_upstream.setdefault(each.upstream, []).append(each)
        for upstream, rows in by_upstream.items():
            if upstream in self._paths:
                await asyncio.to_thread(_remember, upstream, self._paths[upstream], rows)


def _forget(upstream: str, path: Path, user_ids: list[str]) -> None:
    with Ledger.open(path, name=upstream) as ledger:
        ledger.forget(user_ids)


def _remember(upstream: str, path: Path, rows: list[Executed]) -> None:
    with Ledger.open(path, name=upstream) as ledger:
        ledger.remember(
            [_execution(row, Verdict(row.verdict)) for row in rows if row.verdict is not None],
            [(_submission(row), row.at) for row in rows if row.verdict is None],
        )


def _execution(row: Executed, verdict: Verdict) -> Execution:
    return Execution(
        seq=0,
        key=row.key,
        order_id=row.order_id,
        leg=row.leg,
        attempt=row.attempt,
        user_id=row.user_id,
        amount=row.amount,
        verdict=verdict,
        upstream_ref=row.upstream_ref,
        at=row.at,
    )


def _submission(row: Executed) -> Submission:
    return Submission(row.key, row.order_id, row.leg, row.attempt, row.user_id, row.amount)
