"""The `ordermesh` command: the table of its commands, and the way from an error to an exit code.

A command's module is imported when that command runs, never before: `ordermesh --help` must be quick, and
gRPC alone takes a second to import. `ops.cli.edge` turns every expected error into one line; a traceback is
a defect of ours.
"""

from __future__ import annotations

from typing import Annotated

import typer

from ops.cli.root import Entry, Root

COMMANDS = (
    Entry("Local stack", "dev", "ops.cli.dev:dev", "Run everything on this machine until Ctrl-C."),
    Entry("Local stack", "demo", "ops.cli.demo:demo", "Show the whole platform in two minutes."),
    Entry("Local stack", "down", "ops.cli.dev:down", "Stop the stack; its data stays."),
    Entry(
        "Local stack",
        "stop",
        "ops.cli.dev:stop",
        "Stop one process and keep it down until `ordermesh start`.",
    ),
    Entry(
        "Local stack", "start", "ops.cli.dev:start", "Start a process again that `ordermesh stop` keeps down."
    ),
    Entry(
        "Local stack",
        "seed",
        "ops.cli.seed:seed",
        "Make back-dated orders, as if the mesh had run for months.",
    ),
    Entry("Local stack", "doctor", "ops.cli.doctor:doctor", "Say what is wrong here, and what to do."),
    Entry("Orders", "order", "ops.cli.order:app", "create, get, list, watch, label, journal."),
    Entry("Orders", "trace", "ops.cli.story:trace", "Show what happened to an order, all on one timeline."),
    Entry("Orders", "logs", "ops.cli.story:logs", "Show the log lines about an order, or of a trace."),
    Entry("Orders", "search", "ops.cli.history:search", "Search everybody's orders in the read model."),
    Entry("Orders", "where", "ops.cli.where:where", "Say where a user or an order lives, and why."),
    Entry("Orders", "statement", "ops.cli.statement:app", "request, wait, download, list, cancel."),
    Entry("Orders", "mail", "ops.cli.mail:app", "Mails of statements: list, show, dead, retry."),
    Entry("Orders", "token", "ops.cli.token:token", "Print a user's JWT, for curl."),
    Entry("Operations", "dlq", "ops.cli.dlq:app", "Dead letters: list, show, redrive, resolve."),
    Entry(
        "Operations",
        "explain-page",
        "ops.cli.explain_page:explain_page",
        "Say why a user's list looks as it does.",
    ),
    Entry(
        "Operations", "index", "ops.cli.index:app", "status, rebuild, verify, replay, reset, list, cancel."
    ),
    Entry(
        "Operations",
        "archive",
        "ops.cli.archive_upkeep:app",
        "plan, run, status, verify, restore, erase, amend, sweep, hold, rebuild-catalog, halt and more.",
    ),
    Entry("Operations", "recovery", "ops.cli.recovery:app", "status, hanging, probe, pause, resume."),
    Entry("Operations", "upstream", "ops.cli.upstream:app", "Simulated upstreams: break, heal, ledger."),
    Entry("Operations", "top", "ops.cli.top:top", "Show rates, lags, orders that hang, and why things wait."),
    Entry("Operations", "vip", "ops.cli.vip:app", "Dedicated buckets: promote, demote, list, show."),
    Entry("Operations", "load", "ops.cli.load:load", "Create orders under load and faults, then check them."),
    Entry("Operations", "audit", "ops.cli.audit:audit", "Check the invariants of every shard."),
)
"""In the order in which they are shown. A test holds each line against the command's own help."""

EPILOG = """\b
Every command takes --help (with an example) and --state-dir, most -o json.
Exit codes: 0 ok, 1 no, incomplete or a violation, 2 usage, 3 no stack is
reachable, 4 the mesh refused with a typed error, 5 a load proves nothing."""


class OrdermeshCommand(Root):
    """The root with our commands."""

    entries = COMMANDS


app = typer.Typer(
    name="ordermesh",
    cls=OrdermeshCommand,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    no_args_is_help=True,
    epilog=EPILOG,
)


def _print_version(wanted: bool) -> None:
    if wanted:
        from importlib.metadata import version

        typer.echo(f"ordermesh {version('ordermesh')}")
        raise typer.Exit


@app.callback()
def ordermesh(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """An order platform that never loses an order and never leaves one hanging."""


def main() -> None:
    """Run the command line; ends the process."""
    app(prog_name="ordermesh")
