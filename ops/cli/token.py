"""`ordermesh token`: a JWT of the local issuer, alone on stdout, for `curl -H "Authorization: Bearer
$(...)"`.
"""

from __future__ import annotations

import json
from datetime import timedelta
from typing import Annotated

import typer

from chassis.ids import USER_ID_PATTERN
from ops.cli.options import Format, Output, StateDir, duration
from ops.errors import OpsError
from ops.issuer import TTL_S_MAX, mint_token

ROLES = ("operator",)


def token(
    user: Annotated[str, typer.Option("--user", help="Who the bearer is.")],
    state_dir: StateDir,
    role: Annotated[list[str] | None, typer.Option("--role", help="operator; may be repeated.")] = None,
    ttl: Annotated[
        timedelta,
        typer.Option(parser=duration, metavar="DURATION", show_default="1h", help="How long it is good for."),
    ] = timedelta(hours=1),
    form: Output = Format.TABLE,
) -> None:
    """Print a user's JWT, for curl.

    \b
    Example:
      curl -H "Authorization: Bearer $(ordermesh token --user alice)" \\
        http://127.0.0.1:8400/v1/orders
    """
    if not USER_ID_PATTERN.fullmatch(user):
        raise typer.BadParameter(f"{user!r} does not match {USER_ID_PATTERN.pattern}", param_hint="--user")
    for each in role or ():
        if each not in ROLES:
            raise typer.BadParameter(f"{each!r} is not one of {', '.join(ROLES)}", param_hint="--role")
    if not timedelta(seconds=1) <= ttl <= timedelta(seconds=TTL_S_MAX):
        raise typer.BadParameter("a token lives 1 s to 24 h", param_hint="--ttl")
    issuer_dir = state_dir / "issuer"
    if not issuer_dir.is_dir():
        raise OpsError(f"no stack was ever started in {state_dir}; start one with `ordermesh dev`")
    minted = mint_token(issuer_dir, user, role or (), int(ttl.total_seconds()))
    if form is Format.TABLE:
        typer.echo(minted)
    else:
        facts = {"token": minted, "user": user, "roles": role or [], "ttlS": int(ttl.total_seconds())}
        typer.echo(json.dumps(facts, indent=2))
