"""Statements over a real shard and an S3, with a maker of files that does what the test says."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

from google.longrunning import operations_pb2

from archive_svc.errors import PlacesUnknown
from archive_svc.statement.asking import Limits
from archive_svc.statement.deadmails import DeadMails
from archive_svc.statement.letter import Stationery
from archive_svc.statement.outbox import MailOutbox
from archive_svc.statement.places import Places, Whereabouts
from archive_svc.statement.service import StatementService
from archive_svc.statement.store import StatementStore
from archive_svc.statement.sweeper import Sweeper
from archive_svc.statement.wakes import Wakes
from archive_svc.statement.wish import Bundle, Maker, Progress, Total, Wanted
from archive_svc.statement.worker import Turns, Worker
from chassis import pg, rpc
from chassis.auth import Subject
from chassis.clock import SYSTEM_CLOCK
from chassis.ids import user_bucket
from chassis.s3 import ObjectStore
from chassis.testing import eventually
from chassis.tokens import PageTokens
from ordermesh.archive.v1 import statement_service_pb2 as pb
from ordermesh.archive.v1 import statement_service_pb2_grpc as pb_grpc
from tests.buckets import Place
from tests.databases import Database
from tests.histories import Shard
from tests.listeners import ALICE, CALL_S, Trust

SERVICE = "ordermesh.archive.v1.StatementService"
PLACEMENT = f"{user_bucket('alice')}:s1:1"
TURNS = Turns(
    lease=timedelta(seconds=30),
    beat_s=0.02,
    look_s=0.02,
    pause_s=0.001,
    attempts_max=3,
    moved_pauses_s=(0.0, 0.0),
)
PAPER = Stationery("statements@shop.invalid", "{user_id}@customers.invalid", "https://shop.invalid")
MONTHS = 3
BODY = b"PK: two orders"


@dataclass
class HandMaker:
    """Makes the same small file of every wish.

    holds:   awaited when so many months are read; -1 for before the plan is known.
    failures: raised in place of a file, one a time, in order.
    """

    folder: Path
    body: bytes = BODY
    holds: dict[int, Callable[[], Awaitable[object]]] = field(default_factory=dict)
    failures: list[Exception] = field(default_factory=list)
    wishes: list[Wanted] = field(default_factory=list)
    ended: int = 0

    async def make(self, wanted: Wanted, tell: Callable[[Progress], Awaitable[None]]) -> Bundle:
        self.wishes.append(wanted)
        try:
            await self._hold(-1)
            for months in range(MONTHS + 1):
                await tell(Progress(months, MONTHS, months * 10, months * 1000))
                await self._hold(months)
            if self.failures:
                raise self.failures.pop(0)
        finally:
            self.ended += 1
        path = self.folder / uuid4().hex
        path.write_bytes(self.body)
        sha256 = hashlib.sha256(self.body).hexdigest()
        totals = (Total("EUR", "SUCCESS", 2, 2**70), Total("JPY", "FAILED", 1, 5))
        return Bundle(
            path, len(self.body), sha256, 3, totals, "" if "PDF" in wanted.formats else "none wanted"
        )

    async def _hold(self, months: int) -> None:
        if months in self.holds:
            await self.holds[months]()


@dataclass
class HandPlaces:
    """Knows where users' orders are when a test says so. answers: one a time, in order; asked: the users."""

    answers: list[Places] = field(default_factory=list)
    asked: list[str] = field(default_factory=list)

    async def of(self, user_id: str) -> Places:
        self.asked.append(user_id)
        if not self.answers:
            raise PlacesUnknown
        return self.answers.pop(0)


@dataclass
class Statements:
    """One shard named s1 with alice's hashed bucket, its S3, and who makes its statements."""

    shard: Shard
    database: pg.Database
    objects: ObjectStore
    maker: HandMaker
    places: HandPlaces
    store: StatementStore
    worker: Worker
    sweeper: Sweeper
    wakes: Wakes
    stub: Any
    trust: Trust
    target: str

    def another_worker(
        self, maker: Maker | None = None, turns: Turns = TURNS, *, only_small: bool = False
    ) -> Worker:
        return worker_of(
            self.store,
            self.objects,
            maker or self.maker,
            turns,
            self.places,
            self.wakes,
            only_small=only_small,
        )

    async def call(
        self, method: str, request: Any, subject: Subject = ALICE, placement: str | None = PLACEMENT
    ) -> Any:
        metadata = self.trust.metadata(subject)
        if placement is not None:
            metadata = (*metadata, ("x-ordermesh-placement", placement))
        return await getattr(self.stub, method)(request, timeout=CALL_S, metadata=metadata)

    async def request(self, request_id: UUID | None = None, **options: Any) -> operations_pb2.Operation:
        """Ask for a statement of alice's. options: of the wish, or of the call."""
        of_call = {name: options.pop(name) for name in ("subject", "placement") if name in options}
        user_id = options.pop("user_id", "alice")
        asked = pb.RequestStatementRequest(
            user_id=user_id, request_id=str(request_id or uuid4()), wish=wish(**options)
        )
        return await self.call("RequestStatement", asked, **of_call)

    async def wait(self, operation: operations_pb2.Operation, wait_s: int = 0) -> operations_pb2.Operation:
        user_id, statement_id = named(operation)
        asked = pb.WaitStatementRequest(user_id=user_id, statement_id=statement_id)
        asked.wait.seconds = wait_s
        return await self.call("WaitStatement", asked)

    async def cancel(self, operation: operations_pb2.Operation) -> operations_pb2.Operation:
        user_id, statement_id = named(operation)
        asked = pb.CancelStatementRequest(user_id=user_id, statement_id=statement_id)
        return await self.call("CancelStatement", asked)

    async def link(self, operation: operations_pb2.Operation) -> Any:
        user_id, statement_id = named(operation)
        asked = pb.LinkStatementRequest(user_id=user_id, statement_id=statement_id)
        return await self.call("LinkStatement", asked)

    async def until(self, operation: operations_pb2.Operation, *states: str) -> pb.Statement:
        """The statement once it is in one of these states."""

        async def there() -> pb.Statement | None:
            said = told(await self.wait(operation))
            return said if pb.Statement.State.Name(said.state) in states else None

        return await eventually(there)

    async def keys(self) -> list[str]:
        """What is in S3."""
        return [each.key for each in (await self.objects.list("")).objects]

    async def value(self, sql: str, *args: object) -> Any:
        return await self.database.fetchval(sql, *args)

    async def later(self, **by: int) -> None:
        """Let time pass for everything that is there."""
        await self.database.execute(
            "UPDATE ordermesh.statements SET ended_at = ended_at - $1::interval, "
            "expires_at = expires_at - $1::interval, asked_at = asked_at - $1::interval, "
            "created_at = created_at - $1::interval, clean_from = clean_from - $1::interval, "
            "as_of = as_of - $1::interval, until = least(until, as_of - $1::interval), "
            "begun_before = ARRAY(SELECT b - $1::interval FROM unnest(begun_before) AS b)",
            timedelta(**by),
        )


@asynccontextmanager
async def opened(
    database: Database,
    place: Place,
    trust: Trust,
    folder: Path,
    *,
    bucket: str = "",
    limits: Limits | None = None,
) -> AsyncIterator[Statements]:
    """The service on the wire; its worker does nothing by itself."""
    shard = await Shard("s1", database).prepare()
    async with AsyncExitStack() as stack:
        settings = pg.PgSettings(dsn=database.dsn, pool_size=4, queue=200)
        pool = await stack.enter_async_context(pg.open_database(settings, name="statements"))
        objects = await stack.enter_async_context(place.store(bucket))
        await objects.make_bucket()
        maker, store, wakes = HandMaker(folder), StatementStore("s1", pool), Wakes()
        tokens = PageTokens(b"a key of the tests, of 16 bytes")
        dead_mails = DeadMails({"s1": MailOutbox("s1", pool)}, wakes)
        service = StatementService(
            {"s1": store}, dead_mails, objects, limits or Limits(), tokens, wakes, SYSTEM_CLOCK
        )
        server = await stack.enter_async_context(
            rpc.serve(
                "127.0.0.1:0",
                [rpc.Mount(SERVICE, service)],
                gate=trust.lane(),
                tls=trust.server("archive_svc"),
            )
        )
        channel = rpc.Channel(
            f"127.0.0.1:{server.port}", service="archive_svc", tls=trust.files("shard_proxy")
        )
        await stack.enter_async_context(channel)
        sweeper = sweeper_of(store, objects, after=timedelta(hours=1))
        places = HandPlaces()
        worker = worker_of(store, objects, maker, TURNS, places, wakes)
        stub = pb_grpc.StatementServiceStub(channel)
        target = f"127.0.0.1:{server.port}"
        yield Statements(
            shard, pool, objects, maker, places, store, worker, sweeper, wakes, stub, trust, target
        )


def worker_of(
    store: StatementStore,
    objects: ObjectStore,
    maker: Maker,
    turns: Turns,
    places: Whereabouts,
    wakes: Wakes,
    *,
    only_small: bool = False,
) -> Worker:
    return Worker(
        store,
        objects,
        maker,
        turns,
        places,
        wakes,
        SYSTEM_CLOCK,
        lambda: 0.0,
        holder="a test",
        only_small=only_small,
    )


def sweeper_of(store: StatementStore, objects: ObjectStore, *, after: timedelta) -> Sweeper:
    return Sweeper(store, objects, SYSTEM_CLOCK, lambda: 0.0, after=after, look_s=0.02)


@asynccontextmanager
async def running(*loops: Any) -> AsyncIterator[None]:
    """Loops at work; one that dies fails the test."""
    tasks = [asyncio.create_task(each.run(), name=each.name) for each in loops]
    try:
        yield
    finally:
        dead = [task for task in tasks if task.done()]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        assert dead == [], "a loop died"


def wish(
    first: str = "2024-04-01",
    last: str = "2025-03-31",
    zone: str = "Asia/Kolkata",
    formats: tuple[pb.StatementWish.Format.ValueType, ...] = (),
    locale: str = "",
) -> pb.StatementWish:
    return pb.StatementWish(first_day=first, last_day=last, time_zone=zone, formats=formats, locale=locale)


def told(operation: operations_pb2.Operation) -> pb.Statement:
    """The statement that an operation is about."""
    said = pb.Statement()
    assert operation.metadata.Unpack(said)
    return said


def placement_of(user_id: str) -> str:
    """What the proxy says of a user whose orders are all on s1."""
    return f"{user_bucket(user_id)}:s1:1"


def named(operation: operations_pb2.Operation) -> tuple[str, str]:
    """Whose operation, and of which statement."""
    _, user_id, _, statement_id = operation.name.split("/")
    return user_id, statement_id
