"""Who may connect and in whose name: the certificate's SPIFFE id and the signed subject, and nothing else."""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import jwt
import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ed25519
from grpc import StatusCode

from chassis import rpc
from chassis.auth import SUBJECT_HEADER, Direct, Entrance, Role, SubjectMinter, SubjectVerifier
from chassis.errors import Reason
from ops import ca
from ordermesh.order.v1 import order_service_pb2 as pb
from tests.listeners import (
    ALICE,
    CALL_S,
    OPERATOR,
    Scripted,
    Trust,
    orders_of,
    orders_served,
    raw_channel,
    refused,
)


@pytest.fixture(scope="module")
def trust(tmp_path_factory: pytest.TempPathFactory) -> Trust:
    return Trust.make(tmp_path_factory.mktemp("trust"))


@pytest.fixture(scope="module")
def lane() -> Scripted:
    return Scripted()


@pytest.fixture(scope="module")
async def server(trust: Trust, lane: Scripted) -> AsyncIterator[rpc.RunningServer]:
    async with orders_served(trust, lane) as listening:
        yield listening


async def get_order(channel: Any, metadata: tuple[tuple[str, str], ...] = ()) -> pb.GetOrderResponse:
    return await orders_of(channel).GetOrder(pb.GetOrderRequest(), timeout=CALL_S, metadata=metadata)


async def test_a_call_through_the_proxy_reaches_the_handler_with_its_subject(
    trust: Trust, lane: Scripted, server: rpc.RunningServer
) -> None:
    async with trust.channel(server) as channel:
        await get_order(channel, trust.metadata(ALICE, issuer="gateway"))
    assert (lane.calls[-1].caller, lane.calls[-1].subject) == ("shard_proxy", ALICE)


@pytest.mark.parametrize("peer", [name for name in ca.SERVICES if name != "shard_proxy"])
async def test_a_lane_accepts_no_peer_but_the_proxy(
    trust: Trust, lane: Scripted, server: rpc.RunningServer, peer: str
) -> None:
    before = len(lane.calls)
    async with trust.channel(server, peer) as channel:
        with refused(StatusCode.PERMISSION_DENIED, Reason.CALLER_NOT_ALLOWED):
            await get_order(channel, trust.metadata(OPERATOR))
    assert len(lane.calls) == before


@pytest.mark.parametrize(
    "uris",
    [
        pytest.param(["spiffe://evil/shard_proxy"], id="foreign-trust-domain"),
        pytest.param(["spiffe://ordermesh.evil/shard_proxy"], id="longer-trust-domain"),
        pytest.param(["spiffe://ordermesh/shard_proxy/x"], id="deeper-path"),
        pytest.param(["spiffe://ordermesh/shard_proxy", "spiffe://ordermesh/ops"], id="two-ids"),
        pytest.param(["https://ordermesh/shard_proxy"], id="not-spiffe"),
        pytest.param([], id="no-uri"),
    ],
)
async def test_a_certificate_of_ours_without_exactly_one_id_of_ours_identifies_nobody(
    trust: Trust, lane: Scripted, server: rpc.RunningServer, uris: list[str]
) -> None:
    before = len(lane.calls)
    stranger = trust.peer(*uris, common_name="shard_proxy", dns="shard-proxy.ordermesh")
    async with raw_channel(f"127.0.0.1:{server.port}", stranger) as channel:
        with refused(StatusCode.UNAUTHENTICATED, Reason.UNAUTHENTICATED):
            await get_order(channel, trust.metadata(OPERATOR))
    assert len(lane.calls) == before


async def test_the_common_name_admin_opens_no_door(trust: Trust, server: rpc.RunningServer) -> None:
    admin = trust.peer(common_name="admin", dns="admin")
    async with raw_channel(f"127.0.0.1:{server.port}", admin) as channel:
        with refused(StatusCode.UNAUTHENTICATED, Reason.UNAUTHENTICATED):
            await get_order(channel, trust.metadata(OPERATOR))


async def test_without_a_certificate_of_our_authority_there_is_no_connection(
    trust: Trust, lane: Scripted, server: rpc.RunningServer, tmp_path: Path
) -> None:
    before = len(lane.calls)
    ours = (trust.tls / "ca.pem").read_bytes()
    foreign = Trust.make(tmp_path).peer("spiffe://ordermesh/shard_proxy")
    strangers = [
        type(foreign)(ours, foreign.cert, foreign.key),
        type(foreign)(ours, b"", b""),
    ]
    for stranger in strangers:
        async with raw_channel(f"127.0.0.1:{server.port}", stranger) as channel:
            with refused(StatusCode.UNAVAILABLE):
                await get_order(channel, trust.metadata(OPERATOR))
    assert len(lane.calls) == before


async def test_a_client_refuses_a_server_with_the_name_of_another_service(
    trust: Trust, server: rpc.RunningServer
) -> None:
    wrong = rpc.Channel(f"127.0.0.1:{server.port}", service="gateway", tls=trust.files("shard_proxy"))
    async with wrong as channel:
        with refused(StatusCode.UNAVAILABLE):
            await get_order(channel, trust.metadata(OPERATOR))


def claims(**changes: object) -> dict[str, object]:
    now = int(time.time())
    whole: dict[str, object] = {
        "sub": "mallory",
        "roles": ["operator"],
        "act": "spiffe://ordermesh/ops",
        "iss": "shard_proxy",
        "iat": now,
        "exp": now + 30,
    }
    return {name: value for name, value in (whole | changes).items() if value is not None}


def signed(trust: Trust, issuer: str = "shard_proxy", kid: object = None, **changes: object) -> str:
    key = (trust.subjects / f"{issuer}.key").read_bytes()
    header = {"kid": issuer if kid is None else kid}
    return jwt.encode(claims(**changes), key, algorithm="EdDSA", headers=header)


def signed_by_a_stranger() -> str:
    key = ed25519.Ed25519PrivateKey.generate()
    return jwt.encode(claims(), key, algorithm="EdDSA", headers={"kid": "shard_proxy"})


def unsigned(algorithm: str = "none", kid: object = "shard_proxy") -> str:
    parts = [{"alg": algorithm, "kid": kid}, claims()]
    encoded = [base64.urlsafe_b64encode(json.dumps(part).encode()).rstrip(b"=").decode() for part in parts]
    return ".".join([*encoded, ""])


def hmac_with_the_public_key(trust: Trust) -> str:
    head, body, _ = unsigned("HS256").split(".")
    public = (trust.subjects / "shard_proxy.pub").read_bytes()
    mac = hmac.new(public, f"{head}.{body}".encode(), hashlib.sha256).digest()
    return f"{head}.{body}.{base64.urlsafe_b64encode(mac).rstrip(b'=').decode()}"


def with_its_own_key(trust: Trust) -> str:
    """A token that brings the key to check it with, as `jwk` allows in other systems."""
    key = ed25519.Ed25519PrivateKey.generate()
    raw = key.public_key().public_bytes(serialization.Encoding.Raw, serialization.PublicFormat.Raw)
    own = {"kty": "OKP", "crv": "Ed25519", "x": base64.urlsafe_b64encode(raw).rstrip(b"=").decode()}
    return jwt.encode(claims(), key, algorithm="EdDSA", headers={"kid": "shard_proxy", "jwk": own})


BAD_TOKENS = {
    "expired": lambda trust: signed(trust, iat=int(time.time()) - 40, exp=int(time.time()) - 1),
    "lives-too-long": lambda trust: signed(trust, exp=int(time.time()) + 3600),
    "begins-later": lambda trust: signed(trust, iat=int(time.time()) + 30, exp=int(time.time()) + 60),
    "never-expires": lambda trust: signed(trust, exp=None),
    "infinite": lambda trust: signed(trust, iat=float("inf"), exp=float("inf")),
    "no-subject": lambda trust: signed(trust, sub=None),
    "no-roles": lambda trust: signed(trust, roles=[]),
    "unknown-role": lambda trust: signed(trust, roles=["root"]),
    "roles-as-text": lambda trust: signed(trust, roles="operator"),
    "foreign-key": lambda trust: signed_by_a_stranger(),
    "brings-its-key": with_its_own_key,
    "alg-none": lambda trust: unsigned(),
    "hs256-with-the-public-key": hmac_with_the_public_key,
    "issuer-of-another-key": lambda trust: signed(trust, issuer="gateway", iss="shard_proxy"),
    "kid-of-another-key": lambda trust: signed(trust, issuer="gateway", kid="shard_proxy"),
    "unknown-issuer": lambda trust: signed(trust, kid="nobody"),
    "machine-of-a-gateway": lambda trust: signed(trust, "gateway", iss="gateway", roles=["recovery"]),
    "kid-no-text": lambda trust: unsigned("EdDSA", kid=["shard_proxy"]),
    "cut": lambda trust: signed(trust)[:-8],
    "huge": lambda trust: signed(trust, sub="m" * 3000),
    "nonsense": lambda trust: "nonsense",
    "empty": lambda trust: "",
}


@pytest.mark.parametrize("forge", BAD_TOKENS.values(), ids=BAD_TOKENS.keys())
async def test_a_subject_that_is_not_signed_for_now_by_whom_it_says_is_refused(
    trust: Trust, lane: Scripted, server: rpc.RunningServer, forge: Any
) -> None:
    before = len(lane.calls)
    async with trust.channel(server) as channel:
        with refused(StatusCode.UNAUTHENTICATED, Reason.UNAUTHENTICATED):
            await get_order(channel, ((SUBJECT_HEADER, forge(trust)),))
        await get_order(channel, ((SUBJECT_HEADER, signed(trust)),))
    assert len(lane.calls) == before + 1


async def test_a_lane_call_without_a_subject_is_refused(trust: Trust, server: rpc.RunningServer) -> None:
    async with trust.channel(server) as channel:
        with refused(StatusCode.UNAUTHENTICATED, Reason.UNAUTHENTICATED):
            await get_order(channel)


async def test_at_the_entrance_a_gateway_speaks_for_users_and_others_for_themselves(trust: Trust) -> None:
    minter = SubjectMinter(trust.subjects, "shard_proxy")
    entrance = rpc.Gate(Entrance(SubjectVerifier(trust.subjects), minter))
    behind = Scripted()
    async with orders_served(trust, behind, gate=entrance) as server:
        async with trust.channel(server, "gateway") as channel:
            await get_order(channel, trust.metadata(ALICE, issuer="gateway"))
            with refused(StatusCode.UNAUTHENTICATED, Reason.UNAUTHENTICATED):
                await get_order(channel)
        async with trust.channel(server, "recovery_svc") as channel:
            # A subject that somebody brings who may not speak for others counts for nothing.
            await get_order(channel, trust.metadata(OPERATOR))
        async with trust.channel(server, "upstream") as channel:
            with refused(StatusCode.PERMISSION_DENIED, Reason.CALLER_NOT_ALLOWED):
                await get_order(channel, trust.metadata(OPERATOR))
    for_alice, for_itself = behind.calls
    assert for_alice.subject == ALICE
    assert (for_itself.subject.name, for_itself.subject.roles) == ("recovery_svc", frozenset({Role.RECOVERY}))
    minted = SubjectVerifier(trust.subjects).verify(for_itself.subject_token)
    assert minted == for_itself.subject


async def test_where_peers_speak_for_themselves_only_the_listed_ones_may(trust: Trust) -> None:
    behind = Scripted()
    gate = rpc.Gate(Direct(frozenset({"ops"})))
    async with orders_served(trust, behind, gate=gate) as server:
        async with trust.channel(server, "ops") as channel:
            await get_order(channel)
        async with trust.channel(server, "gateway") as channel:
            with refused(StatusCode.PERMISSION_DENIED, Reason.CALLER_NOT_ALLOWED):
                await get_order(channel)
    assert [call.subject.name for call in behind.calls] == ["ops"]


def test_a_checked_token_is_remembered_until_it_expires_and_not_longer(trust: Trust) -> None:
    minter, verifier = SubjectMinter(trust.subjects, "gateway"), SubjectVerifier(trust.subjects)
    now = time.time()
    token = minter.mint(ALICE, now=now)

    assert minter.mint(ALICE, now=now + 30) == token, "signing again costs 0.1 ms for nothing"
    assert minter.mint(ALICE, now=now + 45) != token, "a token near its end would die on its way"
    assert verifier.verify(token, now=now + 50) == ALICE
    with pytest.raises(Exception, match="could not be identified"):
        verifier.verify(token, now=now + 61)
