"""Page tokens: opaque to callers, bound to the query they came from, signed with one of two live keys.

A token carries no authority; the signature only keeps people from making up positions and from mixing
queries.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac

from chassis.errors import PageTokenInvalid

_MAC_BYTES = 16
TOKEN_CHARS_MAX = 512


class PageTokens:
    """Seals and opens positions in a list.

    keys: newest first, one or two of at least 16 bytes; the first one signs, both are accepted.
    """

    def __init__(self, *keys: bytes) -> None:
        if not keys or any(len(key) < 16 for key in keys):
            raise ValueError("page tokens need one or two keys of at least 16 bytes")
        self._keys = keys[:2]

    def seal(self, position: bytes, query: str) -> str:
        """Make the token of a position in the results of a query."""
        return base64.urlsafe_b64encode(_mac(self._keys[0], position, query) + position).rstrip(b"=").decode()

    def open(self, token: str, query: str) -> bytes:
        """The position a token stands for.

        Raises: PageTokenInvalid when it is not ours, damaged, or of another query.
        """
        if len(token) > TOKEN_CHARS_MAX:
            raise PageTokenInvalid
        try:
            raw = base64.b64decode(token + "=" * (-len(token) % 4), altchars=b"-_", validate=True)
        except (binascii.Error, ValueError):
            raise PageTokenInvalid from None
        mac, position = raw[:_MAC_BYTES], raw[_MAC_BYTES:]
        if not any(hmac.compare_digest(mac, _mac(key, position, query)) for key in self._keys):
            raise PageTokenInvalid
        return position


def _mac(key: bytes, position: bytes, query: str) -> bytes:
    return hmac.new(key, query.encode() + b"\0" + position, hashlib.sha256).digest()[:_MAC_BYTES]
