"""The issuer's public keys: fetched in the background, never by a request, and kept when the issuer is away.

A fetch is bounded in time, bytes and keys and follows no redirect. An unknown key id asks for a fetch, at
most one per 30 s, and the request that asked waits for it briefly. Keys that could not be confirmed for a day
are dropped: then nobody is let in.
"""

from __future__ import annotations

import asyncio
import json
import secrets
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

import httpx
import jwt
import structlog

from chassis import logs, metrics
from chassis.errors import KeysUnavailable

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from chassis.clock import Clock

log = structlog.get_logger("jwks")
REFRESH_EVERY_S = 600.0
RETRY_FIRST_S = 0.25
RETRY_MAX_S = 60.0
UNKNOWN_KEY_EVERY_S = 30.0
"""Unknown key ids are free for everybody to send; this is what they may cost the issuer."""
UNKNOWN_KEY_WAIT_S = 1.0
KEPT_S = 86_400.0
FETCH_TIMEOUT_S = 5.0
BODY_BYTES_MAX = 65_536
KEYS_MAX = 20
KEY_ID_CHARS_MAX = 128
RSA_BITS_MIN = 2048
ALGORITHMS: Mapping[str, str] = {"ES256": "EC", "RS256": "RSA"}
"""Algorithm -> key type. Nothing symmetric, and no `none`."""


class BadKeySet(ValueError):
    """What the issuer published is no usable set of keys."""


@dataclass(frozen=True, slots=True)
class Key:
    """One public key and the only algorithm it may be used with."""

    algorithm: str
    public: Any


KeySet = dict[str, Key]


def parse(body: bytes) -> KeySet:
    """The usable keys of a published set by their id. A key id that appears twice names no key.

    Raises: BadKeySet when it is no JSON Web Key Set, is too long, or has no usable key.
    """
    try:
        listed = json.loads(body)["keys"]
    except (ValueError, KeyError, TypeError, RecursionError):
        raise BadKeySet("not a JSON Web Key Set") from None
    if not isinstance(listed, list) or len(listed) > KEYS_MAX:
        raise BadKeySet(f"not a list of at most {KEYS_MAX} keys")
    usable = [(entry["kid"], key) for entry in listed if (key := _usable(entry)) is not None]
    ids = [key_id for key_id, _ in usable]
    keys = {key_id: key for key_id, key in usable if ids.count(key_id) == 1}
    if not keys:
        raise BadKeySet("no usable key")
    return keys


def _usable(entry: Any) -> Key | None:
    """The key of an entry whose id, use, type and algorithm agree; None for what others may use."""
    if not isinstance(entry, dict) or entry.get("use", "sig") != "sig":
        return None
    key_id, algorithm = entry.get("kid"), entry.get("alg")
    if not isinstance(key_id, str) or not 0 < len(key_id) <= KEY_ID_CHARS_MAX:
        return None
    if not isinstance(algorithm, str) or ALGORITHMS.get(algorithm) != entry.get("kty"):
        return None
    public_part = {name: value for name, value in entry.items() if name in _PUBLIC_MEMBERS}
    try:
        public = jwt.PyJWK(public_part, algorithm).key
    except (jwt.PyJWTError, ValueError, TypeError):
        return None
    if algorithm == "RS256" and public.key_size < RSA_BITS_MIN:
        return None
    return Key(algorithm, public)


_PUBLIC_MEMBERS = frozenset({"kty", "crv", "x", "y", "n", "e", "alg", "use", "kid"})


class Keys(Protocol):
    """Where a token's key comes from."""

    async def get(self, key_id: str) -> Key | None:
        """The key of this id, or None; may be waited for briefly.

        Raises: KeysUnavailable when there are no keys at all.
        """
        ...

    def at_hand(self, key_id: str) -> Key | None:
        """The key of this id as far as known now, or None.

        Raises: KeysUnavailable when there are no keys at all.
        """
        ...


@dataclass(slots=True)
class JwksKeeper:
    """Holds the keys of one issuer and keeps them fresh. A loop of chassis.supervise."""

    url: str
    file: Path | None
    clock: Clock
    http: httpx.AsyncClient
    name: str = "jwks"
    _keys: KeySet = field(default_factory=dict, init=False)
    _good_until: float = field(default=0.0, init=False)
    _asked: asyncio.Event = field(default_factory=asyncio.Event, init=False)
    _fetched: asyncio.Event = field(default_factory=asyncio.Event, init=False)
    _next_ask_at: float = field(default=0.0, init=False)

    async def get(self, key_id: str) -> Key | None:
        """The key of this id; an unknown one may be asked for once, and is waited for up to a second.

        Raises: KeysUnavailable when there are no keys at all.
        """
        if self._known(key_id) is None and self._may_ask():
            await self._wait_for_fetch()
        self._must_have_keys()
        return self._known(key_id)

    def at_hand(self, key_id: str) -> Key | None:
        """The key of this id as far as known now; an unknown one is asked for, and there for the next call.

        Raises: KeysUnavailable when there are no keys at all.
        """
        if self._known(key_id) is None:
            self._may_ask()
        self._must_have_keys()
        return self._known(key_id)

    async def ready(self) -> None:
        """Raises: KeysUnavailable unless there are keys to check tokens with."""
        self._must_have_keys()

    async def run(self) -> None:
        """Fetch now, every ten minutes, and when an unknown key id was seen; sooner while fetches fail."""
        self.restore()
        retry_s = RETRY_FIRST_S
        while True:
            fine = await self.fetch()
            self._asked.clear()
            retry_s = RETRY_FIRST_S if fine else min(retry_s * 2, RETRY_MAX_S)
            await self._until_asked(REFRESH_EVERY_S if fine else retry_s)

    async def fetch(self) -> bool:
        """Fetch once; what fails or makes no sense leaves the keys as they are."""
        try:
            body = await self._download()
            self._keys = parse(body)
        except (httpx.HTTPError, BadKeySet, TimeoutError) as failed:
            metrics.KEY_FETCHES.labels("failed").inc()
            log.warning("keys_not_fetched", error=type(failed).__name__)
            return False
        finally:
            self._fetched.set()
        metrics.KEY_FETCHES.labels("fetched").inc()
        metrics.KEYS_AGE.set(self.clock.now().timestamp())
        self._good_until = self.clock.monotonic() + KEPT_S
        self._save(body)
        return True

    def restore(self) -> None:
        """Begin with the keys of the last run, when they are kept and not older than a day."""
        if self.file is None or not self.file.exists():
            return
        age_s = self.clock.now().timestamp() - self.file.stat().st_mtime
        try:
            self._keys = parse(self.file.read_bytes()[: BODY_BYTES_MAX + 1])
        except (BadKeySet, OSError) as bad:
            log.warning("kept_keys_unusable", **logs.of_our_file(bad, self.file))
            return
        self._good_until = self.clock.monotonic() + KEPT_S - max(0.0, age_s)

    def _must_have_keys(self) -> None:
        if not self._keys or self.clock.monotonic() > self._good_until:
            raise KeysUnavailable

    def _known(self, key_id: str) -> Key | None:
        return self._keys.get(key_id)

    def _may_ask(self) -> bool:
        """Whether a request may wait for a fetch: one is under way for it, or it may start one."""
        if self._asked.is_set():
            return True
        now = self.clock.monotonic()
        if now < self._next_ask_at:
            return False
        self._next_ask_at = now + UNKNOWN_KEY_EVERY_S
        self._fetched.clear()
        self._asked.set()
        return True

    async def _wait_for_fetch(self) -> None:
        try:
            async with asyncio.timeout(UNKNOWN_KEY_WAIT_S):
                await self._fetched.wait()
        except TimeoutError:
            return

    async def _until_asked(self, seconds: float) -> None:
        try:
            async with asyncio.timeout(seconds):
                await self._asked.wait()
        except TimeoutError:
            return

    async def _download(self) -> bytes:
        async with asyncio.timeout(FETCH_TIMEOUT_S), self.http.stream("GET", self.url) as response:
            if response.status_code != 200:
                raise BadKeySet(f"status {response.status_code}")
            body = bytearray()
            async for piece in response.aiter_raw(8192):
                body += piece
                if len(body) > BODY_BYTES_MAX:
                    raise BadKeySet(f"more than {BODY_BYTES_MAX} bytes")
            return bytes(body)

    def _save(self, body: bytes) -> None:
        if self.file is None:
            return
        partial = self.file.with_name(f".{self.file.name}.{secrets.token_hex(4)}.partial")
        try:
            self.file.parent.mkdir(parents=True, exist_ok=True)
            partial.write_bytes(body)
            partial.replace(self.file)
        except OSError as full:
            log.warning("keys_not_kept", **logs.of_our_file(full, self.file))


def http_client() -> httpx.AsyncClient:
    """A client for fetching keys: no redirects, no proxies from the environment, one connection."""
    return httpx.AsyncClient(
        follow_redirects=False,
        trust_env=False,
        timeout=FETCH_TIMEOUT_S,
        limits=httpx.Limits(max_connections=1, max_keepalive_connections=0),
        headers={"accept": "application/json", "accept-encoding": "identity"},
    )
