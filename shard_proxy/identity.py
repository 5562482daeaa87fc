"""Who is asking on the plain listener: a person at this machine, or the user whose bearer token they brought.

Only for loopback, and only when the listener was asked for. The mTLS listener uses chassis.auth.Entrance.
Keys of the issuer are fetched in the background; while there are none, calls with a token are refused.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import httpx
import jwt
import structlog

from chassis.auth import ROLES_OF_PEERS, TRUST_DOMAIN, Asking, Role, Subject
from chassis.errors import Unauthenticated
from chassis.ids import USER_ID_PATTERN

if TYPE_CHECKING:
    from collections.abc import Mapping

    from chassis.auth import SubjectMinter
    from chassis.clock import Clock

log = structlog.get_logger("identity")
DEV = "dev"
FETCH_EVERY_S = 300.0
RETRY_EVERY_S = 2.0
FETCH_TIMEOUT_S = 3.0
KEYS_BYTES_MAX = 65_536
TOKEN_CHARS_MAX = 4096
LEEWAY_S = 10
_CACHE_MAX = 256
_ALGORITHMS = ["ES256", "RS256"]
_REQUIRED = ["exp", "iat", "sub", "aud", "iss"]
_ROLES = {"operator": Role.OPERATOR}
"""Roles that a token may give beyond `user`; those of machines come from certificates only."""


@dataclass(slots=True)
class BearerTokens:
    """Checks users' tokens with the issuer's keys; as a loop it keeps the keys fresh.

    url: empty accepts no token.
    """

    url: str
    issuer: str
    audience: str
    clock: Clock
    name: str = "issuer-keys"
    _keys: Mapping[str, jwt.PyJWK] = field(default_factory=dict, init=False)
    _checked: dict[str, tuple[float, Subject]] = field(default_factory=dict, init=False)

    def subject(self, token: str) -> Subject:
        """Whom a token stands for.

        Raises: Unauthenticated.
        """
        known = self._checked.get(token)
        if known is not None and known[0] > self.clock.now().timestamp():
            return known[1]
        if len(token) > TOKEN_CHARS_MAX:
            raise Unauthenticated
        expires_at, subject = self._read(token)
        if len(self._checked) >= _CACHE_MAX:
            self._checked.clear()
        self._checked[token] = (expires_at, subject)
        return subject

    async def run(self) -> None:
        """Fetch the keys now and every few minutes, sooner while that fails; until cancelled."""
        while True:
            fetched = not self.url or await self.fetch()
            await self.clock.sleep(FETCH_EVERY_S if fetched else RETRY_EVERY_S)

    async def fetch(self) -> bool:
        """Fetch the keys once; what fails or makes no sense leaves them as they are."""
        try:
            async with httpx.AsyncClient(timeout=FETCH_TIMEOUT_S, trust_env=False) as http:
                response = await http.get(self.url)
            response.raise_for_status()
            if len(response.content) > KEYS_BYTES_MAX:
                raise ValueError("too many keys")
            published = jwt.PyJWKSet.from_dict(response.json())
        except (httpx.HTTPError, jwt.PyJWTError, ValueError, TypeError, AttributeError) as failed:
            log.warning("keys_not_fetched", error=type(failed).__name__)
            return False
        usable = (key for key in published.keys if key.key_id and key.algorithm_name in _ALGORITHMS)
        self._keys = {key.key_id: key for key in usable if key.key_id}
        self._checked.clear()
        return True

    def _read(self, token: str) -> tuple[float, Subject]:
        try:
            key = self._keys[jwt.get_unverified_header(token)["kid"]]
            claims: dict[str, Any] = jwt.decode(
                token,
                key.key,
                algorithms=[key.algorithm_name],
                audience=self.audience,
                issuer=self.issuer,
                leeway=LEEWAY_S,
                options={"require": _REQUIRED},
            )
            named = claims.get("roles", [])
            roles = {Role.USER, *(_ROLES[role] for role in named if role in _ROLES)}
        except (jwt.PyJWTError, KeyError, TypeError, ValueError):
            raise Unauthenticated from None
        if not USER_ID_PATTERN.fullmatch(claims["sub"]):
            raise Unauthenticated
        return float(claims["exp"]), Subject(claims["sub"], frozenset(roles), TRUST_DOMAIN + DEV)


@dataclass(frozen=True, slots=True)
class PlainEntrance:
    """The listener without certificates: the caller is `dev`, on its own behalf or on that of a token's
    user.
    """

    minter: SubjectMinter
    bearers: BearerTokens

    def __call__(self, auth_context: Mapping[str, Any], metadata: Mapping[str, str]) -> Asking:
        """Identify by bearer token where there is one. Raises: Unauthenticated."""
        said = metadata.get("authorization")
        if said is None:
            subject = Subject(DEV, ROLES_OF_PEERS[DEV], TRUST_DOMAIN + DEV)
        else:
            subject = self.bearers.subject(_token_in(said))
        return Asking(DEV, subject, self.minter.mint(subject))


def _token_in(authorization: str) -> str:
    scheme, _, token = authorization.partition(" ")
    if scheme.lower() != "bearer" or not token:
        raise Unauthenticated
    return token
