"""Listeners of the chassis in the test's own process: real servers over mTLS, peers with any certificate."""

from __future__ import annotations

import ipaddress
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, cast

import grpc
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from chassis import rpc
from chassis.auth import SUBJECT_HEADER, BehindProxy, Role, Subject, SubjectMinter, SubjectVerifier
from chassis.errors import Reason
from chassis.rpc.options import channel_options
from chassis.tls import Identity, ServerIdentity, TlsFiles, channel_credentials
from ops import ca
from ordermesh.order.v1 import order_service_pb2_grpc as order_grpc

ORDERS = "ordermesh.order.v1.OrderService"
CALL_S = 10.0
ALICE = Subject("alice", frozenset({Role.USER}), "spiffe://ordermesh/gateway")
OPERATOR = Subject("mira", frozenset({Role.OPERATOR}), "spiffe://ordermesh/ops")


@dataclass(frozen=True, slots=True)
class Trust:
    """The certificates and signing keys of one mesh."""

    tls: Path
    subjects: Path

    @classmethod
    def make(cls, directory: Path) -> Trust:
        """A new authority with a leaf for every service."""
        trust = cls(directory / "tls", directory / "subject")
        ca.renew_due(trust.tls)
        ca.ensure_subject_keys(trust.subjects)
        return trust

    def files(self, service: str) -> TlsFiles:
        """Where a service's identity lies."""
        return TlsFiles(self.tls, service)

    def server(self, service: str = "order_svc") -> ServerIdentity:
        """Server credentials of a service."""
        return ServerIdentity(self.files(service))

    def lane(self, **options: Any) -> rpc.Gate:
        """The gate of a service behind the proxy."""
        return rpc.Gate(BehindProxy(SubjectVerifier(self.subjects)), **options)

    def metadata(
        self, subject: Subject = OPERATOR, issuer: str = "shard_proxy"
    ) -> tuple[tuple[str, str], ...]:
        """The signed subject as it travels."""
        return ((SUBJECT_HEADER, SubjectMinter(self.subjects, issuer).mint(subject)),)

    def channel(self, server: rpc.RunningServer, caller: str = "shard_proxy") -> rpc.Channel:
        """The chassis's own channel to a server, as `caller`."""
        return rpc.Channel(f"127.0.0.1:{server.port}", service="order_svc", tls=self.files(caller))

    def peer(self, *uris: str, common_name: str = "peer", dns: str = "peer.ordermesh") -> Identity:
        """What somebody shows whom our authority certified under any names."""
        key = ec.generate_private_key(ec.SECP256R1())
        authority = x509.load_pem_x509_certificate((self.tls / "ca.pem").read_bytes())
        names: list[x509.GeneralName] = [x509.UniformResourceIdentifier(uri) for uri in uris]
        names += [x509.DNSName(dns), x509.IPAddress(ipaddress.IPv4Address("127.0.0.1"))]
        now = datetime.now(UTC)
        certificate = (
            x509.CertificateBuilder()
            .issuer_name(authority.subject)
            .subject_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, common_name)]))
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - timedelta(minutes=1))
            .not_valid_after(now + timedelta(hours=1))
            .add_extension(x509.SubjectAlternativeName(names), critical=False)
            .add_extension(
                x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH]),
                False,
            )
            .sign(self._authority_key(), hashes.SHA256())
        )
        pem = key.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )
        return Identity(
            (self.tls / "ca.pem").read_bytes(), certificate.public_bytes(serialization.Encoding.PEM), pem
        )

    def _authority_key(self) -> ec.EllipticCurvePrivateKey:
        key = serialization.load_pem_private_key((self.tls / "ca.key").read_bytes(), None)
        return cast("ec.EllipticCurvePrivateKey", key)


class Scripted:
    """Implements a whole service: methods as the test says, all others with their empty response.

    `calls` is what got past the gate, in order.
    """

    def __init__(self, service: str = ORDERS, **behaviours: Callable[..., Any]) -> None:
        self.calls: list[rpc.Call] = []
        for method in rpc.methods_of(service).values():
            behaviour = behaviours.get(method.name)
            setattr(self, method.name, self._noted(method, behaviour))

    def _noted(self, method: rpc.Method, behaviour: Callable[..., Any] | None) -> Callable[..., Any]:
        async def one(request: Any, call: rpc.Call) -> Any:
            self.calls.append(call)
            return await behaviour(request, call) if behaviour else method.response_class()

        async def many(request: Any, call: rpc.Call) -> AsyncIterator[Any]:
            self.calls.append(call)
            if behaviour is None:
                yield method.response_class()
                return
            async for answer in behaviour(request, call):
                yield answer

        return many if method.server_streaming else one


@asynccontextmanager
async def orders_served(
    trust: Trust,
    implementation: object,
    *,
    gate: rpc.Gate | None = None,
    plain: bool = False,
    listen: str = "127.0.0.1:0",
    **options: Any,
) -> AsyncIterator[rpc.RunningServer]:
    """An order service that listens; as order_svc over mTLS unless `plain`."""
    mounts = [rpc.Mount(ORDERS, implementation)]
    tls = None if plain else trust.server()
    async with rpc.serve(listen, mounts, gate=gate or trust.lane(), tls=tls, **options) as server:
        yield server


@asynccontextmanager
async def raw_channel(
    target: str, identity: Identity | None, *, options: tuple[tuple[str, Any], ...] = ()
) -> AsyncIterator[grpc.aio.Channel]:
    """A plain grpc channel to an order_svc, for peers that do not use the chassis."""
    merged = dict(channel_options("order-svc.ordermesh")) | dict(options)
    arguments = [*merged.items(), ("grpc.enable_http_proxy", 0)]
    if identity is None:
        channel = grpc.aio.insecure_channel(target, options=arguments)
    else:
        channel = grpc.aio.secure_channel(target, channel_credentials(identity), options=arguments)
    async with channel:
        yield channel


def orders_of(channel: rpc.Channel | grpc.aio.Channel) -> order_grpc.OrderServiceAsyncStub:
    """The typed stub on any channel."""
    return order_grpc.OrderServiceStub(channel)


@contextmanager
def refused(code: grpc.StatusCode, reason: Reason | None = None) -> Iterator[list[rpc.RemoteError]]:
    """Expect a call to fail with this code, and with exactly this reason of ours, or none.

    Gives a list that holds the error's facts afterwards.
    """
    facts: list[rpc.RemoteError] = []
    with pytest.raises(grpc.aio.AioRpcError) as failed:
        yield facts
    error = rpc.error_of(failed.value)
    facts.append(error)
    assert (error.code, error.reason) == (code, reason or ""), error
