"""The options that commands share, so that each is spelled, explained and read in one way."""

from __future__ import annotations

import getpass
import os
import re
from datetime import timedelta
from enum import StrEnum
from pathlib import Path
from typing import Annotated
from uuid import UUID, uuid4

import typer

from ops import places

FORMAT_KEY = "ordermesh.format"
REQUEST_ID_KEY = "ordermesh.request_id"
"""Where the parsed options leave what the edge needs when the command fails."""
ACTOR_CHARS_MAX = 32
_NO_ACTOR = re.compile(r"[^A-Za-z0-9_.-]")
_MONTH = re.compile(r"\d{4}-(0[1-9]|1[0-2])", re.ASCII)
_DURATION = re.compile(r"(\d+(?:\.\d+)?)(ms|s|m|h|d)?")
_UNIT_S = {"ms": 0.001, "s": 1, "m": 60, "h": 3600, "d": 86_400}


class Format(StrEnum):
    """How results are printed."""

    TABLE = "table"
    JSON = "json"


def _remember_format(ctx: typer.Context, value: Format) -> Format:
    ctx.meta[FORMAT_KEY] = value
    return value


def _remember_request_id(ctx: typer.Context, value: UUID) -> UUID:
    ctx.meta[REQUEST_ID_KEY] = value
    return value


def duration(text: str | timedelta) -> timedelta:
    """Read `500ms`, `5s`, `2m`, `1h`, `1d`, or a bare number of seconds.

    Raises: BadParameter.
    """
    if isinstance(text, timedelta):
        return text
    found = _DURATION.fullmatch(text.strip())
    if found is None:
        raise typer.BadParameter(f"{text!r} is no duration; write it as 500ms, 5s, 2m, 1h or 1d")
    try:
        return timedelta(seconds=float(found[1]) * _UNIT_S[found[2] or "s"])
    except OverflowError:
        raise typer.BadParameter(f"{text!r} is longer than anything lasts") from None


def month(text: str) -> str:
    """Read a month.

    Raises: BadParameter.
    """
    if not _MONTH.fullmatch(text):
        raise typer.BadParameter(f"{text!r} is no month; write it as 2026-09")
    return text


def os_user() -> str:
    """Who runs this command, as far as the machine knows, in the letters an actor may have."""
    try:
        name = getpass.getuser()
    except (KeyError, OSError):
        name = f"uid-{os.getuid()}"
    return _NO_ACTOR.sub("_", name)[:ACTOR_CHARS_MAX]


def actor(text: str) -> str:
    """Read the name of a person.

    Raises: BadParameter.
    """
    if not 0 < len(text) <= ACTOR_CHARS_MAX or _NO_ACTOR.search(text):
        raise typer.BadParameter(
            f"{text!r} is no name: 1 to {ACTOR_CHARS_MAX} letters, digits, dots, hyphens or underscores"
        )
    return text


StateDir = Annotated[
    Path,
    typer.Option(
        "--state-dir",
        envvar="ORDERMESH_STATE_DIR",
        default_factory=places.default_state_dir,
        show_default="/var/tmp/ordermesh/<uid>/default",  # noqa: S108 - shown, not used
        help="Where the stack keeps everything.",
    ),
]
Output = Annotated[
    Format,
    typer.Option("--output", "-o", callback=_remember_format, help="A table for people, JSON for programs."),
]
RequestId = Annotated[
    UUID,
    typer.Option(
        "--request-id",
        default_factory=uuid4,
        callback=_remember_request_id,
        show_default="a new one",
        help="Repeat with the same id to repeat nothing.",
    ),
]
Actor = Annotated[
    str,
    typer.Option(
        "--actor",
        envvar="ORDERMESH_ACTOR",
        default_factory=os_user,
        parser=actor,
        metavar="NAME",
        show_default="the user of this machine",
        help="Who you are; kept with the change.",
    ),
]
Why = Annotated[str, typer.Option("--reason", help="Why; kept with the change.")]
OneShard = Annotated[str, typer.Option("--shard", help="Only this shard.")]
OrderId = Annotated[str, typer.Argument(metavar="ORDER", help="An order id.", show_default=False)]
