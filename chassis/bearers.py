"""Who is asking: a bearer token becomes a principal, or is refused with a coarse cause.

One safe path: algorithm allow-list by key, required claims, exact issuer and audience, a bounded life. Header
fields that bring keys along (`jku`, `jwk`, `x5u`, `x5c`) are never looked at; `crit` is refused. A checked
token is remembered until it expires or the keys change.
"""

from __future__ import annotations

from collections import OrderedDict
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import jwt

from chassis import metrics
from chassis.auth import TRUST_DOMAIN, Role, Subject
from chassis.errors import TokenRefused
from chassis.ids import USER_ID_PATTERN

if TYPE_CHECKING:
    from collections.abc import Iterator

    from chassis.clock import Clock
    from chassis.jwks import Key, Keys

TOKEN_CHARS_MAX = 4096
LIFE_S_MAX = 86_400
LEEWAY_S = 10
TYPES = frozenset({"jwt", "at+jwt", "application/at+jwt"})
REQUIRED_CLAIMS = ("exp", "iat", "sub", "aud", "iss")
_ROLES = {"operator": Role.OPERATOR}
"""Roles a token may give beyond `user`; those of machines (`service`, `recovery`) come from certificates
only.
"""
_CACHE_MAX = 4096


@dataclass(frozen=True, slots=True)
class Principal:
    """Somebody whose token was checked."""

    subject: Subject
    refused_from: float
    """Unix seconds; nothing is done for them after it: the token's end, and some leeway for clocks."""

    @property
    def user_id(self) -> str:
        """The user they are."""
        return self.subject.name

    @property
    def is_operator(self) -> bool:
        """Whether they may look at everybody's orders."""
        return Role.OPERATOR in self.subject.roles


class Bearers:
    """Checks bearer tokens of one issuer. service: who lets their users in, and so speaks for them first."""

    def __init__(self, keys: Keys, *, issuer: str, audience: str, service: str, clock: Clock) -> None:
        self._keys = keys
        self._act = TRUST_DOMAIN + service
        self._issuer = issuer
        self._audience = audience
        self._clock = clock
        self._checked: OrderedDict[str, tuple[Key, Principal]] = OrderedDict()

    async def principal(self, authorization: str | None) -> Principal:
        """Who sends this Authorization header; an unknown key is waited for briefly.

        Raises: TokenRefused; KeysUnavailable when there is nothing to check with.
        """
        with _counted():
            token = _token_in(authorization)
            return self._checked_with(await self._keys.get(_key_id(token)), token)

    def principal_at_once(self, authorization: str | None) -> Principal:
        """The same where nothing can be waited for.

        Raises: TokenRefused; KeysUnavailable when there is nothing to check with.
        """
        with _counted():
            token = _token_in(authorization)
            return self._checked_with(self._keys.at_hand(_key_id(token)), token)

    def known(self, authorization: str | None) -> Principal | None:
        """Who sends this header, when its token was checked before and is still good; checks nothing."""
        known = self._checked.get((authorization or "").partition(" ")[2])
        if known is None or known[1].refused_from <= self._clock.now().timestamp():
            return None
        return known[1]

    def _checked_with(self, key: Key | None, token: str) -> Principal:
        if key is None:
            raise TokenRefused("UNKNOWN_KEY")
        known = self._checked.get(token)
        if known is not None and known[0] is key and known[1].refused_from > self._clock.now().timestamp():
            return known[1]
        principal = self._read(token, key)
        self._checked[token] = (key, principal)
        if len(self._checked) > _CACHE_MAX:
            self._checked.popitem(last=False)
        return principal

    def _read(self, token: str, key: Key) -> Principal:
        try:
            claims = jwt.decode(
                token,
                key.public,
                algorithms=[key.algorithm],
                audience=self._audience,
                issuer=self._issuer,
                leeway=LEEWAY_S,
                options={"require": list(REQUIRED_CLAIMS)},
            )
            return _principal_of(claims, self._act)
        except jwt.ExpiredSignatureError:
            raise TokenRefused("EXPIRED") from None
        except jwt.InvalidSignatureError:
            raise TokenRefused("BAD_SIGNATURE") from None
        except (jwt.PyJWTError, ValueError, TypeError, OverflowError, RecursionError):
            raise TokenRefused("BAD_CLAIMS") from None


@contextmanager
def _counted() -> Iterator[None]:
    try:
        yield
    except TokenRefused as refused:
        metrics.TOKENS_REFUSED.labels(refused.cause).inc()
        raise


def _token_in(authorization: str | None) -> str:
    scheme, _, token = (authorization or "").partition(" ")
    if scheme.lower() != "bearer" or not token:
        raise TokenRefused("MISSING")
    if len(token) > TOKEN_CHARS_MAX:
        raise TokenRefused("TOO_LONG")
    return token


def _key_id(token: str) -> str:
    """The key id of a header that makes sense; nothing else in an unverified header is used."""
    try:
        header: dict[str, Any] = jwt.get_unverified_header(token)
    except (jwt.PyJWTError, ValueError, TypeError, RecursionError):
        raise TokenRefused("MALFORMED") from None
    kind, key_id = header.get("typ"), header.get("kid")
    if not isinstance(kind, str) or kind.lower() not in TYPES or "crit" in header:
        raise TokenRefused("BAD_HEADER")
    if not isinstance(key_id, str):
        raise TokenRefused("UNKNOWN_KEY")
    return key_id


def _principal_of(claims: dict[str, Any], act: str) -> Principal:
    """Raises: TokenRefused when the claims are well signed and still not acceptable."""
    expires_at, issued_at, user_id = int(claims["exp"]), int(claims["iat"]), claims["sub"]
    if not 0 < expires_at - issued_at <= LIFE_S_MAX:
        raise TokenRefused("LIVES_TOO_LONG")
    if not isinstance(user_id, str) or not USER_ID_PATTERN.fullmatch(user_id):
        raise TokenRefused("BAD_SUBJECT")
    named = claims.get("roles", [])
    if not isinstance(named, list):
        raise TokenRefused("BAD_CLAIMS")
    roles = frozenset(
        {Role.USER, *(_ROLES[name] for name in named if isinstance(name, str) and name in _ROLES)}
    )
    return Principal(Subject(user_id, roles, act), float(expires_at + LEEWAY_S))
