"""A worker that is killed anywhere on a statement's way is followed by one that makes it: one file that its
row names, one mail, and nothing else left.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
from collections.abc import AsyncIterator
from datetime import timedelta
from pathlib import Path

import pytest

from archive_svc.statement.outbox import MailOutbox
from archive_svc.statement.postman import Postman, Rounds
from chassis.clock import SYSTEM_CLOCK
from chassis.mail import Mailbox, kept
from tests.buckets import Place
from tests.conftest import DatabaseFactory
from tests.faults.points import MAIL_POINTS, STATEMENT_POINTS
from tests.inprocess_s3 import InProcessS3
from tests.listeners import Trust
from tests.statements import PAPER, Statements, opened, sweeper_of, told

BUCKET = "statements"
KILLED_WITHIN_S = 60.0


@pytest.fixture
async def place() -> AsyncIterator[Place]:
    async with InProcessS3.serving() as server:
        yield Place.of(server)


@pytest.fixture
async def statements(tmp_path, shard_database: DatabaseFactory, place: Place) -> AsyncIterator[Statements]:
    async with opened(await shard_database(), place, Trust.make(tmp_path), tmp_path, bucket=BUCKET) as ready:
        yield ready


async def killed_at(point: str, statements: Statements, place: Place, folder: Path) -> None:
    """Run an archive_svc that dies there."""
    fired = folder / "fired"
    s3 = {
        "bucket": BUCKET,
        "endpoint": place.endpoint,
        "access_key": place.access_key,
        "secret_key": place.secret_key,
    }
    mail = {
        "mailbox_dir": str(folder / "mails"),
        "sender": PAPER.sender,
        "to": PAPER.to,
        "base_url": PAPER.base_url,
    }
    environment = {
        **os.environ,
        "ORDERMESH_SHARDS": json.dumps({"s1": statements.shard.database.dsn}),
        "ORDERMESH_S3": json.dumps(s3),
        "ORDERMESH_MAIL": json.dumps(mail),
        "ORDERMESH_STATEMENTS": json.dumps({"work_dir": str(folder)}),
        "ORDERMESH_PROXY_TARGET": "127.0.0.1:1",
        "ORDERMESH_PROFILE": "local",
        "ORDERMESH_TLS_DIR": str(folder / "tls"),
        "ORDERMESH_SUBJECT_DIR": str(folder / "subject"),
        "ORDERMESH_FAULTS": f"{point}=kill",
        "ORDERMESH_FAULTS_FIRED": str(fired),
    }
    process = await asyncio.create_subprocess_exec(*(sys.executable, "-m", "archive_svc"), env=environment)
    assert await asyncio.wait_for(process.wait(), KILLED_WITHIN_S) == -signal.SIGKILL
    assert point in fired.read_text(encoding="utf-8")


@pytest.mark.parametrize("point", STATEMENT_POINTS)
async def test_a_kill_at_any_point_ends_in_one_file_and_one_mail(
    statements: Statements, place: Place, tmp_path: Path, point: str
) -> None:
    asked = await statements.request()
    await killed_at(point, statements, place, tmp_path)

    # Until the lease is over nobody touches it; then the next one makes it from the beginning.
    assert not await statements.worker.once()
    await statements.database.execute("UPDATE ordermesh.statements SET lease_until = 'epoch'")
    is_ready = point == "statement.after_ready"
    assert await statements.worker.once() is not is_ready
    over = await statements.wait(asked)
    assert told(over).state == told(over).READY
    assert await statements.value("SELECT count(*) FROM ordermesh.statement_mails") == 1

    sweeper = sweeper_of(statements.store, statements.objects, after=timedelta(0))
    await sweeper.once()
    named = await statements.value("SELECT object_key FROM ordermesh.statements")
    assert await statements.keys() == [named]
    assert await statements.value("SELECT is_clean FROM ordermesh.statements")


@pytest.mark.parametrize("point", MAIL_POINTS)
async def test_a_kill_after_a_mail_was_taken_repeats_the_same_mail_or_none(
    statements: Statements, place: Place, tmp_path: Path, point: str
) -> None:
    asked = await statements.request()
    await killed_at(point, statements, place, tmp_path)
    (path,) = kept(tmp_path / "mails")
    before = path.read_bytes()
    is_known = point == "statement.after_sent"
    mail = told(asked).MAIL_SENT if is_known else told(asked).MAIL_WAITING
    assert told(await statements.wait(asked)).mail == mail

    outbox, box = MailOutbox("s1", statements.database), Mailbox(tmp_path / "mails")
    sender = Postman(outbox, box, PAPER, Rounds(), statements.wakes, SYSTEM_CLOCK, lambda: 0.0)
    assert not await sender.once()
    await statements.database.execute("UPDATE ordermesh.statement_mails SET lease_until = 'epoch'")
    assert await sender.once() is not is_known
    assert told(await statements.wait(asked)).mail == told(asked).MAIL_SENT
    assert [each.read_bytes() for each in kept(tmp_path / "mails")] == [before]
