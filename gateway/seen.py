"""What a caller has seen: consistency tokens in a header, or in a cookie for those who keep no headers.

Every write answers with what the caller knew before and the write itself; a list that is asked for with it
shows that write. A token makes reads fresher and nothing else: it identifies nobody and allows nothing. So a
cookie of nonsense is as good as none, while a header of nonsense is refused, since somebody believes in it.
Pure.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from chassis import consistency
from chassis.errors import InvalidField

if TYPE_CHECKING:
    from collections.abc import Mapping

HEADER = "Ordermesh-Consistency-Token"
COOKIE = "ordermesh_consistency"
COOKIE_PATH = "/v1"


def of_header(token: str | None) -> consistency.Seen:
    """What a caller says that it has seen.

    Raises: InvalidField.
    """
    seen = consistency.opened(token or "")
    if seen is None:
        raise InvalidField.of(HEADER, "must be one that a write was answered with")
    return seen


def before_a_read(token: str | None, cookies: Mapping[str, str]) -> str:
    """The token a list has to be as fresh as: the header's, else the cookie's; empty when there is none.

    Raises: InvalidField.
    """
    seen = of_header(token) or _of_cookie(cookies)
    return consistency.sealed(seen) if seen else ""


def before_a_write(token: str | None, cookies: Mapping[str, str]) -> consistency.Seen:
    """Everything that a caller has seen; looked at before the write, so that a wrong header writes nothing.

    Raises: InvalidField.
    """
    return consistency.merged(of_header(token), _of_cookie(cookies))


def after_a_write(token: str, before: consistency.Seen, *, cookie_s: int, secure: bool) -> dict[str, str]:
    """The headers that tell a caller what it has seen by now. token: of the write."""
    merged = consistency.sealed(consistency.merged(consistency.opened(token) or {}, before))
    if not merged:
        return {}
    cookie = f"{COOKIE}={merged}; Max-Age={cookie_s}; Path={COOKIE_PATH}; HttpOnly; SameSite=Strict"
    return {HEADER.lower(): merged, "set-cookie": f"{cookie}; Secure" if secure else cookie}


def _of_cookie(cookies: Mapping[str, str]) -> consistency.Seen:
    return consistency.opened(cookies.get(COOKIE, "")) or {}
