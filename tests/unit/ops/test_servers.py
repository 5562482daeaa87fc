"""What a state directory remembers, and how parts of a start fail together."""

import asyncio
from pathlib import Path

import pytest

from ops.errors import OpsError, PortBusy
from ops.stack import servers
from ops.stack.layout import ALL_SHARDS, PARTITION_BASE, TOPICS, Places
from ops.stack.supervisor import together


def test_a_state_directory_keeps_to_its_kind_of_stack(tmp_path: Path) -> None:
    full, small, old = (Places(tmp_path / name) for name in ("full", "small", "old"))
    for where in (full, small, old):
        where.state.mkdir()
    (old.state / "ports.json").write_text("{}")
    servers.remember(full, "full")
    servers.remember(full, "full")
    servers.remember(small, "small")
    with pytest.raises(OpsError, match=r"holds a stack with --full; start it with the flag"):
        servers.remember(full, "small")
    for where in (small, old):
        with pytest.raises(OpsError, match=r"holds a stack without --full; start it without the flag"):
            servers.remember(where, "full")
    servers.remember(old, "small")


def test_every_shard_has_partitions_of_its_own() -> None:
    bases = [PARTITION_BASE[shard] for shard in ALL_SHARDS]
    assert bases == [0, 8, 16]
    assert TOPICS == {"ordermesh.order-events.v1": 24, "ordermesh.order-events.v1.dlq": 1}


async def test_the_first_sentence_of_a_start_that_failed_in_parts_is_told_and_the_rest_is_cancelled() -> None:
    cancelled = asyncio.Event()

    async def waits() -> None:
        try:
            await asyncio.Event().wait()
        finally:
            cancelled.set()

    async def fails(error: Exception) -> None:
        raise error

    with pytest.raises(PortBusy, match="Port 1"):
        await together(waits(), together(fails(ValueError()), fails(PortBusy("Port 1 is busy"))))
    assert cancelled.is_set()
    with pytest.raises(ValueError, match="only"):
        await together(waits(), fails(ValueError("only")))
