"""`ordermesh dev`, `down`, `stop` and `start`: the local stack as a person runs it."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from datetime import timedelta
from importlib.metadata import version
from pathlib import Path
from typing import Annotated

import typer

from ops import artifacts
from ops.cli.options import Format, Output, StateDir, duration
from ops.errors import OpsError
from ops.ports import DEFAULT_PORT_BASE
from ops.stack import layout, local, seed
from ops.stack.endpoints import Endpoints, StackDown

DETACHED_TIMEOUT_S = 120.0
HOT_WINDOW_MAX = timedelta(days=30)
DOWN_TIMEOUT_S = 15.0


@dataclass(frozen=True, slots=True)
class Wanted:
    """The stack that is asked for."""

    state_dir: Path
    port_base: int
    full: bool = False
    hot_window: timedelta | None = None

    @property
    def extra(self) -> dict[str, dict[str, str]]:
        """Settings of single processes."""
        if self.hot_window is None:
            return {}
        return {"history_svc": {"HOT_WINDOW_S": f"{self.hot_window.total_seconds():g}"}}

    @property
    def words(self) -> list[str]:
        """The options that ask for it again."""
        words = ["--state-dir", str(self.state_dir), "--port-base", str(self.port_base)]
        words += ["--full"] if self.full else []
        if self.hot_window is not None:
            words += ["--hot-window", f"{self.hot_window.total_seconds():g}s"]
        return words


def _hot_window(text: str | timedelta) -> timedelta:
    long = duration(text)
    if long > HOT_WINDOW_MAX:
        raise typer.BadParameter(f"{text} is longer than 30d")
    return long


def dev(
    state_dir: StateDir,
    port_base: Annotated[
        int, typer.Option(min=0, max=60000, help="gRPC plain N, mTLS N+43, REST N+1000; 0 takes free ports.")
    ] = DEFAULT_PORT_BASE,
    detach: Annotated[bool, typer.Option("--detach", help="Return when ready and leave it running.")] = False,
    full: Annotated[
        bool, typer.Option("--full", help="With real Kafka, Elasticsearch, Prometheus, and replicas.")
    ] = False,
    hot_window: Annotated[
        timedelta | None,
        typer.Option(
            parser=_hot_window,
            metavar="LONG",
            show_default="48h",
            help="How young orders are that lists take from the shards; 0s to 30d.",
        ),
    ] = None,
) -> None:
    """Run everything on this machine until Ctrl-C.

    \b
    Examples:
      ordermesh dev --port-base 0
      ordermesh dev --full --hot-window 10s
    """
    if full:
        artifacts.fetch_all()  # Before anything waits with a bound; Ctrl-C ends it.
    wanted = Wanted(state_dir, port_base, full, hot_window)
    if detach:
        _detach(wanted)
        return
    asyncio.run(_run(wanted))


def down(state_dir: StateDir, form: Output = Format.TABLE) -> None:
    """Stop the stack; its data stays.

    Example: ordermesh down
    """
    found = Endpoints.read_here(state_dir)
    if not local.runs_in(state_dir):
        raise StackDown(f"no stack runs in {state_dir}; the one that did was killed")
    os.kill(found.stack_pid, signal.SIGTERM)
    end = time.monotonic() + DOWN_TIMEOUT_S
    while _runs(found.stack_pid):
        if time.monotonic() > end:
            raise OpsError(f"the stack (pid {found.stack_pid}) did not stop within {DOWN_TIMEOUT_S:.0f} s")
        time.sleep(0.05)
    _say(form, f"stopped; the data stays in {state_dir}", state="stopped", stateDir=str(state_dir))


def stop(
    name: Annotated[str, typer.Argument(help="A process, such as `order_svc.s1` or `postgres.control`.")],
    state_dir: StateDir,
    form: Output = Format.TABLE,
) -> None:
    """Stop one process and keep it down until `ordermesh start`.

    Example: ordermesh stop postgres.control
    """
    _known(state_dir, name)
    (layout.Places(state_dir).hold / name).touch()
    _say(form, f"{name} is held down; `ordermesh start {name}` lets it go", process=name, held=True)


def start(
    name: Annotated[str, typer.Argument(help="A process that was stopped.")],
    state_dir: StateDir,
    form: Output = Format.TABLE,
) -> None:
    """Start a process again that `ordermesh stop` keeps down.

    Example: ordermesh start postgres.control
    """
    _known(state_dir, name)
    (layout.Places(state_dir).hold / name).unlink(missing_ok=True)
    _say(form, f"{name} comes up again within two seconds", process=name, held=False)


async def _run(wanted: Wanted) -> None:
    asked = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, asked.set)
    if signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:  # The terminal was closed, without nohup.
        loop.add_signal_handler(signal.SIGHUP, asked.set)
    stopping = asyncio.create_task(asked.wait(), name="stop-signal")
    serving = asyncio.create_task(_serve(wanted), name="stack")
    await asyncio.wait([stopping, serving], return_when=asyncio.FIRST_COMPLETED)
    stopping.cancel()
    if serving.done():
        serving.result()
        return
    serving.cancel()
    await asyncio.gather(serving, return_exceptions=True)


async def _serve(wanted: Wanted) -> None:
    async with local.running(
        wanted.state_dir, port_base=wanted.port_base, full=wanted.full, extra=wanted.extra
    ) as stack:
        await seed.first_orders(stack.endpoints)
        sys.stdout.write(banner(stack.endpoints, wanted.state_dir))
        sys.stdout.flush()
        await asyncio.Event().wait()


def banner(endpoints: Endpoints, state_dir: Path) -> str:
    """What is printed when the stack is ready: at most twelve lines."""
    parts = ", ".join(f"{part} {took:.1f} s" for part, took in endpoints.took_s.items() if part != "ready")
    servers = {
        "S3": endpoints.s3.url if endpoints.s3 else None,
        "Kafka": endpoints.kafka,
        "Elasticsearch": endpoints.elasticsearch,
        "Prometheus": endpoints.prometheus,
    }
    there = ", ".join(f"{name} {address}" for name, address in servers.items() if address)
    users = ", ".join(f"{user} (VIP)" if user == layout.VIP_USER else user for user in layout.USERS)
    lines = (
        f"ordermesh {version('ordermesh')} is ready; everything is kept in {state_dir}",
        f"  took     {endpoints.took_s['ready']:.1f} s: {parts}",
        f"  REST     {endpoints.gateway}/docs",
        f"  gRPC     {endpoints.grpc.plain} plain text, {endpoints.grpc.mtls} mTLS (shard_proxy)",
        f"  servers  {there}",
        f"  users    {users}; a token for curl: ordermesh token --user alice",
        "  try      ordermesh order create --user alice --kind payment --amount 12.50EUR --wait 5s",
        "  look     ordermesh order journal ID | dlq list | recovery status | audit",
        f"  logs     {state_dir}/logs/*.log; by order: ordermesh trace ID, ordermesh logs ID",
        "  stop     Ctrl-C, or ordermesh down",
    )
    return "\n".join(lines) + "\n"


def _detach(wanted: Wanted) -> None:
    """Run `dev` as a process of its own and wait until it is ready."""
    state_dir = wanted.state_dir
    state_dir.mkdir(parents=True, exist_ok=True)
    log_path = layout.Places(state_dir).log("dev")
    log_path.parent.mkdir(parents=True, exist_ok=True)
    with log_path.open("wb") as log:
        child = subprocess.Popen(
            [sys.executable, "-m", "ops", "dev", *wanted.words],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
    end = time.monotonic() + DETACHED_TIMEOUT_S
    while True:
        if child.poll() is not None:
            raise OpsError(
                log_path.read_text(encoding="utf-8", errors="replace").strip().removeprefix("error: ")
            )
        found = Endpoints.peek(state_dir)
        if found is not None and found.stack_pid == child.pid and found.state == "ready":
            break
        if time.monotonic() > end:
            child.terminate()
            raise OpsError(f"the stack is not ready after {DETACHED_TIMEOUT_S:.0f} s; see {log_path}")
        time.sleep(0.1)
    typer.echo(banner(found, state_dir).replace("Ctrl-C, or ordermesh down", "ordermesh down"), nl=False)


def _say(form: Format, sentence: str, **facts: object) -> None:
    """One sentence for a person, or its facts for a program."""
    typer.echo(sentence if form is Format.TABLE else json.dumps(facts, indent=2))


def _known(state_dir: Path, name: str) -> None:
    service, _, shard = name.partition(".")
    found = Endpoints.read_here(state_dir)
    if not any(
        each.name == name or (each.name == service and each.shard == shard) for each in found.services
    ):
        raise OpsError(f"the stack has no process {name!r}; there are: {', '.join(sorted(_names(found)))}")


def _names(found: Endpoints) -> list[str]:
    return [f"{each.name}.{each.shard}" if each.shard else each.name for each in found.services]


def _runs(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    # A child that was not waited for is gone all the same.
    status = Path(f"/proc/{pid}/stat")
    return not (status.exists() and status.read_text().rsplit(")", 1)[-1].split()[0] == "Z")
