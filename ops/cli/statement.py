"""`ordermesh statement`: ask for documents of a user's orders, follow them, and fetch them."""

from __future__ import annotations

import sys
from contextlib import contextmanager
from datetime import timedelta
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

from chassis.money import Money
from ops import statements
from ops.cli import output
from ops.cli.calls import TIMEOUT_S, ask
from ops.cli.edge import ExitCode
from ops.cli.options import Format, Output, RequestId, StateDir, duration
from ordermesh.archive.v1 import statement_service_pb2 as pb

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from google.longrunning import operations_pb2
    from rich.table import Table

    from ops.mesh import Mesh

Statement = pb.Statement
PAGE_MAX = 100

app = typer.Typer(
    help="request, wait, download, list, cancel.",
    no_args_is_help=True,
    rich_markup_mode=None,
    add_completion=False,
)


class Kind(StrEnum):
    """How a statement is written."""

    CSV = "csv"
    PDF = "pdf"


def a_name(text: str) -> str:
    """Read the name of a statement's operation.

    Raises: BadParameter.
    """
    if statements.named(text) is None:
        raise typer.BadParameter(f"{text!r} is no name; `ordermesh statement list` prints them")
    return text


User = Annotated[str, typer.Option("--user", help="Whose orders.")]
Name = Annotated[
    str,
    typer.Argument(
        parser=a_name, metavar="NAME", show_default=False, help="users/USER/statements/ID, as it was printed."
    ),
]
Wait = Annotated[
    timedelta,
    typer.Option(
        "--wait", parser=duration, metavar="DURATION", help="How long to watch it; it goes on anyway."
    ),
]


@app.command()
def request(
    user: User,
    first: Annotated[str, typer.Option("--from", metavar="DAY", help="The first day, such as 2024-04-01.")],
    last: Annotated[str, typer.Option("--to", metavar="DAY", help="The last day, which is included.")],
    request_id: RequestId,
    state_dir: StateDir,
    zone: Annotated[str, typer.Option(help="Whose days: a time zone such as Asia/Kolkata.")] = "UTC",
    kind: Annotated[
        list[Kind], typer.Option("--format", help="csv, which is always there, or pdf; may be given again.")
    ] = [],  # noqa: B006 - typer copies it
    locale: Annotated[str, typer.Option(help="The language of its words: en or hi.")] = "en",
    wait: Wait = timedelta(minutes=2),
    form: Output = Format.TABLE,
) -> None:
    """Ask for a statement. Repeated with the same --request-id it returns the first one.

    Exit code 1 when it is not ready in time, or failed.

    \b
    Example:
      ordermesh statement request --user alice --from 2024-04-01 --to 2025-03-31 --format pdf
    """
    wish = pb.StatementWish(
        first_day=first,
        last_day=last,
        time_zone=zone,
        locale=locale,
        formats=[pb.StatementWish.Format.Value(each.name) for each in kind],
    )
    asked = pb.RequestStatementRequest(user_id=user, request_id=str(request_id), wish=wish)

    async def work(mesh: Mesh) -> operations_pb2.Operation:
        return await mesh.statements.RequestStatement(asked, timeout=TIMEOUT_S)

    _follow(state_dir, work, wait, form)


@app.command("wait")
def wait_for(
    name: Name, state_dir: StateDir, wait: Wait = timedelta(minutes=2), form: Output = Format.TABLE
) -> None:
    """Watch a statement until it is over.

    Exit code 1 when it is not ready in time, or failed.

    \b
    Example:
      ordermesh statement wait users/alice/statements/4f6c... --wait 10m
    """
    user_id, statement_id = _named(name)
    _follow(state_dir, lambda mesh: statements.shown(mesh, user_id, statement_id), wait, form)


@app.command()
def download(
    name: Name,
    state_dir: StateDir,
    to: Annotated[
        Path, typer.Option("--to", file_okay=True, dir_okay=True, help="A file, or a directory.")
    ] = Path(),
    form: Output = Format.TABLE,
) -> None:
    """Fetch a statement's file, and compare it with what the statement says of it.

    \b
    Example:
      ordermesh statement download users/alice/statements/4f6c... --to ~/Downloads
    """
    user_id, statement_id = _named(name)
    path, statement = ask(state_dir, lambda mesh: statements.fetched(mesh, user_id, statement_id, to))
    kept = output.facts(
        ("file", str(path)), ("bytes", f"{statement.size_bytes:,}"), ("SHA-256", statement.sha256)
    )
    output.emit(form, statement, kept)


@app.command("list")
def list_statements(
    user: User,
    state_dir: StateDir,
    page_size: Annotated[int, typer.Option(min=1, max=PAGE_MAX, help="How many, the newest first.")] = 20,
    form: Output = Format.TABLE,
) -> None:
    """List a user's statements, the newest first, with where each and its mail stands.

    \b
    Example:
      ordermesh statement list --user alice
    """
    asked = pb.ListStatementsRequest(user_id=user, page_size=page_size)
    answer = ask(state_dir, lambda mesh: mesh.statements.ListStatements(asked, timeout=TIMEOUT_S))
    rows = [
        (
            each.name,
            _state(said := statements.told(each)),
            f"{said.wish.first_day} to {said.wish.last_day}",
            f"{said.order_count:,}",
            output.when(said.create_time),
            output.when(said.expire_time),
            _mail(said),
        )
        for each in answer.operations
    ]
    columns = ("name", "state", "period", "orders", "asked for", "kept until", "mail")
    output.emit(form, list(answer.operations), output.table(*columns, rows=rows))
    if not rows and form is Format.TABLE:
        output.note(f"{user} has no statements")
    if answer.next_page_token and form is Format.TABLE:
        output.note("there are more; --page-size shows up to 100")


@app.command()
def cancel(name: Name, state_dir: StateDir, form: Output = Format.TABLE) -> None:
    """End a statement that is not ready yet; one that is ready stays.

    \b
    Example:
      ordermesh statement cancel users/alice/statements/4f6c...
    """
    user_id, statement_id = _named(name)
    asked = pb.CancelStatementRequest(user_id=user_id, statement_id=statement_id)
    answer = ask(state_dir, lambda mesh: mesh.statements.CancelStatement(asked, timeout=TIMEOUT_S))
    output.emit(form, answer, _one(answer))


def _follow(
    state_dir: Path,
    begin: Callable[[Mesh], object],
    wait: timedelta,
    form: Format,
) -> None:
    async def work(mesh: Mesh) -> operations_pb2.Operation:
        operation = await begin(mesh)  # type: ignore[misc]
        with _bar(form) as tell:
            return await statements.followed(mesh, operation, wait_s=wait.total_seconds(), tell=tell)

    over = ask(state_dir, work)
    output.emit(form, over, _one(over))
    if over.HasField("error") or (wait and not over.done):
        raise typer.Exit(ExitCode.NO)


@contextmanager
def _bar(form: Format) -> Iterator[Callable[[Statement], None]]:
    """A bar on the terminal: months that were read."""
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TextColumn("months"))
    is_shown = form is Format.TABLE and sys.stderr.isatty()
    with Progress(*columns, console=Console(stderr=True), transient=True, disable=not is_shown) as progress:
        drawn = progress.add_task("waiting", total=None)

        def tell(statement: Statement) -> None:
            progress.update(
                drawn,
                description=f"{_state(statement)}: {statement.order_count:,} orders",
                total=statement.month_count or None,
                completed=statement.read_month_count,
            )

        yield tell


def _one(operation: operations_pb2.Operation) -> Table:
    """An operation with everything that is known of its statement."""
    said = statements.told(operation)
    totals = [
        (f"{each.status} {each.currency_code}", f"{each.order_count:,} orders, {_amount(each)}")
        for each in said.totals
    ]
    return output.facts(
        ("name", operation.name),
        ("state", _state(said)),
        ("why", operation.error.message),
        ("period", f"{said.wish.first_day} to {said.wish.last_day}, {said.wish.time_zone}"),
        ("as of", output.when(said.as_of_time)),
        ("orders", f"{said.order_count:,}"),
        *totals,
        ("PDF", said.pdf_note),
        ("bytes of the archive", f"{said.archive_bytes:,}" if said.archive_bytes else ""),
        ("file", f"{said.size_bytes:,} bytes, SHA-256 {said.sha256}" if said.size_bytes else ""),
        ("kept until", output.when(said.expire_time)),
        ("mail", _mail(said)),
    )


def _amount(total: pb.StatementTotal) -> str:
    """A total as people write it; it may be larger than any amount."""
    return str(Money(total.currency_code, int(total.amount_minor)))


def _state(statement: Statement) -> str:
    return Statement.State.Name(statement.state).lower()


def _mail(statement: Statement) -> str:
    return Statement.Mail.Name(statement.mail).removeprefix("MAIL_").lower().replace("unspecified", "")


def _named(name: str) -> tuple[str, str]:
    meant = statements.named(name)
    assert meant is not None, "the parser saw it"
    return meant
