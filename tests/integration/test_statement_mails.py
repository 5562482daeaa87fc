"""Mails about statements over a real conversation: each is taken once, or is a dead letter to be seen."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import replace
from email import message_from_bytes
from pathlib import Path
from uuid import UUID

import pytest
from structlog.testing import capture_logs

from archive_svc.statement import metrics
from archive_svc.statement.outbox import MailOutbox
from archive_svc.statement.postman import Postman, Rounds
from archive_svc.statement.standing import Standing
from chassis.clock import SYSTEM_CLOCK
from chassis.mail import Letter, Mailbox, NotSent, Smtp, SmtpSettings, Transport, kept
from chassis.testing import eventually
from ordermesh.archive.v1 import statement_service_pb2 as pb
from tests.buckets import Place
from tests.conftest import DatabaseFactory
from tests.inprocess_s3 import InProcessS3
from tests.listeners import Trust
from tests.smtp import CUT, SILENT, MailServer
from tests.statements import PAPER, Statements, opened, running, told

ROUNDS = Rounds(pause_s=0.01, pause_s_max=0.02, look_s=0.02)
State = pb.Statement
LETTER = Letter("one", "a@shop.invalid", "b@customers.invalid", b"Subject: a\r\n\r\nbody\r\n")


@pytest.fixture
async def server() -> AsyncIterator[MailServer]:
    async with MailServer.serving() as serving:
        yield serving


@pytest.fixture
async def statements(tmp_path, shard_database: DatabaseFactory) -> AsyncIterator[Statements]:
    async with (
        InProcessS3.serving() as s3,
        opened(await shard_database(), Place.of(s3), Trust.make(tmp_path), tmp_path) as ready,
    ):
        yield ready


def smtp(server: MailServer, **changes: object) -> Smtp:
    settings = {"host": "127.0.0.1", "port": server.port, "security": "none", "send_s": 5.0}
    return Smtp(SmtpSettings.model_validate(settings | changes))


def postman(statements: Statements, transport: Transport, rounds: Rounds = ROUNDS) -> Postman:
    outbox = MailOutbox("s1", statements.database)
    return Postman(outbox, transport, PAPER, rounds, statements.wakes, SYSTEM_CLOCK, lambda: 1.0)


def standing(statements: Statements) -> Standing:
    return Standing(statements.store, MailOutbox("s1", statements.database))


async def a_ready_one(statements: Statements) -> pb.Statement:
    asked = await statements.request()
    assert await statements.worker.once()
    ready = told(await statements.wait(asked))
    assert (ready.state, ready.mail) == (State.READY, State.MAIL_WAITING)
    return ready


async def mail_of(statements: Statements) -> tuple[str, str]:
    row = await statements.database.fetchrow("SELECT state, note FROM ordermesh.statement_mails")
    assert row is not None
    return row["state"], row["note"]


async def until_over(statements: Statements, sender: Postman, tries_max: int = 20) -> int:
    """Send until nothing waits any more; how many tries it took."""
    tries = 0
    while (await mail_of(statements))[0] == "WAITING":
        await statements.database.execute("UPDATE ordermesh.statement_mails SET not_before = 'epoch'")
        assert await sender.once()
        tries += 1
        assert tries < tries_max
    return tries


async def test_a_ready_statement_is_announced_once(statements: Statements, server: MailServer) -> None:
    ready = await a_ready_one(statements)
    sender = postman(statements, smtp(server))
    assert await sender.once()
    assert not await sender.once()
    (mail,) = server.taken
    read = message_from_bytes(mail)
    assert read["Message-ID"] == f"<statement.{ready.statement_id}@shop.invalid>"
    assert read["To"] == "alice@customers.invalid"
    assert "MAIL FROM:<statements@shop.invalid>" in " ".join(server.commands)
    assert "RCPT TO:<alice@customers.invalid>" in server.commands
    over = await statements.store.statement("alice", UUID(ready.statement_id))
    assert over is not None
    assert over.mail == "SENT"


@pytest.mark.parametrize(
    "answers",
    [
        {"CONNECT": ["421 later", CUT, "554 no"]},
        {"EHLO": ["421 later"], "HELO": ["421 later"]},
        {"MAIL": ["451 later", "452 later"]},
        {"RCPT": ["450 greylisted", "451 later", CUT]},
        {"DATA": ["451 later"]},
        {".": ["451 later", "452 full"]},
    ],
    ids=["connect", "ehlo", "mail", "rcpt", "data", "end"],
)
async def test_what_may_pass_is_sent_again_and_taken_once(
    statements: Statements, server: MailServer, answers: dict[str, list[str]]
) -> None:
    await a_ready_one(statements)
    server.answers.update({command: [*said] for command, said in answers.items()})
    tries = await until_over(statements, postman(statements, smtp(server)))
    assert tries == 1 + max(len(said) for said in answers.values())
    assert (await mail_of(statements))[0] == "SENT"
    assert len(server.taken) == 1


@pytest.mark.parametrize(
    ("command", "answer"),
    [("MAIL", "550 not you"), ("RCPT", "550 no such user"), ("DATA", "554 no"), (".", "552 spam")],
)
async def test_what_is_refused_for_good_is_a_dead_letter_that_can_be_seen(
    statements: Statements, server: MailServer, command: str, answer: str
) -> None:
    ready = await a_ready_one(statements)
    server.answers[command] = [answer]
    sender = postman(statements, smtp(server))
    assert await until_over(statements, sender) == 1
    assert await mail_of(statements) == ("DEAD", answer)
    assert not await sender.once()
    assert server.taken == []
    over = await statements.store.statement("alice", UUID(ready.statement_id))
    assert over is not None
    assert (over.state, over.mail) == ("READY", "DEAD")
    await standing(statements).tell()
    assert metrics.MAILS_DEAD.labels("s1")._value.get() == 1


@pytest.mark.parametrize(
    ("command", "answer"), [("RCPT", "550 <alice@customers.invalid> is unknown"), (".", "451 later")]
)
async def test_what_a_server_says_is_kept_and_logged_without_the_address(
    statements: Statements,
    server: MailServer,
    command: str,
    answer: str,
) -> None:
    ready = await a_ready_one(statements)
    server.answers[command] = [answer]
    with capture_logs() as lines:
        assert await postman(statements, smtp(server)).once()
    assert (await mail_of(statements))[1] == answer.replace("alice@customers.invalid", "(the address)")
    assert [line["statement_id"] for line in lines if line["event"] == "mail_tried"] == [ready.statement_id]
    assert "alice@" not in str(lines)


async def test_a_mail_of_a_statement_that_is_gone_is_not_sent(
    statements: Statements, server: MailServer
) -> None:
    await a_ready_one(statements)
    await statements.later(days=8)
    assert await postman(statements, smtp(server)).once()
    assert await mail_of(statements) == ("DEAD", "its statement is gone")
    assert server.commands == []
    standing = await MailOutbox("s1", statements.database).standing()
    assert (standing.waiting, standing.dead) == (0, 0), "nobody can do anything about it"


async def test_an_answer_that_is_lost_after_the_mail_repeats_the_same_mail(
    statements: Statements, server: MailServer
) -> None:
    await a_ready_one(statements)
    server.answers["."] = [CUT, SILENT]
    assert await until_over(statements, postman(statements, smtp(server, send_s=0.3))) == 3
    assert (await mail_of(statements))[0] == "SENT"
    assert len(server.taken) == 3
    assert len(set(server.taken)) == 1, "whoever has the Message-ID has the mail"


@pytest.mark.parametrize("command", ["CONNECT", "EHLO", "RCPT", "DATA"])
async def test_a_server_that_says_nothing_is_left_in_time(
    statements: Statements, server: MailServer, command: str
) -> None:
    await a_ready_one(statements)
    server.answers[command] = [SILENT]
    assert await until_over(statements, postman(statements, smtp(server, send_s=0.3))) == 2
    assert len(server.taken) == 1


async def test_how_a_conversation_ends_after_the_mail_was_taken_changes_nothing(
    statements: Statements, server: MailServer
) -> None:
    await a_ready_one(statements)
    server.answers["QUIT"] = [CUT]
    assert await until_over(statements, postman(statements, smtp(server))) == 1
    assert len(server.taken) == 1


async def test_a_mail_that_nobody_takes_for_two_days_is_a_dead_letter(
    statements: Statements, server: MailServer
) -> None:
    await a_ready_one(statements)
    server.answers["RCPT"] = ["450 greylisted", "450 still greylisted"]
    sender = postman(statements, smtp(server))
    assert await sender.once()
    assert (await mail_of(statements)) == ("WAITING", "450 greylisted")
    await statements.database.execute(
        "UPDATE ordermesh.statement_mails SET give_up_at = clock_timestamp(), not_before = 'epoch'"
    )
    assert await sender.once()
    assert await mail_of(statements) == ("DEAD", "450 still greylisted")


async def test_pauses_grow_from_a_minute_to_twelve_hours(statements: Statements, server: MailServer) -> None:
    await a_ready_one(statements)
    sender = postman(statements, smtp(server), Rounds())
    pauses = []
    for _ in range(12):
        server.answers["RCPT"] = ["450 greylisted"]
        await statements.database.execute("UPDATE ordermesh.statement_mails SET not_before = 'epoch'")
        assert await sender.once()
        pause = await statements.value(
            "SELECT round(extract(epoch FROM not_before - clock_timestamp()) / 60)::int"
            " FROM ordermesh.statement_mails"
        )
        pauses.append(pause)
    assert pauses == [1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 720, 720]


async def test_mails_that_wait_are_seen_also_where_nobody_sends_any(statements: Statements) -> None:
    await a_ready_one(statements)
    await statements.database.execute(
        "UPDATE ordermesh.statement_mails SET created_at = created_at - interval '2 hours'"
    )
    metrics.MAILS_WAITING.labels("s1").set(0)
    metrics.MAILS_OLDEST.labels("s1").set(0)
    await standing(statements).tell()
    assert metrics.MAILS_WAITING.labels("s1")._value.get() == 1
    assert metrics.MAILS_OLDEST.labels("s1")._value.get() >= 7200


async def test_two_senders_send_a_mail_once(statements: Statements, server: MailServer) -> None:
    await a_ready_one(statements)
    both = [postman(statements, smtp(server)) for _ in range(2)]
    assert sorted(await asyncio.gather(*(each.once() for each in both))) == [False, True]
    assert len(server.taken) == 1


async def test_a_mail_that_cannot_be_made_is_a_dead_letter(
    statements: Statements, server: MailServer
) -> None:
    await a_ready_one(statements)
    await statements.database.execute(
        "UPDATE ordermesh.statements SET user_id = 'a =?UTF-8?Q?=0A?=Bcc: b@c.d'"
    )
    assert await postman(statements, smtp(server)).once()
    assert (await mail_of(statements))[0] == "DEAD"
    assert server.commands == []


async def test_mails_are_sent_as_soon_as_statements_are_ready(
    statements: Statements, server: MailServer
) -> None:
    sender = postman(statements, smtp(server), replace(ROUNDS, look_s=60.0))
    async with running(statements.worker, sender):
        asked = await statements.request()
        await statements.until(asked, "READY")

        async def announced() -> bool:
            return told(await statements.wait(asked)).mail == State.MAIL_SENT

        assert await eventually(announced)


async def test_a_server_without_encryption_gets_nothing_when_encryption_is_wanted(server: MailServer) -> None:
    with pytest.raises(NotSent) as said:
        await smtp(server, security="starttls").send(LETTER)
    assert said.value.may_pass
    assert server.taken == []


async def test_who_is_not_let_in_tries_again_as_a_person_may_mend_it(server: MailServer) -> None:
    server.answers["EHLO"] = ["250-hello\r\n250 AUTH PLAIN"]
    server.answers["AUTH"] = ["535 who are you"]
    with pytest.raises(NotSent) as said:
        await smtp(server, username="us", password="a secret").send(LETTER)
    assert (said.value.may_pass, said.value.note[:3]) == (True, "535")


async def test_nobody_there_may_pass() -> None:
    nobody = Smtp(SmtpSettings(host="127.0.0.1", port=1, security="none"))
    with pytest.raises(NotSent) as said:
        await nobody.send(LETTER)
    assert said.value.may_pass


async def test_a_mailbox_keeps_a_mail_once_however_often_it_is_sent(
    statements: Statements, tmp_path: Path
) -> None:
    ready = await a_ready_one(statements)
    box = Mailbox(tmp_path / "mails")
    sender = postman(statements, box)
    assert await sender.once()
    # As if its sender had died before it could say so.
    await statements.database.execute(
        "UPDATE ordermesh.statement_mails SET state = 'WAITING', ended_at = NULL"
    )
    await statements.database.execute("UPDATE ordermesh.statement_mails SET lease_until = 'epoch'")
    assert await sender.once()
    (path,) = kept(tmp_path / "mails")
    assert path.name == f"statement.{ready.statement_id}.eml"
    assert ready.statement_id in path.read_text(encoding="ascii")

    (tmp_path / "file").write_text("no directory")
    with pytest.raises(NotSent) as said:
        await Mailbox(tmp_path / "file").send(LETTER)
    assert said.value.may_pass
