"""A worker of statements in its own process, for tests that kill it: `python -m tests.statement_process`."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path

from archive_svc.statement.store import StatementStore
from archive_svc.statement.wakes import Wakes
from chassis import faults, pg
from chassis.s3 import S3Settings, open_store
from tests.statements import TURNS, HandMaker, worker_of


async def work() -> None:
    """Make statements of one shard until killed."""
    faults.arm(os.environ["ORDERMESH_FAULTS"])
    settings = pg.PgSettings(dsn=os.environ["STATEMENTS_DSN"], pool_size=2)
    async with (
        pg.open_database(settings, name="statements") as pool,
        open_store(S3Settings.model_validate_json(os.environ["STATEMENTS_S3"])) as objects,
    ):
        maker = HandMaker(Path(os.environ["STATEMENTS_FOLDER"]))
        await worker_of(StatementStore("s1", pool), objects, maker, TURNS, Wakes()).run()


if __name__ == "__main__":
    asyncio.run(work())
