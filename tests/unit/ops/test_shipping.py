"""While Elasticsearch is away, lines wait in files: no file is missed, and it is told how much there is."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from prometheus_client import REGISTRY

from chassis.testing import eventually
from ops.shipper.shipping import Route, Shipping
from ops.shipper.streams import LOGS
from ops.shipper.tail import Tail

LINES_EACH = 50
FILES = 5


class Away:
    """Writes nothing before it is back."""

    def __init__(self) -> None:
        self.is_back = asyncio.Event()
        self.is_asked = asyncio.Event()
        self.written: list[str] = []

    async def write(self, stream: str, documents: list[Any]) -> None:
        assert stream == LOGS
        self.is_asked.set()
        await self.is_back.wait()
        self.written += documents


def behind() -> float:
    return REGISTRY.get_sample_value("ordermesh_shipper_behind_bytes", {"stream": "logs"}) or 0.0


@pytest.fixture
async def tail(tmp_path: Path) -> AsyncIterator[Tail]:
    opened = Tail(tmp_path, tmp_path / "offsets.json", wanted=lambda name: ".log" in name)
    yield opened
    opened.close()


@pytest.mark.parametrize("is_away_at_start", [False, True], ids=["goes away", "away at the start"])
async def test_files_that_are_moved_aside_while_elasticsearch_is_away_are_shipped_when_it_is_back(
    tmp_path: Path, tail: Tail, is_away_at_start: bool
) -> None:
    away, started = Away(), asyncio.Event()
    if not is_away_at_start:
        started.set()
    shipping = Shipping(tail, away, Route(LOGS, lambda line: line.text.decode(), lambda: None), started)  # type: ignore[arg-type, return-value]
    running = asyncio.create_task(shipping.run())
    lines: list[str] = []

    async def is_seen() -> bool:
        return behind() == sum(len(line) + 1 for line in lines)

    try:
        for number in range(FILES):
            mine = [f"{number}.{each}" for each in range(LINES_EACH)]
            (tmp_path / "gateway.log").write_text("".join(f"{line}\n" for line in mine))
            lines += mine
            await eventually(is_seen)
            if is_away_at_start:
                assert not away.is_asked.is_set()
            else:
                await asyncio.wait_for(away.is_asked.wait(), timeout=10)
            (tmp_path / "gateway.log").replace(tmp_path / "gateway.log.1")
        started.set()
        away.is_back.set()

        async def is_all_there() -> bool:
            return sorted(away.written) == sorted(lines) and behind() == 0

        await eventually(is_all_there)
    finally:
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)
