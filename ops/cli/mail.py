"""`ordermesh mail`: the mails that a laptop's stack keeps in place of sending them, and those that were given
up anywhere.
"""

from __future__ import annotations

from email import message_from_bytes, policy
from typing import TYPE_CHECKING, Annotated

import typer

from chassis.mail import kept
from ops.cli import output
from ops.cli.calls import TIMEOUT_S, ask
from ops.cli.edge import ExitCode
from ops.cli.options import Actor, Format, OneShard, Output, RequestId, StateDir, Why
from ops.mesh import spoken_by
from ops.stack.layout import Places
from ordermesh.archive.v1 import statement_service_pb2 as pb

if TYPE_CHECKING:
    from collections.abc import Sequence
    from email.message import EmailMessage
    from pathlib import Path

    from rich.table import Table

    from ops.mesh import Mesh

PAGE_MAX = 100
PREFIX = "statement."
"""Of a mail's name in a mailbox, before the statement's id."""

app = typer.Typer(
    help="Mails of statements: list, show, dead, retry.",
    no_args_is_help=True,
    rich_markup_mode=None,
    add_completion=False,
)


@app.command("list")
def list_mails(state_dir: StateDir, form: Output = Format.TABLE) -> None:
    """List the mails that this stack would have sent, the oldest first.

    \b
    Example:
      ordermesh mail list
    """
    mails = [(path.stem, _read(path)) for path in kept(Places(state_dir).mails)]
    if form is Format.JSON:
        output.print_json([_told(name, mail) for name, mail in mails])
        return
    rows = [(name, str(mail["To"]), str(mail["Subject"]), str(mail["Date"])) for name, mail in mails]
    if rows:
        output.show(output.table("mail", "to", "subject", "date", rows=rows))
    else:
        output.note("there are no mails")


@app.command()
def show(
    name: Annotated[str, typer.Argument(metavar="MAIL", show_default=False, help="As `mail list` names it.")],
    state_dir: StateDir,
    form: Output = Format.TABLE,
) -> None:
    """Show one mail, as whoever gets it would read it.

    \b
    Example:
      ordermesh mail show statement.4f6c...
    """
    path = next((path for path in kept(Places(state_dir).mails) if path.stem == name), None)
    if path is None:
        output.note(f"there is no mail {name}")
        raise typer.Exit(ExitCode.NO)
    mail = _read(path)
    if form is Format.JSON:
        output.print_json(_told(name, mail))
        return
    headers = [(header, str(mail[header])) for header in ("From", "To", "Subject", "Date", "Message-ID")]
    output.show(output.facts(*headers))
    output.show("\n" + _text(mail))


@app.command()
def dead(
    state_dir: StateDir,
    shard: OneShard = "",
    limit: Annotated[int, typer.Option(min=1, max=1000, help="So many at most.")] = 100,
    form: Output = Format.TABLE,
) -> None:
    """List the mails that were given up, the youngest first, with what the mail server said last.

    Exit code 1 when a shard does not answer. A mail whose statement is gone is of no use any more.

    \b
    Example:
      ordermesh mail dead
    """

    async def work(mesh: Mesh) -> tuple[list[pb.StatementMail], set[str]]:
        mails: list[pb.StatementMail] = []
        silent: set[str] = set()
        token = ""
        while len(mails) < limit:
            size = min(PAGE_MAX, limit - len(mails))
            asked = pb.ListDeadMailsRequest(shard=shard, page_size=size, page_token=token)
            answer = await mesh.statements.ListDeadMails(asked, timeout=TIMEOUT_S)
            mails += answer.mails
            silent.update(answer.unreachable)
            token = answer.next_page_token
            if not token:
                break
        return mails, silent

    mails, silent = ask(state_dir, work)
    output.emit(form, mails, _dead(mails))
    for name in sorted(silent):
        output.note(f"incomplete: {name} does not answer")
    if silent:
        raise typer.Exit(ExitCode.NO)


@app.command()
def retry(
    statement: Annotated[
        str,
        typer.Argument(metavar="ID", show_default=False, help="The statement's id, as `mail dead` has it."),
    ],
    reason: Why,
    actor: Actor,
    request_id: RequestId,
    state_dir: StateDir,
    form: Output = Format.TABLE,
) -> None:
    """Have a mail sent again that was given up: the same one, with the same Message-ID.

    \b
    Example:
      ordermesh mail retry 4f6c... --reason "their mail server is back"
    """
    request = pb.RetryMailRequest(
        request_id=str(request_id), statement_id=statement.removeprefix(PREFIX), reason=reason
    )
    answer = ask(
        state_dir,
        lambda mesh: mesh.statements.RetryMail(request, timeout=TIMEOUT_S, metadata=spoken_by(actor)),
    )
    output.emit(form, answer, _one(answer.mail))


def _dead(mails: Sequence[pb.StatementMail]) -> Table:
    columns = (
        "id",
        "user",
        "attempts",
        "the server said last",
        "given up",
        "can be fetched until",
        "retried",
    )
    return output.table(
        *columns,
        rows=[
            (
                each.statement_id,
                each.user_id,
                str(each.attempt_count),
                each.note,
                output.when(each.end_time),
                output.when(each.expire_time) or "gone",
                f"{each.retry_count}, by {each.actor}: {each.reason}" if each.retry_count else "",
            )
            for each in mails
        ],
    )


def _one(mail: pb.StatementMail) -> Table:
    state = pb.Statement.Mail.Name(mail.mail).removeprefix("MAIL_").lower().replace("_", " ")
    return output.facts(
        ("id", mail.statement_id),
        ("shard", mail.shard),
        ("mail", state),
        ("attempts so far", str(mail.attempt_count)),
        ("the server said last", mail.note),
        ("retried", f"{mail.retry_count}, last by {mail.actor}: {mail.reason}"),
    )


def _read(path: Path) -> EmailMessage:
    return message_from_bytes(path.read_bytes(), policy=policy.default)


def _text(mail: EmailMessage) -> str:
    return "\n".join(str(mail.get_content()).splitlines())


def _told(name: str, mail: EmailMessage) -> dict[str, str]:
    headers = {header.lower(): str(value) for header, value in mail.items()}
    return {"name": name, **headers, "text": _text(mail)}
