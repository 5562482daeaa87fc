"""The issuer of the local stack: publishes the key that proves users' tokens, and mints such tokens for
people with curl.

`python -m ops.issuer` serves `<issuer dir>/jwks.json` on a loopback port. It owns no key: ops.ca makes them,
and whoever may read `signing.key` may mint. In production this is somebody else's product; the gateway only
knows its URL.
"""

from __future__ import annotations

import json
import time
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Self

import jwt
import uvicorn
import uvloop
from pydantic import Field, model_validator
from starlette.applications import Starlette
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route

from chassis import logs, settings, supervise
from chassis.settings import Address, Settings, is_loopback, split_address
from ops.errors import OpsError

if TYPE_CHECKING:
    from collections.abc import Iterable

    from starlette.requests import Request

ISSUER = "https://issuer.ordermesh.local"
AUDIENCE = "ordermesh"
TTL_S_DEFAULT = 3600
TTL_S_MAX = 86_400
JWKS_PATH = "/.well-known/jwks.json"


class IssuerSettings(Settings):
    """One issuer process."""

    listen: Address = Field(description="Loopback address to publish the keys at.")
    issuer_dir: Path = Field(description="Directory with signing.key and jwks.json.")

    @model_validator(mode="after")
    def _only_here(self) -> Self:
        if not is_loopback(self.listen):
            raise ValueError("listen: the local issuer serves loopback only")
        return self


def mint_token(
    issuer_dir: Path,
    user: str,
    roles: Iterable[str] = (),
    ttl_s: int = TTL_S_DEFAULT,
    *,
    now: float | None = None,
) -> str:
    """A JWT that the local gateway accepts.

    user: becomes `sub`. roles: beyond that of a user; the gateway knows `operator`. ttl_s: 1 s to 24 h.
    Raises: OpsError when the key cannot be read.
    """
    issued_at = int(time.time() if now is None else now)
    claims = {
        "iss": ISSUER,
        "aud": AUDIENCE,
        "sub": user,
        "iat": issued_at,
        "exp": issued_at + min(max(ttl_s, 1), TTL_S_MAX),
        "roles": sorted(set(roles)),
    }
    try:
        key_id = json.loads((issuer_dir / "jwks.json").read_bytes())["keys"][0]["kid"]
        key = (issuer_dir / "signing.key").read_bytes()
    except OSError as missing:
        raise OpsError(f"Cannot read the issuer's key in {issuer_dir}: {missing.strerror}.") from missing
    return jwt.encode(claims, key, algorithm="ES256", headers={"kid": key_id, "typ": "at+jwt"})


def application(issuer_dir: Path) -> Starlette:
    """What the issuer serves; the file is read for each request, so that a new key shows at once."""

    async def keys(_: Request) -> Response:
        body = (issuer_dir / "jwks.json").read_bytes()
        return Response(body, media_type="application/jwk-set+json", headers={"cache-control": "max-age=300"})

    async def alive(_: Request) -> Response:
        return PlainTextResponse("alive\n")

    return Starlette(routes=[Route(JWKS_PATH, keys), Route("/healthz", alive)])


class _Served:
    """The server as a loop of chassis.supervise."""

    name = "issuer"

    def __init__(self, wanted: IssuerSettings) -> None:
        host, port = split_address(wanted.listen)
        config = uvicorn.Config(
            application(wanted.issuer_dir),
            host=host,
            port=port,
            lifespan="off",
            log_config=None,
            access_log=False,
            server_header=False,
            timeout_graceful_shutdown=2,
        )
        self._server = uvicorn.Server(config)
        # Signals belong to chassis.supervise.
        self._server.capture_signals = nullcontext  # type: ignore[method-assign, assignment]

    async def run(self) -> None:
        """Serve until asked to stop."""
        await self._server.serve()

    async def stop(self) -> None:
        """Take no more connections."""
        self._server.should_exit = True


async def serve(wanted: IssuerSettings) -> None:
    """Run the issuer until SIGTERM."""
    logs.configure("issuer")
    served = _Served(wanted)
    await supervise.until_stopped(served, drain=(served.stop,))


if __name__ == "__main__":
    uvloop.run(serve(settings.load(IssuerSettings)))
