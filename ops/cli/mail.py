"""`ordermesh mail`: read the mails that a laptop's stack keeps in place of sending them."""

from __future__ import annotations

from email import message_from_bytes, policy
from typing import TYPE_CHECKING, Annotated

import typer

from chassis.mail import kept
from ops.cli import output
from ops.cli.edge import ExitCode
from ops.cli.options import Format, Output, StateDir
from ops.stack.layout import Places

if TYPE_CHECKING:
    from email.message import EmailMessage
    from pathlib import Path

app = typer.Typer(
    help="Mails that this stack would send: list, show.",
    no_args_is_help=True,
    rich_markup_mode=None,
    add_completion=False,
)


@app.command("list")
def list_mails(state_dir: StateDir, form: Output = Format.TABLE) -> None:
    """List the mails of this stack, the oldest first.

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


def _read(path: Path) -> EmailMessage:
    return message_from_bytes(path.read_bytes(), policy=policy.default)


def _text(mail: EmailMessage) -> str:
    return "\n".join(str(mail.get_content()).splitlines())


def _told(name: str, mail: EmailMessage) -> dict[str, str]:
    headers = {header.lower(): str(value) for header, value in mail.items()}
    return {"name": name, **headers, "text": _text(mail)}
