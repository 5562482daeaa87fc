"""The book of routes and the file behind it: fresh when it can be, old when it must be, never half."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import pytest
from structlog.testing import capture_logs

from chassis.errors import Overloaded
from chassis.testing import FakeClock, eventually
from shard_proxy.book import RouteBook
from shard_proxy.domain import MapSnapshot, Owner
from shard_proxy.errors import NoMap
from shard_proxy.fairness import InFlight
from shard_proxy.store import MapFile
from tests.proxies import Lane, Saved, Source, map_of


def a_map() -> MapSnapshot:
    lanes = (Lane("s1"), Lane("s2"), Lane("v1"))
    return replace(map_of(lanes), read_at=datetime(2026, 1, 2, 3, 4, 5, 678901, tzinfo=UTC))


async def opened(source: Source, saved: Saved | MapFile) -> RouteBook:
    book = RouteBook(source, saved, FakeClock())
    await book.open()
    return book


# --- the file


def test_a_map_comes_back_from_disk_as_it_was(tmp_path: Path) -> None:
    file = MapFile(tmp_path / "state" / "map")
    file.save(a_map())
    assert file.load() == a_map()
    assert [path.name for path in (tmp_path / "state").iterdir()] == ["map"]


@pytest.mark.parametrize("damage", ["cut", "flipped", "emptied", "other format", "no text"])
def test_a_damaged_file_is_ignored_with_a_line_in_the_log(tmp_path: Path, damage: str) -> None:
    path = tmp_path / "map"
    file = MapFile(path)
    file.save(a_map())
    whole = path.read_bytes()
    path.write_bytes(
        {
            "cut": whole[:-1],
            "flipped": whole.replace(b'"s1"', b'"s2"', 1),
            "emptied": b"",
            "other format": whole.replace(b"map-1", b"map-2", 1),
            "no text": b"\xff\xfe\n" + whole,
        }[damage]
    )
    with capture_logs() as lines:
        assert file.load() is None
    assert [line["event"] for line in lines] == ["map_file_corrupt"]


def test_a_missing_file_is_no_map(tmp_path: Path) -> None:
    assert MapFile(tmp_path / "map").load() is None
    (tmp_path / "directory").mkdir()
    assert MapFile(tmp_path / "directory").load() is None


# --- the book


async def test_a_start_without_control_database_goes_on_from_disk() -> None:
    book = await opened(Source(a_map(), gone=True), Saved(a_map()))
    assert book.map == a_map()


async def test_a_start_with_neither_knows_no_map_until_the_control_database_is_back() -> None:
    source = Source(a_map(), gone=True)
    book = await opened(source, Saved())
    with pytest.raises(NoMap):
        await book.check()
    running = asyncio.create_task(book.run())
    source.gone = False

    async def known() -> bool:
        return book.has_map

    await eventually(known)
    running.cancel()


async def test_the_control_database_wins_over_the_disk_and_is_saved_there() -> None:
    source, saved = Source(a_map()), Saved(replace(a_map(), version=99))
    book = await opened(source, saved)
    assert book.map.version == 1
    assert saved.map == source.map


async def test_a_poll_brings_every_new_version_and_a_dead_database_takes_nothing_away() -> None:
    source, saved = Source(a_map()), Saved()
    book = await opened(source, saved)
    running = asyncio.create_task(book.run())
    source.move(1, "s2", 2)

    async def moved() -> bool:
        return book.map.owners[1] == Owner("s2", 2)

    await eventually(moved)
    assert saved.map is not None
    assert saved.map.owners[1] == Owner("s2", 2)
    source.gone = True
    for _ in range(100):
        await asyncio.sleep(0)
    assert book.map.owners[1] == Owner("s2", 2)
    assert not running.done()
    running.cancel()


async def test_a_restored_older_control_database_is_believed() -> None:
    source = Source(replace(a_map(), version=7))
    book = await opened(source, Saved())
    running = asyncio.create_task(book.run())
    source.map = replace(a_map(), version=3)

    async def believed() -> bool:
        return book.map.version == 3

    await eventually(believed)
    running.cancel()


async def test_what_a_fence_said_stands_until_another_map_comes() -> None:
    source = Source(a_map())
    book = await opened(source, Saved())
    book.adopt(1, Owner("s2", 9))
    await book.reread()
    assert book.map.owners[1] == Owner("s2", 9)
    assert book.map.owners[2] == Owner("s1", 1)
    source.move(3, "s2", 2)
    await book.reread()
    assert book.map.owners[1] == Owner("s1", 1)


async def test_many_who_want_the_map_read_share_one_reading() -> None:
    source = Source(a_map())
    book = await opened(source, Saved())
    await asyncio.gather(*(book.reread() for _ in range(100)))
    assert source.reads == 2


async def test_a_database_that_was_gone_a_moment_ago_is_not_waited_for() -> None:
    source = Source(a_map())
    clock = FakeClock()
    book = RouteBook(source, Saved(), clock)
    await book.open()
    source.gone = True
    await book.reread()
    source.gone = False
    source.move(1, "s2", 2)
    await book.reread()
    assert book.map.version == 1
    clock.move(1.0)
    await book.reread()
    assert book.map.version == 2


def test_a_users_calls_are_counted_while_they_run() -> None:
    calls = InFlight(1, 2)
    with calls.one_of("alice", vip=False):
        with pytest.raises(Overloaded), calls.one_of("alice", vip=False):
            pass
        with calls.one_of("bob", vip=False), calls.one_of("", vip=False), calls.one_of("", vip=False):
            pass
    with calls.one_of("alice", vip=False):
        pass
    with calls.one_of("vip", vip=True), calls.one_of("vip", vip=True):
        pass
