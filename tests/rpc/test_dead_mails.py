"""Mails that were given up: operators see them and have them sent again, over a real mail server."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import grpc
import pytest
from structlog.testing import capture_logs

from archive_svc.errors import MailNotFound
from archive_svc.statement import metrics, standing
from archive_svc.statement.asking import Limits
from archive_svc.statement.deadmails import DeadMails, Retry
from archive_svc.statement.outbox import MailOutbox
from archive_svc.statement.postman import Postman, Rounds
from chassis import pg
from chassis.clock import SYSTEM_CLOCK
from chassis.errors import Reason, ShardUnavailable
from chassis.mail import Smtp, SmtpSettings
from chassis.testing import eventually
from ordermesh.archive.v1 import statement_service_pb2 as pb
from tests.buckets import Place
from tests.conftest import DatabaseFactory
from tests.inprocess_s3 import InProcessS3
from tests.listeners import ALICE, OPERATOR, Trust, refused
from tests.smtp import MailServer
from tests.statements import PAPER, Statements, opened, running, told

Code = grpc.StatusCode
NO = "550 no such user"


class Dead:
    """A shard's statements, and the mail server that refuses their mails."""

    def __init__(self, statements: Statements, server: MailServer) -> None:
        self.statements = statements
        self.server = server
        settings = {"host": "127.0.0.1", "port": server.port, "security": "none", "send_s": 5.0}
        self.outbox = MailOutbox("s1", statements.database)
        self.postman = Postman(
            self.outbox,
            Smtp(SmtpSettings.model_validate(settings)),
            PAPER,
            Rounds(pause_s=0.01, pause_s_max=0.02, look_s=60.0),
            statements.wakes,
            SYSTEM_CLOCK,
            lambda: 1.0,
        )

    async def letter(self, day: int = 1) -> str:
        """The id of a statement of which the mail is dead."""
        asked = await self.statements.request(last=f"2025-03-{day:02}")
        assert await self.statements.worker.once()
        self.server.answers["RCPT"] = [NO]
        assert await self.postman.once()
        ready = told(await self.statements.wait(asked))
        assert ready.mail == pb.Statement.MAIL_DEAD_LETTER
        return ready.statement_id

    async def listed(self, **asked: Any) -> pb.ListDeadMailsResponse:
        request = pb.ListDeadMailsRequest(**asked)
        answer: pb.ListDeadMailsResponse = await self.statements.call(
            "ListDeadMails", request, OPERATOR, placement=None
        )
        return answer

    async def retry(
        self, statement_id: str, request_id: UUID | None = None, **changes: Any
    ) -> pb.StatementMail:
        fields = {"request_id": str(request_id or uuid4()), "reason": "they are back"} | changes
        request = pb.RetryMailRequest(statement_id=statement_id, **fields)
        answer = await self.statements.call("RetryMail", request, OPERATOR, placement=None)
        mail: pb.StatementMail = answer.mail
        return mail

    async def retries(self) -> int:
        count: int = await self.statements.value("SELECT count(*) FROM ordermesh.statement_mail_retries")
        return count


@asynccontextmanager
async def dead_at(database: Any, folder: Path) -> AsyncIterator[Dead]:
    async with (
        InProcessS3.serving() as s3,
        MailServer.serving() as server,
        opened(
            database, Place.of(s3), Trust.make(folder), folder, limits=Limits(day_max=50, month_max=50)
        ) as statements,
    ):
        yield Dead(statements, server)


@pytest.fixture
async def dead(tmp_path: Path, shard_database: DatabaseFactory) -> AsyncIterator[Dead]:
    async with dead_at(await shard_database(), tmp_path) as ready:
        yield ready


async def test_a_mail_that_was_given_up_is_seen_and_sent_again_as_the_same_mail(dead: Dead) -> None:
    statement_id = await dead.letter()
    (seen,) = (await dead.listed()).mails
    assert (seen.shard, seen.statement_id, seen.user_id) == ("s1", statement_id, "alice")
    assert (seen.mail, seen.attempt_count, seen.note) == (pb.Statement.MAIL_DEAD_LETTER, 1, NO)
    assert (seen.retry_count, seen.HasField("end_time"), seen.HasField("expire_time")) == (0, True, True)
    assert "@" not in str(seen)

    # Refused again, for good: it is a dead letter once more, and both tries are told.
    dead.server.answers["RCPT"] = ["550 still not"]
    with capture_logs() as lines:
        mail = await dead.retry(statement_id)
    assert (mail.mail, mail.retry_count, mail.actor, mail.reason) == (
        pb.Statement.MAIL_WAITING,
        1,
        "mira",
        "they are back",
    )
    assert [(line["statement_id"], line["actor"]) for line in lines if line["event"] == "mail_retried"] == [
        (statement_id, "mira")
    ]
    assert not (await dead.listed()).mails
    assert await dead.postman.once()
    (seen,) = (await dead.listed()).mails
    assert (seen.note, seen.attempt_count, seen.retry_count) == ("550 still not", 2, 1)

    await dead.retry(statement_id, reason="really")
    assert await dead.postman.once()
    assert not await dead.postman.once()
    (taken,) = dead.server.taken
    assert f"Message-ID: <statement.{statement_id}@shop.invalid>".encode() in taken
    assert not (await dead.listed()).mails
    audited = await dead.statements.database.fetch(
        "SELECT statement_id, actor, reason, attempts, note FROM ordermesh.statement_mail_retries ORDER BY at"
    )
    assert [tuple(row) for row in audited] == [
        (UUID(statement_id), "mira", "they are back", 1, NO),
        (UUID(statement_id), "mira", "really", 1, "550 still not"),
    ]


async def test_a_retry_is_heard_at_once_and_tried_for_two_days_as_at_first(dead: Dead) -> None:
    statement_id = await dead.letter()
    await dead.statements.database.execute(
        "UPDATE ordermesh.statement_mails SET give_up_at = 'epoch', attempts = 40"
    )
    dead.server.answers["RCPT"] = ["450 not yet"]

    async with running(dead.postman):
        await dead.retry(statement_id)

        async def put_off() -> bool:
            mail = await dead.outbox.mail(UUID(statement_id))
            return mail is not None and mail.note == "450 not yet"

        await eventually(put_off)
        left = await dead.statements.value(
            "SELECT give_up_at - clock_timestamp() FROM ordermesh.statement_mails"
        )
        assert timedelta(hours=47) < left <= timedelta(hours=48)

        async def taken_when_due() -> bool:
            dead.statements.wakes.wake(dead.postman.name)
            return bool(dead.server.taken)

        await eventually(taken_when_due)
    assert len(dead.server.taken) == 1


async def test_the_same_request_again_changes_nothing(dead: Dead) -> None:
    statement_id, request_id = await dead.letter(), uuid4()
    first = await dead.retry(statement_id, request_id)
    assert await dead.retry(statement_id, request_id) == first
    assert await dead.postman.once()
    again = await dead.retry(statement_id, request_id)
    assert again.mail == pb.Statement.MAIL_SENT
    assert not await dead.postman.once()
    assert (len(dead.server.taken), await dead.retries()) == (1, 1)

    another = await dead.letter(2)
    with refused(Code.FAILED_PRECONDITION, Reason.REQUEST_ID_REUSED):
        await dead.retry(another, request_id)


async def test_what_was_not_given_up_or_is_of_no_use_is_not_sent_again(dead: Dead) -> None:
    sent = await dead.letter()
    await dead.retry(sent)
    with refused(Code.FAILED_PRECONDITION, Reason.MAIL_NOT_DEAD):
        await dead.retry(sent)
    assert await dead.postman.once()
    with refused(Code.FAILED_PRECONDITION, Reason.MAIL_NOT_DEAD):
        await dead.retry(sent)
    with refused(Code.NOT_FOUND, Reason.STATEMENT_NOT_FOUND):
        await dead.retry(str(uuid4()))
    with refused(Code.INVALID_ARGUMENT, Reason.INVALID_FIELD):
        await dead.retry("statement.1")
    with refused(Code.INVALID_ARGUMENT, Reason.INVALID_FIELD):
        await dead.retry(sent, reason="")

    gone = await dead.letter(2)
    await dead.statements.later(days=8)
    with refused(Code.FAILED_PRECONDITION, Reason.STATEMENT_NOT_READY):
        await dead.retry(gone)
    assert await dead.statements.store.expire() == 2
    with refused(Code.FAILED_PRECONDITION, Reason.STATEMENT_NOT_READY):
        await dead.retry(gone)
    (seen,) = (await dead.listed()).mails
    assert not seen.HasField("expire_time")
    assert await dead.retries() == 1


async def test_an_old_try_that_answers_late_changes_nothing_of_a_retry(dead: Dead) -> None:
    statement_id = await dead.letter()
    await dead.statements.database.execute(
        "UPDATE ordermesh.statement_mails SET state = 'WAITING', ended_at = NULL, lease_until = 'epoch'"
    )
    old = await dead.outbox.claim(timedelta(seconds=60))
    assert old is not None
    await dead.outbox.dead(old, NO)
    await dead.retry(statement_id)
    await dead.outbox.dead(old, "an answer that came twice")
    mail = await dead.outbox.mail(UUID(statement_id))
    assert mail is not None
    assert (mail.state, mail.note) == ("WAITING", NO)


async def test_the_dead_are_counted_while_somebody_can_do_something(dead: Dead) -> None:
    async def shown() -> float:
        standing.tell_mails("s1", await dead.outbox.standing())
        return float(metrics.MAILS_DEAD.labels("s1")._value.get())

    first = await dead.letter()
    await dead.letter(2)
    assert await shown() == 2
    await dead.retry(first)
    assert await shown() == 1
    await dead.statements.later(days=8)
    assert await shown() == 0


async def test_pages_hold_everything_once_the_youngest_first(dead: Dead) -> None:
    ids = [await dead.letter(day) for day in range(1, 6)]
    seen: list[str] = []
    token = ""
    for size in (2, 2, 1):
        page = await dead.listed(page_size=2, page_token=token)
        assert len(page.mails) == size
        seen += [mail.statement_id for mail in page.mails]
        token = page.next_page_token
    assert seen == ids[::-1]
    assert not token
    first = await dead.listed(shard="s1", page_size=2)
    with refused(Code.INVALID_ARGUMENT, Reason.PAGE_TOKEN_INVALID):
        await dead.listed(page_token=first.next_page_token)
    with refused(Code.NOT_FOUND, Reason.UNKNOWN_SHARD):
        await dead.listed(shard="s9")


async def test_only_operators_see_them_and_have_them_sent(dead: Dead) -> None:
    statement_id = await dead.letter()
    with refused(Code.PERMISSION_DENIED, Reason.ROLE_REQUIRED):
        await dead.statements.call("ListDeadMails", pb.ListDeadMailsRequest(), ALICE)
    request = pb.RetryMailRequest(request_id=str(uuid4()), statement_id=statement_id, reason="mine")
    with refused(Code.PERMISSION_DENIED, Reason.ROLE_REQUIRED):
        await dead.statements.call("RetryMail", request, ALICE)


async def test_of_several_shards_all_are_seen_and_one_that_is_silent_is_told(
    dead: Dead, tmp_path: Path, shard_database: DatabaseFactory
) -> None:
    (tmp_path / "other").mkdir()
    nobody = pg.PgSettings(dsn="postgresql://nobody@127.0.0.1:1/none")
    async with (
        dead_at(await shard_database(), tmp_path / "other") as other,
        pg.open_database(nobody, name="nobody") as silent,
    ):
        ids = [await each.letter(day) for day in (1, 2) for each in (dead, other)]
        outboxes = {"s1": dead.outbox, "s2": MailOutbox("s2", other.statements.database)}
        both = DeadMails(outboxes, dead.statements.wakes)
        far = (SYSTEM_CLOCK.now() + timedelta(days=1), UUID(int=0))

        def deadline() -> float:
            return SYSTEM_CLOCK.monotonic() + 10

        page = await both.page("", far, 3, deadline())
        found = [(shard, str(mail.statement_id)) for shard, mail in page.mails]
        assert found == [("s2", ids[3]), ("s1", ids[2]), ("s2", ids[1])]
        shard, mail = await both.retry(Retry(uuid4(), UUID(ids[3]), "mira", "back"), deadline())
        assert (shard, mail.state) == ("s2", "WAITING")
        with pytest.raises(MailNotFound):
            await both.retry(Retry(uuid4(), uuid4(), "mira", "back"), deadline())

        broken = DeadMails({"s0": MailOutbox("s0", silent), **outboxes}, dead.statements.wakes)
        page = await broken.page("", far, 10, deadline())
        assert ([str(mail.statement_id) for _, mail in page.mails], page.unreachable) == (
            [ids[2], ids[1], ids[0]],
            ["s0"],
        )
        assert (await broken.retry(Retry(uuid4(), UUID(ids[2]), "mira", "back"), deadline()))[0] == "s1"
        with pytest.raises(ShardUnavailable):
            await broken.retry(Retry(uuid4(), uuid4(), "mira", "back"), deadline())
