"""Databases for tests, each a copy of a template that holds the schema, on the session's one Postgres server.

A copy takes a few dozen milliseconds, so every test may have its own and none has to clean tables. Templates
are made at their first use from db/<kind>/schema*.sql.
"""

import asyncio
import itertools
from dataclasses import dataclass
from typing import Literal

from ops.postgres import PostgresServer
from ops.stack.databases import schema_of

Kind = Literal["shard", "control", "readmodel"]


@dataclass(frozen=True, slots=True)
class Database:
    """One database of its own."""

    name: str
    dsn: str


class Databases:
    """Makes databases and drops them."""

    def __init__(self, server: PostgresServer) -> None:
        self._server = server
        self._numbers = itertools.count(1)
        self._templates: dict[Kind, str] = {}
        self._template_lock = asyncio.Lock()

    async def create(self, kind: Kind) -> Database:
        """Return a new database with the schema of this kind and nothing else in it."""
        template = await self._template(kind)
        name = f"{kind}_{next(self._numbers)}"
        await self._server.create_database(name, template=template)
        return Database(name, self._server.dsn(name))

    async def drop(self, database: Database) -> None:
        """Drop a database, whoever is still connected to it."""
        await self._server.drop_database(database.name)

    async def _template(self, kind: Kind) -> str:
        async with self._template_lock:
            if kind not in self._templates:
                name = f"template_{kind}"
                await self._server.create_database(name)
                for script in schema_of(kind):
                    await self._server.run_sql(name, script.read_text(encoding="utf-8"))
                self._templates[kind] = name
            return self._templates[kind]
