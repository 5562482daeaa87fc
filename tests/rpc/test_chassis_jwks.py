"""The issuer's keys: fetched in the background, kept while the issuer is away or mad, renewed with it."""

import asyncio
import json
import shutil
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from starlette.requests import Request
from starlette.responses import RedirectResponse, Response, StreamingResponse

from chassis import jwks
from chassis.errors import KeysUnavailable
from chassis.jwks import JwksKeeper
from chassis.testing import FakeClock, eventually
from gateway import listener
from gateway.settings import GatewaySettings
from ops import ca, issuer
from tests import gateways

WITHIN_S = 10.0
Answer = Callable[[Request], Response]


class Issuer:
    """An issuer that answers as told and counts how often it was asked."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.key = ca.ensure_issuer(directory)
        self.answer: Answer = self.keys
        self.asked = 0
        self.held = asyncio.Event()
        self.port = 0

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/jwks.json"

    def keys(self, _: Request) -> Response:
        return Response(self.key.jwks.read_bytes(), media_type="application/jwk-set+json")

    def rotate(self) -> None:
        shutil.rmtree(self.directory)
        self.key = ca.ensure_issuer(self.directory)

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        self.asked += 1
        await self.answer(Request(scope, receive))(scope, receive, send)


@pytest.fixture
async def published(tmp_path) -> AsyncIterator[Issuer]:
    published = Issuer(tmp_path / "issuer")
    settings = GatewaySettings(
        listen="127.0.0.1:0",
        mesh_target="127.0.0.1:1",
        tls_dir=tmp_path,
        subject_dir=tmp_path,
        jwks_url="https://unused.invalid",
        profile="local",
        drain_s=1,
    )
    async with listener.serve(published, settings) as served:
        published.port = served.port
        yield published


@asynccontextmanager
async def keeper(published: Issuer, file: Path | None = None, **changes: Any) -> AsyncIterator[JwksKeeper]:
    async with jwks.http_client() as http:
        facts = {"url": published.url, "file": file, "clock": FakeClock(), "http": http, **changes}
        yield JwksKeeper(**facts)


async def test_fetched_keys_are_found_by_id_and_others_are_not(published):
    async with keeper(published) as keys:
        assert await keys.fetch()
        found = await keys.get(published.key.kid)
        assert found is not None
        assert found.algorithm == "ES256"
        assert await keys.get("../../etc/passwd") is None


def fifty_megabytes(_: Request) -> Response:
    async def pieces() -> AsyncIterator[bytes]:
        for _ in range(800):
            yield b"x" * 65_536

    return StreamingResponse(pieces())


MAD: dict[str, Answer] = {
    "an error": lambda _: Response(status_code=500),
    "nothing": lambda _: Response(b""),
    "HTML": lambda _: Response("<html>Sign in</html>", media_type="text/html"),
    "no keys": lambda _: Response('{"keys": []}'),
    "50 MB": fifty_megabytes,
    "a way elsewhere": lambda _: RedirectResponse("http://127.0.0.1:1/other"),
    "another success": lambda _: Response(status_code=204),
}


@pytest.mark.parametrize("name", MAD)
async def test_an_issuer_that_answers_nonsense_changes_nothing(published, name):
    async with keeper(published) as keys:
        await keys.fetch()
        published.answer = MAD[name]
        async with asyncio.timeout(WITHIN_S):
            assert await keys.fetch() is False
        assert await keys.get(published.key.kid) is not None


async def test_an_issuer_that_never_answers_is_given_up_on(published, monkeypatch):
    monkeypatch.setattr(jwks, "FETCH_TIMEOUT_S", 0.2)

    class Silent(Response):
        async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
            await published.held.wait()

    published.answer = lambda _: Silent()
    async with keeper(published) as keys:
        async with asyncio.timeout(WITHIN_S):
            assert await keys.fetch() is False
        published.held.set()


async def test_without_any_keys_nobody_is_refused_for_it(published, tmp_path):
    async with keeper(published, url="http://127.0.0.1:1/none") as keys:
        assert await keys.fetch() is False
        with pytest.raises(KeysUnavailable):
            await keys.ready()


async def test_keys_that_nobody_confirmed_for_a_day_are_dropped(published):
    clock = FakeClock()
    async with keeper(published, clock=clock) as keys:
        await keys.fetch()
        clock.move(jwks.KEPT_S - 1)
        assert await keys.get(published.key.kid)
        clock.move(2)
        with pytest.raises(KeysUnavailable):
            await keys.get(published.key.kid)
        await keys.fetch()
        assert await keys.get(published.key.kid)


async def test_kept_keys_serve_the_next_start_while_the_issuer_is_away(published, tmp_path):
    file = tmp_path / "kept" / "jwks.json"
    async with keeper(published, file) as keys:
        await keys.fetch()
    now = FakeClock(start=datetime.now(UTC))
    async with keeper(published, file, url="http://127.0.0.1:1/none", clock=now) as again:
        again.restore()
        assert await again.get(published.key.kid)
        now.move(jwks.KEPT_S + 60)
        with pytest.raises(KeysUnavailable):
            await again.get(published.key.kid)
    file.write_bytes(b"half a fi")
    async with keeper(published, file, clock=now) as broken:
        broken.restore()
        with pytest.raises(KeysUnavailable):
            await broken.ready()


async def test_a_new_key_is_fetched_at_its_first_use_and_floods_of_ids_cost_one_fetch(published):
    clock = FakeClock()
    async with keeper(published, clock=clock) as keys:
        running = asyncio.create_task(keys.run())
        try:
            await keys.fetch()
            asked = published.asked
            published.rotate()
            found = await asyncio.gather(*(keys.get(published.key.kid) for _ in range(20)))
            assert all(found), "those who asked while it was fetched got it too"
            for number in range(500):
                assert await keys.get(f"made-up-{number}") is None
            assert published.asked <= asked + 2
            clock.move(jwks.UNKNOWN_KEY_EVERY_S + 1)
            assert await keys.get("another") is None
            assert published.asked <= asked + 3
        finally:
            running.cancel()


async def test_who_cannot_wait_for_a_new_key_finds_it_at_the_next_call(published):
    clock = FakeClock()
    async with keeper(published, clock=clock) as keys:
        with pytest.raises(KeysUnavailable):
            keys.at_hand(published.key.kid)
        running = asyncio.create_task(keys.run())
        try:
            await eventually(lambda: at_hand(keys, published))
            published.rotate()
            clock.move(jwks.UNKNOWN_KEY_EVERY_S + 1)
            assert keys.at_hand(published.key.kid) is None
            await eventually(lambda: at_hand(keys, published))
        finally:
            running.cancel()


async def at_hand(keys: JwksKeeper, published: Issuer) -> bool:
    try:
        return keys.at_hand(published.key.kid) is not None
    except KeysUnavailable:
        return False


async def test_a_gateway_without_keys_is_unavailable_and_says_when_to_come_back(tmp_path):
    async with gateways.opened(
        tmp_path, loop=False, jwks_url="http://127.0.0.1:1/none", profile="local"
    ) as rest:
        answer = await rest.get("/v1/orders")
        assert (answer.status_code, answer.json()["status"]) == (503, 503)
        assert answer.headers["retry-after"] == "1"
        assert "keys" in (await rest.gateway.readiness.report())
        assert (await rest.http.get("/healthz")).status_code == 200


async def test_what_is_published_holds_no_secret(published, tmp_path):
    said = json.loads(published.key.jwks.read_bytes())
    assert set(said["keys"][0]) == {"kty", "crv", "x", "y", "kid", "alg", "use"}
    token = issuer.mint_token(published.directory, "alice", ("operator", "operator"), 10**9)
    assert token.count(".") == 2
