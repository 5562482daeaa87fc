"""Statements of users who are moved meanwhile, over real shards and a real proxy: every order once.

Nothing here pretends to be a map, a fence or an order: users are promoted and demoted by the proxy while a
worker has its turn at their statement.
"""

from __future__ import annotations

import csv
import io
import zipfile
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import pytest

from archive_svc.errors import PlacesUnknown
from archive_svc.statement import legs
from archive_svc.statement.amendments import Amendments
from archive_svc.statement.asking import Limits, Wish, ask
from archive_svc.statement.fetching import Fetcher
from archive_svc.statement.legs import SESSION, ShardReader
from archive_svc.statement.maker import StatementMaker
from archive_svc.statement.places import AtProxy, Places
from archive_svc.statement.store import Statement, StatementStore
from archive_svc.statement.wakes import Wakes
from archive_svc.statement.wish import CSV, Bundle, Progress, Wanted
from archive_svc.statement.worker import Turns
from chassis import pg
from chassis.ids import user_bucket
from chassis.s3 import ObjectStore
from tests import vips
from tests.buckets import Place
from tests.conftest import DatabaseFactory
from tests.inprocess_s3 import InProcessS3
from tests.statements import worker_of
from tests.vips import World

Hook = Callable[[], Awaitable[None]]
USER = "alice"
TURNS = Turns(attempts_max=3, pause_s=0.0, moved_pauses_s=(0.0, 0.05, 0.1))


@dataclass
class Hooked:
    """The real maker, interrupted. before: called when a turn begins to read; within: after a batch."""

    maker: StatementMaker
    before: list[Hook] = field(default_factory=list)
    within: list[Hook] = field(default_factory=list)
    wishes: list[Wanted] = field(default_factory=list)

    async def make(self, wanted: Wanted, tell: Callable[[Progress], Awaitable[None]]) -> Bundle:
        self.wishes.append(wanted)
        if self.before:
            await self.before.pop(0)()

        async def telling(so_far: Progress) -> None:
            if so_far.rows and self.within:
                await self.within.pop(0)()
            await tell(so_far)

        return await self.maker.make(wanted, telling)


@dataclass
class Moving:
    """A mesh, and statements of its users. opening: called before a turn's session of a shard is opened."""

    mesh: World
    store: StatementStore
    objects: ObjectStore
    maker: Hooked
    places: Any
    opening: dict[str, list[Hook]]

    async def order(self) -> str:
        """One more order of alice, by a proxy that knows everything."""
        order_id: str = (await self.mesh.fresh.create(USER)).order.order_id
        return order_id

    async def orders(self, count: int) -> list[str]:
        return [await self.order() for _ in range(count)]

    async def promote(self) -> None:
        await self.mesh.fresh.promote(USER)

    async def demote(self) -> None:
        await self.mesh.fresh.demote(USER)

    async def request(self, places: Places) -> UUID:
        """Ask for all orders up to now, as whoever knows these places does."""
        now = datetime.now(UTC)
        wish = Wish(
            str((now - timedelta(days=2)).date()), str((now + timedelta(days=1)).date()), "", "", (CSV,)
        )
        limits = Limits(day_max=50, month_max=50)
        asked = ask(USER, uuid4(), wish, limits)
        verdict = await self.store.request(uuid4(), asked, places, USER, limits, Amendments())
        assert verdict.said == "NEW"
        assert verdict.statement_id is not None
        return verdict.statement_id

    async def turn(self) -> None:
        worker = worker_of(self.store, self.objects, self.maker, TURNS, self.places, Wakes())
        assert await worker.once()

    async def seen(self, statement_id: UUID) -> Statement:
        statement = await self.store.statement(USER, statement_id)
        assert statement is not None
        return statement

    async def shown(self, statement_id: UUID) -> list[str]:
        """The ids of the orders in a statement that is ready."""
        statement = await self.seen(statement_id)
        assert statement.state == "READY", statement.failure
        assert statement.stored is not None
        with zipfile.ZipFile(io.BytesIO(await self.objects.read(statement.stored))) as file:
            text = file.read("orders.csv").decode("utf-8-sig")
        found = [row["order_id"] for row in csv.DictReader(io.StringIO(text))]
        assert len(set(found)) == len(found), "an order is shown twice"
        return found


@pytest.fixture
async def moving(
    tmp_path: Path,
    shard_database: DatabaseFactory,
    control_database: DatabaseFactory,
    monkeypatch: pytest.MonkeyPatch,
) -> AsyncIterator[Moving]:
    monkeypatch.setattr(legs, "BATCH_ROWS", 2)
    async with AsyncExitStack() as stack:
        s3 = await stack.enter_async_context(InProcessS3.serving())
        objects = await stack.enter_async_context(Place.of(s3).store())
        await objects.make_bucket()
        mesh = await stack.enter_async_context(vips.opened(tmp_path, shard_database, control_database))
        home = pg.PgSettings(dsn=mesh.dsns["s1"])
        store = StatementStore("s1", await stack.enter_async_context(pg.open_database(home, name="home")))
        opening: dict[str, list[Hook]] = {"s1": [], "v1": []}

        @asynccontextmanager
        async def session(shard: str) -> AsyncIterator[pg.Session]:
            if opening[shard]:
                await opening[shard].pop(0)()
            settings = pg.PgSettings(dsn=mesh.dsns[shard], session=SESSION)
            async with pg.open_session(settings, name="statement") as opened:
                yield opened

        readers = {shard: ShardReader(shard, partial(session, shard), Fetcher(objects)) for shard in opening}
        (tmp_path / "files").mkdir()
        maker = Hooked(StatementMaker(readers, tmp_path / "files"))
        yield Moving(mesh, store, objects, maker, AtProxy(mesh.fresh.routing), opening)


async def known(moving: Moving) -> Places:
    return await AtProxy(moving.mesh.fresh.routing).of(USER)


async def past(moving: Moving, moves: int) -> list[str]:
    """Orders of before, between and after so many moves."""
    orders = await moving.orders(3)
    for number in range(moves):
        await (moving.demote() if number % 2 else moving.promote())
        orders += await moving.orders(3)
    return orders


async def move(moving: Moving, moves: int) -> None:
    """The next move after so many."""
    await (moving.demote() if moves % 2 else moving.promote())


@pytest.mark.parametrize("moves", [0, 1, 2, 3])
async def test_a_move_between_the_look_at_the_map_and_the_wish_lacks_no_order(
    moving: Moving, moves: int
) -> None:
    orders = await past(moving, moves)
    old = await known(moving)
    await move(moving, moves)
    orders += await moving.orders(3)
    statement_id = await moving.request(old)
    await moving.turn()
    assert await moving.shown(statement_id) == orders
    # Believed was not what was noted, but what the proxy knows by now.
    assert [wish.placements for wish in moving.maker.wishes] == [old, await known(moving)]
    assert (await moving.seen(statement_id)).wanted.placements == await known(moving)


@pytest.mark.parametrize("moves", [0, 1, 2, 3])
async def test_a_move_between_the_wish_and_the_reading_lacks_and_doubles_nothing(
    moving: Moving, moves: int
) -> None:
    orders = await past(moving, moves)
    statement_id = await moving.request(await known(moving))

    async def moved() -> None:
        await move(moving, moves)
        await moving.order()

    moving.maker.before.append(moved)
    await moving.turn()
    assert await moving.shown(statement_id) == orders
    assert len(moving.maker.wishes) == 2


@pytest.mark.parametrize("moves", [0, 1, 2, 3])
async def test_a_move_in_the_middle_of_the_reading_lacks_and_doubles_nothing(
    moving: Moving, moves: int
) -> None:
    orders = await past(moving, moves)
    statement_id = await moving.request(await known(moving))

    async def moved() -> None:
        await move(moving, moves)
        await moving.order()

    moving.maker.within += [moved, partial(move, moving, moves + 1)]
    await moving.turn()
    assert not moving.maker.within, "there was more than one batch"
    assert await moving.shown(statement_id) == orders
    assert len(moving.maker.wishes) == 1, "what was read was as of the wish, and stays so"


@pytest.mark.parametrize("shard", ["s1", "v1"])
@pytest.mark.parametrize("moves", [1, 2])
async def test_a_move_after_one_shard_was_begun_and_before_another_was_is_seen(
    moving: Moving, shard: str, moves: int
) -> None:
    orders = await past(moving, moves)
    statement_id = await moving.request(await known(moving))

    async def moved() -> None:
        await move(moving, moves)
        await moving.order()

    moving.opening[shard].append(moved)
    await moving.turn()
    assert not moving.opening[shard]
    assert await moving.shown(statement_id) == orders


async def test_users_who_left_the_bucket_before_do_no_harm_and_one_who_just_leaves_is_waited_for(
    moving: Moving,
) -> None:
    orders = await moving.orders(3)
    statement_id = await moving.request(await known(moving))
    bucket = user_bucket(USER)

    async def frozen() -> None:
        await moving.mesh.sql("s1", "SELECT freeze_bucket($1, 1, 5)", bucket)

    async def thawed() -> None:
        await moving.mesh.sql("s1", "SELECT thaw_bucket($1, 1, 5)", bucket)

    # A freeze that was taken back: the map never changed.
    moving.maker.before += [frozen, thawed]
    await moving.turn()
    assert await moving.shown(statement_id) == orders
    assert len(moving.maker.wishes) == 2


async def test_while_nobody_knows_where_the_user_went_there_is_no_statement(moving: Moving) -> None:
    orders = await past(moving, 0)
    old = await known(moving)
    await moving.promote()
    orders += await moving.orders(3)
    statement_id = await moving.request(old)

    # A proxy whose map is old says again what was refused; one that is away says nothing.
    class Away:
        async def of(self, user_id: str) -> Places:
            raise PlacesUnknown

    knows, moving.places = moving.places, AtProxy(moving.mesh.stale.routing)
    await moving.turn()
    waiting = await moving.seen(statement_id)
    assert (waiting.state, waiting.failure.reason) == ("WAITING", "STALE_ROUTE")
    assert [wish.placements for wish in moving.maker.wishes] == [old] * 4, "as often as a turn asks"
    moving.places = Away()
    await moving.turn()
    waiting = await moving.seen(statement_id)
    assert (waiting.state, waiting.failure.reason) == ("WAITING", "STALE_ROUTE")

    moving.places = knows
    await moving.turn()
    assert await moving.shown(statement_id) == orders


async def test_a_row_from_before_epochs_were_kept_is_read_where_the_user_is(moving: Moving) -> None:
    orders = await past(moving, 1)
    statement_id = await moving.request(await known(moving))
    await moving.mesh.sql(
        "s1", "UPDATE statements SET placements = jsonb_build_object('s1', jsonb_build_array($1::int))", 701
    )
    await moving.turn()
    assert await moving.shown(statement_id) == orders
