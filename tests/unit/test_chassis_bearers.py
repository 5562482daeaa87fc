"""Whom we believe: every way a token can lie, and every way a set of keys can be wrong."""

import base64
import json
import time
from collections.abc import Callable
from typing import Any

import jwt
import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa

from chassis.auth import Role
from chassis.bearers import Bearers, Principal
from chassis.clock import SYSTEM_CLOCK
from chassis.errors import TokenRefused
from chassis.jwks import BadKeySet, Key, KeySet, parse

ISSUER = "https://issuer.test"
EC_KEY = ec.generate_private_key(ec.SECP256R1())
OTHER_EC_KEY = ec.generate_private_key(ec.SECP256R1())
RSA_KEY = rsa.generate_private_key(65537, 2048)
SMALL_RSA_KEY = rsa.generate_private_key(65537, 1024)


def jwk(key: Any, kid: str = "one", **changes: Any) -> dict[str, Any]:
    algorithm: Any = (
        jwt.algorithms.ECAlgorithm
        if isinstance(key, ec.EllipticCurvePrivateKey)
        else jwt.algorithms.RSAAlgorithm
    )
    published: dict[str, Any] = algorithm.to_jwk(key.public_key(), as_dict=True)
    alg = "ES256" if published["kty"] == "EC" else "RS256"
    return {**published, "kid": kid, "use": "sig", "alg": alg, **changes}


def key_set(*keys: dict[str, Any]) -> bytes:
    return json.dumps({"keys": keys}).encode()


class Published:
    """Keys that are simply there."""

    def __init__(self, keys: KeySet) -> None:
        self.keys = keys

    async def get(self, key_id: str) -> Key | None:
        return self.keys.get(key_id)

    def at_hand(self, key_id: str) -> Key | None:
        return self.keys.get(key_id)


@pytest.fixture
def bearers() -> Bearers:
    keys = parse(key_set(jwk(EC_KEY), jwk(RSA_KEY, "two")))
    return bearers_of(Published(keys))


def bearers_of(keys: Published, clock: Any = SYSTEM_CLOCK) -> Bearers:
    return Bearers(keys, issuer=ISSUER, audience="ordermesh", service="gateway", clock=clock)


def claims(**changes: Any) -> dict[str, Any]:
    now = int(time.time())
    said = {"iss": ISSUER, "aud": "ordermesh", "sub": "alice", "iat": now, "exp": now + 600, **changes}
    return {name: value for name, value in said.items() if value is not None}


def token(key: Any = EC_KEY, algorithm: str = "ES256", header: Any = None, **changes: Any) -> str:
    headers = {"kid": "one", "typ": "at+jwt", **(header or {})}
    headers = {name: value for name, value in headers.items() if value is not None}
    return jwt.encode(claims(**changes), key, algorithm=algorithm, headers=headers)


async def principal(bearers: Bearers, text: str) -> Principal:
    return await bearers.principal(f"Bearer {text}")


def b64(value: object) -> str:
    raw = value if isinstance(value, bytes) else json.dumps(value).encode()
    return base64.urlsafe_b64encode(raw).rstrip(b"=").decode()


PUBLIC_PEM = RSA_KEY.public_key().public_bytes(
    serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
)


def unsigned(algorithm: str) -> str:
    return f"{b64({'alg': algorithm, 'kid': 'one', 'typ': 'JWT'})}.{b64(claims())}."


def symmetric() -> str:
    """Signed with the public key of RSA as a secret, in the hope that it is taken for one."""
    import hashlib
    import hmac

    head = f"{b64({'alg': 'HS256', 'kid': 'two', 'typ': 'JWT'})}.{b64(claims())}"
    return f"{head}.{b64(hmac.new(PUBLIC_PEM, head.encode(), hashlib.sha256).digest())}"


async def test_a_sound_token_becomes_its_user(bearers):
    for text in (token(), token(RSA_KEY, "RS256", {"kid": "two"}), token(header={"typ": "JWT"})):
        who = await principal(bearers, text)
        assert (who.user_id, who.is_operator, who.subject.act) == (
            "alice",
            False,
            "spiffe://ordermesh/gateway",
        )


async def test_only_the_role_of_an_operator_can_be_had_by_token(bearers):
    who = await principal(bearers, token(roles=["operator", "service", "recovery", "root", 7]))
    assert who.subject.roles == {Role.USER, Role.OPERATOR}


HOSTILE: dict[str, Callable[[], str]] = {
    "alg none": lambda: unsigned("none"),
    "alg NONE": lambda: unsigned("NONE"),
    "symmetric with the public key": symmetric,
    "key of another type": lambda: token(header={"kid": "two"}),
    "another key": lambda: token(OTHER_EC_KEY),
    "unknown key id": lambda: token(header={"kid": "../../etc/passwd"}),
    "no key id": lambda: token(header={"kid": None}),
    "key id is no text": lambda: (
        f"{b64({'alg': 'ES256', 'kid': [], 'typ': 'JWT'})}.{b64(claims())}.{b64(b'x' * 64)}"
    ),
    "own key along": lambda: token(OTHER_EC_KEY, header={"jwk": jwk(OTHER_EC_KEY), "kid": "mine"}),
    "key elsewhere": lambda: token(OTHER_EC_KEY, header={"jku": "https://evil.test/jwks.json"}),
    "crit": lambda: token(header={"crit": ["exp"]}),
    "typ of something else": lambda: token(header={"typ": "secevent+jwt"}),
    "no typ": lambda: f"{b64({'alg': 'ES256', 'kid': 'one'})}.{b64(claims())}.{b64(b'x' * 64)}",
    "no exp": lambda: token(exp=None),
    "no iat": lambda: token(iat=None),
    "no sub": lambda: token(sub=None),
    "no aud": lambda: token(aud=None),
    "no iss": lambda: token(iss=None),
    "expired": lambda: token(iat=int(time.time()) - 700, exp=int(time.time()) - 60),
    "far exp": lambda: token(exp=int(time.time()) + 90_000),
    "exp before iat": lambda: token(iat=int(time.time()) + 5, exp=int(time.time()) + 4),
    "from the future": lambda: token(iat=int(time.time()) + 3600, exp=int(time.time()) + 7200),
    "not yet": lambda: token(nbf=int(time.time()) + 3600),
    "exp is text": lambda: token(exp="tomorrow"),
    "exp is infinite": lambda: token(exp=float("inf")),
    "exp is not a number": lambda: token(exp=float("nan")),
    "another audience": lambda: token(aud="shop"),
    "another issuer": lambda: token(iss=ISSUER + ".evil"),
    "part of the issuer": lambda: token(iss=ISSUER[:-1]),
    "odd subject": lambda: token(sub="alice' OR 1=1"),
    "empty subject": lambda: token(sub=""),
    "subject with a newline": lambda: token(sub="alice\n"),
    "subject is a number": lambda: (
        f"{b64({'alg': 'ES256', 'kid': 'one', 'typ': 'JWT'})}.{b64(claims(sub=7))}.{b64(b'x' * 64)}"
    ),
    "roles are text": lambda: token(roles="operator"),
    "too long": lambda: token(padding="x" * 4096),
    "no token": lambda: "x",
    "only dots": lambda: "..",
    "deep payload": lambda: (
        f"{b64({'alg': 'ES256', 'kid': 'one', 'typ': 'JWT'})}.{b64(b'[' * 2800)}.{b64(b'x' * 64)}"
    ),
    "deep header": lambda: f"{b64(b'[' * 2800)}.{b64(claims())}.{b64(b'x' * 64)}",
    "not ASCII": lambda: "é.é.é",
}


@pytest.mark.parametrize("name", HOSTILE)
async def test_a_token_that_lies_is_refused(bearers, name):
    with pytest.raises(TokenRefused):
        await principal(bearers, HOSTILE[name]())


@pytest.mark.parametrize("header", [None, "", "Bearer", "Bearer ", "Basic YTpi", "bearer"])
async def test_a_header_without_a_token_is_refused_as_missing(bearers, header):
    with pytest.raises(TokenRefused) as refused:
        await bearers.principal(header)
    assert refused.value.cause == "MISSING"


async def test_what_is_asked_without_waiting_is_answered_alike(bearers):
    good = f"Bearer {token()}"
    assert bearers.principal_at_once(good) == await bearers.principal(good)
    expired = token(iat=int(time.time()) - 900, exp=int(time.time()) - 600)
    for wrong in (token(OTHER_EC_KEY), token(header={"kid": "other"}), token(aud="x"), expired, "a.b.c"):
        with pytest.raises(TokenRefused) as waited:
            await bearers.principal(f"Bearer {wrong}")
        with pytest.raises(TokenRefused) as at_once:
            bearers.principal_at_once(f"Bearer {wrong}")
        assert at_once.value.cause == waited.value.cause


async def test_a_remembered_token_is_refused_once_it_expired_or_its_key_is_gone():
    class Moving:
        at = time.time()

        def now(self) -> Any:
            from datetime import UTC, datetime

            return datetime.fromtimestamp(self.at, UTC)

    published, clock = Published(parse(key_set(jwk(EC_KEY)))), Moving()
    bearers = bearers_of(published, clock)
    short, long = token(exp=int(time.time()) - 5, iat=int(time.time()) - 60), token()
    await principal(bearers, long)
    assert (await principal(bearers, short)).user_id == "alice", "within the leeway"
    published.keys = parse(key_set(jwk(OTHER_EC_KEY)))
    with pytest.raises(TokenRefused):
        await principal(bearers, long)
    published.keys = {}
    with pytest.raises(TokenRefused):
        await principal(bearers, long)


def test_keys_for_other_uses_are_passed_over():
    usable = parse(
        key_set(
            jwk(EC_KEY, "good"),
            jwk(EC_KEY, "enc", use="enc"),
            jwk(EC_KEY, "mixed", alg="RS256"),
            jwk(SMALL_RSA_KEY, "small"),
            {"kty": "oct", "kid": "secret", "alg": "HS256", "k": "c2VjcmV0"},
            jwk(EC_KEY, ""),
            jwk(EC_KEY, "x" * 200),
            jwk(EC_KEY, "broken", x="AAAA"),
            {"kid": 7},
        )
    )
    assert list(usable) == ["good"]


def test_a_key_id_that_appears_twice_names_no_key():
    assert list(parse(key_set(jwk(EC_KEY, "a"), jwk(OTHER_EC_KEY, "a"), jwk(EC_KEY, "b")))) == ["b"]


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"<html>",
        b"[]",
        b"{}",
        b'{"keys": {}}',
        b'{"keys": []}',
        b"[" * 50_000,
        key_set(*[jwk(EC_KEY, str(number)) for number in range(21)]),
        key_set(jwk(SMALL_RSA_KEY)),
    ],
)
def test_what_is_no_usable_set_of_keys_is_refused(body):
    with pytest.raises(BadKeySet):
        parse(body)
