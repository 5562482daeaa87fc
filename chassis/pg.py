"""Postgres over asyncpg: one bounded pool per database, named statements from queries.sql, errors by
SQLSTATE.

A limiter stands before the pool, so that overload is refused at once with a typed error; every statement
has a deadline. What a driver says never leaves this module as text.
"""

from __future__ import annotations

import asyncio
import json
import math
import re
import time
from contextlib import asynccontextmanager, contextmanager
from importlib import resources
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, cast
from urllib.parse import urlsplit

import asyncpg
import structlog
from pydantic import BaseModel, ConfigDict, Field

from chassis import meters, metrics
from chassis.errors import (
    Contended,
    DeadlineExceeded,
    InternalError,
    OrderArchived,
    OrdermeshError,
    Overloaded,
    ShardUnavailable,
    StaleRoute,
)
from chassis.limits import Limiter
from chassis.store_spans import tell
from chassis.tracebacks import said

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Iterator, Mapping

log = structlog.get_logger("pg")

STATEMENT_TIMEOUT_S = 5.0
CLOSE_S = 5.0
STALE_ROUTE_STATE = "SH001"
ARCHIVED_STATE = "SH002"
_CONTENDED_STATES = frozenset({"55P03", "40001", "40P01"})
_FAILURES = frozenset(
    kind.reason
    for kind in (
        Contended,
        DeadlineExceeded,
        InternalError,
        OrderArchived,
        Overloaded,
        ShardUnavailable,
        StaleRoute,
    )
)
"""What is counted; other errors within a connection's use are not the database's."""
_NAME = re.compile(r"^-- name: (\w+)\s*$", re.MULTILINE)
_SERVER_SETTINGS = {
    "search_path": "ordermesh, public",
    "statement_timeout": "5000",
    "lock_timeout": "1000",
    "idle_in_transaction_session_timeout": "10000",
    # Custom plans of a statement over 27 partitions took 40 us each, the cached generic one 5.3 us.
    "plan_cache_mode": "force_generic_plan",
    "default_transaction_isolation": "read committed",
    "timezone": "UTC",
}


class PgSettings(BaseModel):
    """One database and how hard it may be leaned on."""

    model_config = ConfigDict(frozen=True)

    dsn: str = Field(repr=False, description="postgresql:// address of the database.")
    pool_size: int = Field(8, ge=1, le=64, description="Connections, and so statements at once.")
    queue: int = Field(
        24,
        ge=0,
        le=256,
        description="Statements that may wait for a connection; three times the pool at most.",
    )
    connect_timeout_s: float = Field(3.0, gt=0, le=30, description="How long opening a connection may take.")
    read_only: bool = Field(False, description="Whether the sessions refuse to write.")
    session: dict[str, str] = Field({}, description="Settings of Postgres that differ in these sessions.")


class Queries(SimpleNamespace):
    """The named statements of one queries.sql; `queries.some_name` is the text."""

    def __getattr__(self, name: str) -> str:  # only reached when the name is missing
        raise AttributeError(f"queries.sql has no statement {name!r}")


def queries(package: str, filename: str = "queries.sql") -> Queries:
    """Read the statements of a package, each below a line `-- name: some_name`."""
    text = resources.files(package).joinpath(filename).read_text(encoding="utf-8")
    parts = _NAME.split(text)[1:]
    return Queries(
        **{name: body.strip().rstrip(";") for name, body in zip(parts[::2], parts[1::2], strict=True)}
    )


class Database:
    """A bounded pool of connections to one database. Each method is one round trip and one implicit
    transaction.

    namespace: what the database is called, for traces. begin_by, end_by: on the monotonic clock; no statement
    begins, or goes on, after it.
    """

    def __init__(
        self,
        pool: asyncpg.Pool[Any],
        limiter: Limiter,
        *,
        namespace: str = "",
        begin_by: float = math.inf,
        end_by: float = math.inf,
    ) -> None:
        self._pool = pool
        self.limiter = limiter
        self.namespace = namespace
        self._begin_by = begin_by
        self._end_by = end_by

    def until(self, deadline: float) -> Database:
        """The same database for the reads of one call: none is waited for after its deadline."""
        return Database(
            self._pool, self.limiter, namespace=self.namespace, begin_by=deadline, end_by=deadline
        )

    def begun_by(self, deadline: float) -> Database:
        """The same database for the writes of one call: none begins after its deadline.

        One that has begun keeps its whole time: cut off, nobody would know whether it happened.
        """
        return Database(self._pool, self.limiter, namespace=self.namespace, begin_by=deadline)

    async def fetch(
        self, sql: str, *args: object, timeout_s: float = STATEMENT_TIMEOUT_S
    ) -> list[asyncpg.Record]:
        """All rows."""
        tell(sql, self.namespace)
        async with self.connection(timeout_s) as connection, _given(connection, timeout_s):
            return cast(
                "list[asyncpg.Record]",
                await connection.fetch(sql, *args, timeout=self._statement_s(timeout_s)),
            )

    async def fetchrow(
        self, sql: str, *args: object, timeout_s: float = STATEMENT_TIMEOUT_S
    ) -> asyncpg.Record | None:
        """The first row, or none."""
        tell(sql, self.namespace)
        async with self.connection(timeout_s) as connection, _given(connection, timeout_s):
            return cast(
                "asyncpg.Record | None",
                await connection.fetchrow(sql, *args, timeout=self._statement_s(timeout_s)),
            )

    async def fetchval(self, sql: str, *args: object, timeout_s: float = STATEMENT_TIMEOUT_S) -> Any:
        """The first column of the first row."""
        tell(sql, self.namespace)
        async with self.connection(timeout_s) as connection, _given(connection, timeout_s):
            return await connection.fetchval(sql, *args, timeout=self._statement_s(timeout_s))

    async def execute(self, sql: str, *args: object, timeout_s: float = STATEMENT_TIMEOUT_S) -> str:
        """Run a statement for its effect; returns the command tag."""
        tell(sql, self.namespace)
        async with self.connection(timeout_s) as connection, _given(connection, timeout_s):
            return cast("str", await connection.execute(sql, *args, timeout=self._statement_s(timeout_s)))

    @asynccontextmanager
    async def connection(self, timeout_s: float = STATEMENT_TIMEOUT_S) -> AsyncIterator[Any]:
        """Hold a connection, for the few who need more than one statement.

        Raises: Overloaded, DeadlineExceeded, ShardUnavailable, StaleRoute, Contended.
        """
        with _counted_failures(self.limiter.name):
            asked = time.perf_counter()
            async with self.limiter.slot(_left_s(timeout_s, self._begin_by)):
                wait_s = _left_s(timeout_s, self._begin_by)
                with _typed_errors():
                    async with self._pool.acquire(timeout=wait_s) as connection:
                        had = time.perf_counter()
                        metrics.PG_WAIT_SECONDS.labels(self.limiter.name).observe(had - asked)
                        try:
                            yield connection
                        finally:
                            held_s = time.perf_counter() - had
                            metrics.PG_HELD_SECONDS.labels(self.limiter.name).observe(held_s)

    def _statement_s(self, timeout_s: float) -> float:
        return _left_s(timeout_s, self._end_by)

    async def ping(self) -> None:
        """Ask the database whether it is there, within a second."""
        await self.fetchval("SELECT 1", timeout_s=1.0)


class Session:
    """One connection of its own, for locks that live as long as a session. For one task."""

    def __init__(self, connection: Any) -> None:
        self._connection = connection

    async def fetchval(self, sql: str, *args: object, timeout_s: float = STATEMENT_TIMEOUT_S) -> Any:
        """The first column of the first row.

        Raises: ShardUnavailable when the session is gone, and with it its locks; else as `Database`.
        """
        with _typed_errors():
            return await self._connection.fetchval(sql, *args, timeout=timeout_s)

    async def execute(self, sql: str, *args: object, timeout_s: float = STATEMENT_TIMEOUT_S) -> str:
        """Run a statement for its effect, outside of any transaction block; returns the command tag."""
        with _typed_errors():
            return cast("str", await self._connection.execute(sql, *args, timeout=timeout_s))

    async def fetch(
        self, sql: str, *args: object, timeout_s: float = STATEMENT_TIMEOUT_S
    ) -> list[asyncpg.Record]:
        """All rows."""
        with _typed_errors():
            return cast("list[asyncpg.Record]", await self._connection.fetch(sql, *args, timeout=timeout_s))

    async def batches(
        self, sql: str, *args: object, size: int, timeout_s: float = STATEMENT_TIMEOUT_S
    ) -> AsyncGenerator[list[asyncpg.Record], None]:
        """All rows, `size` at a time and never more in memory, within a transaction.

        timeout_s: for each batch. While the caller looks at one, the session waits.
        """
        with _typed_errors():
            cursor = await self._connection.cursor(sql, *args, timeout=timeout_s)
        while True:
            with _typed_errors():
                batch = await cursor.fetch(size, timeout=timeout_s)
            if batch:
                yield batch
            if len(batch) < size:
                return

    async def copy_out(
        self,
        query: str,
        *args: object,
        sink: Callable[[bytes], Awaitable[None]],
        options: Mapping[str, Any],
        timeout_s: float,
    ) -> int:
        """Give a query's rows to `sink` as COPY writes them, in chunks of whole rows; how many there were.

        Nothing more is read from the server while `sink` runs. options: of COPY, as asyncpg names them.
        If cancelled here, or when `sink` raises: the session is of no more use.
        """
        with _typed_errors():
            tag = await self._connection.copy_from_query(
                query, *args, output=sink, timeout=timeout_s, **options
            )
        return int(tag.split()[-1])

    async def copy_in(
        self,
        table: str,
        source: AsyncIterator[bytes],
        *,
        options: Mapping[str, Any],
        timeout_s: float,
    ) -> int:
        """Write rows to a table as COPY reads them; how many there were. options: of COPY, for asyncpg."""
        with _typed_errors():
            tag = await self._connection.copy_to_table(table, source=source, timeout=timeout_s, **options)
        return int(tag.split()[-1])

    @asynccontextmanager
    async def transaction(self) -> AsyncIterator[None]:
        """One transaction around several statements: all of them happen, or none.

        If cancelled within: none.
        """
        with _typed_errors():
            async with self._connection.transaction():
                yield

    @asynccontextmanager
    async def snapshot(self) -> AsyncIterator[None]:
        """A transaction that only reads, and sees one state of the database from its first query on.

        A lock that is taken before that query belongs to what it sees.
        """
        with _typed_errors():
            async with self._connection.transaction(isolation="repeatable_read", readonly=True):
                yield

    async def ping(self, timeout_s: float) -> None:
        """Ask whether the session still lives."""
        await self.fetchval("SELECT 1", timeout_s=timeout_s)


@asynccontextmanager
async def open_session(settings: PgSettings, *, name: str) -> AsyncIterator[Session]:
    """A session that lives as long as the context; its locks go with it, also when the process dies.

    Raises: ShardUnavailable, DeadlineExceeded.
    """
    with _typed_errors():
        connection = await asyncpg.connect(
            settings.dsn,
            timeout=settings.connect_timeout_s,
            command_timeout=STATEMENT_TIMEOUT_S,
            server_settings=_session_settings(settings, name),
        )
    try:
        with _typed_errors():
            await _prepare_connection(connection)
        yield Session(connection)
    finally:
        try:
            await connection.close(timeout=CLOSE_S)
        except (TimeoutError, OSError, asyncpg.PostgresError, asyncpg.InterfaceError):
            connection.terminate()


def _session_settings(settings: PgSettings, name: str) -> dict[str, str]:
    server_settings = {**_SERVER_SETTINGS, **settings.session, "application_name": f"ordermesh-{name}"}
    if settings.read_only:
        server_settings["default_transaction_read_only"] = "on"
    return server_settings


@asynccontextmanager
async def open_database(
    settings: PgSettings, *, name: str = "pg", eager: bool = False
) -> AsyncIterator[Database]:
    """A pool that lives as long as the context; connections are made when first needed unless `eager`.

    Raises: ShardUnavailable when `eager` and the database cannot be reached.
    """
    pool = asyncpg.create_pool(
        settings.dsn,
        min_size=1 if eager else 0,
        max_size=settings.pool_size,
        max_inactive_connection_lifetime=300.0,
        timeout=settings.connect_timeout_s,
        command_timeout=STATEMENT_TIMEOUT_S,
        server_settings=_session_settings(settings, name),
        init=_prepare_connection,
        reset=_keep_session,
    )
    with _typed_errors():
        await pool
    meters.know(pool=[name])
    metrics.PG_CONNECTIONS_MAX.labels(name).set(settings.pool_size)
    metrics.PG_CONNECTIONS.labels(name, "idle").set_function(pool.get_idle_size)
    metrics.PG_CONNECTIONS.labels(name, "busy").set_function(lambda: pool.get_size() - pool.get_idle_size())
    try:
        limiter = Limiter(settings.pool_size, settings.queue, name=name)
        yield Database(pool, limiter, namespace=urlsplit(settings.dsn).path.strip("/"))
    finally:
        await _close(pool)


@contextmanager
def _counted_failures(pool: str) -> Iterator[None]:
    try:
        yield
    except OrdermeshError as failed:
        if failed.reason in _FAILURES:
            metrics.PG_FAILURES.labels(pool, failed.reason.value).inc()
        raise


def _left_s(timeout_s: float, deadline: float) -> float:
    """How long a step may take. Raises: DeadlineExceeded when the deadline has passed."""
    left_s = min(timeout_s, deadline - time.monotonic())
    if left_s <= 0:
        raise DeadlineExceeded(limiter="caller")
    return left_s


@asynccontextmanager
async def _given(connection: Any, timeout_s: float) -> AsyncIterator[None]:
    """Let one statement run for longer than the server lets the others, in a transaction of its own."""
    if timeout_s <= STATEMENT_TIMEOUT_S:
        yield
        return
    async with connection.transaction():
        await connection.execute(
            "SELECT set_config('statement_timeout', $1, true)", str(int(timeout_s * 1000))
        )
        yield


async def _close(pool: asyncpg.Pool[Any]) -> None:
    """Close politely, then firmly: `close` waits for busy connections, of which a frozen server's would
    last for ever.
    """
    try:
        await asyncio.wait_for(pool.close(), timeout=CLOSE_S)
    except (TimeoutError, OSError, asyncpg.PostgresError, asyncpg.InterfaceError):
        pool.terminate()


async def _keep_session(_: object) -> None:
    """Nothing to reset: nobody here changes a session, and the driver has rolled back what was left open.

    Its default asks the server to reset everything, a second round trip after every single statement.
    """


async def _prepare_connection(connection: Any) -> None:
    await connection.set_type_codec(
        "jsonb", encoder=_dumps, decoder=json.loads, schema="pg_catalog", format="text"
    )
    await connection.set_type_codec(
        "json", encoder=_dumps, decoder=json.loads, schema="pg_catalog", format="text"
    )
    await connection.set_type_codec("xid8", encoder=str, decoder=int, schema="pg_catalog", format="text")


def _dumps(value: object) -> str:
    return json.dumps(value, separators=(",", ":"), sort_keys=True, ensure_ascii=False)


@contextmanager
def _typed_errors() -> Iterator[None]:
    """Translate what the driver raises; asyncpg's classes are not used where the SQLSTATE says more."""
    try:
        yield
    except asyncpg.PostgresError as refused:
        raise typed_error(refused) from refused
    except TimeoutError as late:
        raise DeadlineExceeded(limiter="statement") from late
    except (OSError, asyncpg.InterfaceError, asyncpg.InternalClientError) as broken:
        # After a server restart the first calls fail with odd classes; all of them mean that nothing
        # answered.
        log.warning("database_unreachable", error=type(broken).__name__)
        raise ShardUnavailable from broken


def typed_error(refused: asyncpg.PostgresError) -> OrdermeshError:
    """The typed error of a database's refusal, by SQLSTATE."""
    state = getattr(refused, "sqlstate", None) or ""
    if state == STALE_ROUTE_STATE:
        return StaleRoute(**_detail(getattr(refused, "detail", None)))
    if state == ARCHIVED_STATE:
        return OrderArchived(**_detail(getattr(refused, "detail", None)))
    if state in _CONTENDED_STATES:
        return Contended(sqlstate=state)
    if state == "57014":
        return DeadlineExceeded(limiter="statement_timeout")
    if state[:2] in ("08", "53", "57", "28", "3D"):
        log.warning("database_unavailable", sqlstate=state)
        return ShardUnavailable(sqlstate=state)
    log.error("statement_refused", sqlstate=state, error=type(refused).__name__, because=said(refused))
    return InternalError(sqlstate=state)


def _detail(detail: str | None) -> dict[str, object]:
    try:
        facts = json.loads(detail or "{}")
    except ValueError:
        return {}
    if not isinstance(facts, dict):
        return {}
    return {
        key: facts[key]
        for key in ("bucket", "epoch", "owner", "state", "left_epoch", "month")
        if facts.get(key) is not None
    }
