"""A worker of statements in its own process, for tests that kill it: `python -m tests.statement_process`."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path

from archive_svc.statement.outbox import MailOutbox
from archive_svc.statement.postman import Postman, Rounds
from archive_svc.statement.store import StatementStore
from archive_svc.statement.wakes import Wakes
from chassis import faults, pg
from chassis.clock import SYSTEM_CLOCK
from chassis.mail import Mailbox
from chassis.s3 import S3Settings, open_store
from tests.statements import PAPER, TURNS, HandMaker, worker_of


async def work() -> None:
    """Make and announce statements of one shard until killed."""
    faults.arm(os.environ["ORDERMESH_FAULTS"])
    settings = pg.PgSettings(dsn=os.environ["STATEMENTS_DSN"], pool_size=2)
    async with (
        pg.open_database(settings, name="statements") as pool,
        open_store(S3Settings.model_validate_json(os.environ["STATEMENTS_S3"])) as objects,
    ):
        folder, wakes = Path(os.environ["STATEMENTS_FOLDER"]), Wakes()
        worker = worker_of(StatementStore("s1", pool), objects, HandMaker(folder), TURNS, wakes)
        outbox, box = MailOutbox("s1", pool), Mailbox(folder / "mails")
        sender = Postman(outbox, box, PAPER, Rounds(look_s=0.02), wakes, SYSTEM_CLOCK, lambda: 0.0)
        await asyncio.gather(worker.run(), sender.run())


if __name__ == "__main__":
    asyncio.run(work())
