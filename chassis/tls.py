"""mTLS from files that are renewed while the process runs.

The server's certificate fetcher is called at every handshake on gRPC's own threads, where a slow one would
freeze live channels: it only hands out a value that a loop prepared. Client credentials cannot be renewed
in place, so channels are rebuilt (see rpc.channel).
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import TYPE_CHECKING

import grpc
import structlog
from cryptography import x509
from cryptography.hazmat.primitives import serialization

from chassis import logs

if TYPE_CHECKING:
    from pathlib import Path

    from chassis.clock import Clock

log = structlog.get_logger("tls")
WATCH_EVERY_S = 5.0
"""Leaves live 24 h and are renewed hours before; seconds are soon enough."""


@dataclass(frozen=True, slots=True)
class Identity:
    """What a process shows and whom it trusts, as PEM."""

    ca: bytes
    cert: bytes
    key: bytes

    @property
    def digest(self) -> str:
        """Changes when any of the files does."""
        return hashlib.sha256(self.ca + self.cert + self.key).hexdigest()

    @property
    def is_pair(self) -> bool:
        """Whether certificate and key belong together; files that are being replaced may not."""
        try:
            certificate = x509.load_pem_x509_certificate(self.cert)
            key = serialization.load_pem_private_key(self.key, None)
        except (ValueError, TypeError):
            return False
        return key.public_key() == certificate.public_key()


@dataclass(frozen=True, slots=True)
class TlsFiles:
    """Where one service's identity is kept: `<directory>/ca.pem`, `<directory>/<service>/{cert,key}.pem`."""

    directory: Path
    service: str

    def read(self) -> Identity:
        """The files as they are now."""
        own = self.directory / self.service
        return Identity(
            (self.directory / "ca.pem").read_bytes(),
            (own / "cert.pem").read_bytes(),
            (own / "key.pem").read_bytes(),
        )


def dns_name(service: str) -> str:
    """The name a service's certificate is checked against."""
    return f"{service.replace('_', '-')}.ordermesh"


class ServerIdentity:
    """Server credentials that follow the files."""

    def __init__(self, files: TlsFiles) -> None:
        self._files = files
        self._identity = files.read()
        self._prepared = _configuration(self._identity)
        self._handed_out = self._prepared

    def credentials(self) -> grpc.ServerCredentials:
        """Credentials for `add_secure_port`; client certificates are demanded."""
        return grpc.dynamic_ssl_server_credentials(
            self._prepared,
            self._fetch,  # type: ignore[arg-type]  # None keeps the current one; the stubs do not know
            require_client_authentication=True,
        )

    def refresh(self) -> bool:
        """Prepare what the files hold now; True when they changed. A half-written pair is left for the next
        time.
        """
        identity = self._files.read()
        if identity.digest == self._identity.digest or not identity.is_pair:
            return False
        self._prepared = _configuration(identity)
        self._identity = identity
        log.info("certificate_renewed", service_identity=self._files.service)
        return True

    def _fetch(self) -> grpc.ServerCertificateConfiguration | None:
        if self._prepared is self._handed_out:
            return None
        self._handed_out = self._prepared
        return self._prepared


@dataclass(frozen=True, slots=True)
class CertificateWatcher:
    """The loop that looks at the files every few seconds."""

    identity: ServerIdentity
    clock: Clock
    name: str = "certificates"

    async def run(self) -> None:
        """Refresh until cancelled; files that cannot be read keep the old certificate and are logged."""
        while True:
            await self.clock.sleep(WATCH_EVERY_S)
            try:
                self.identity.refresh()
            except OSError as missing:
                log.error("certificate_unreadable", **logs.of_our_file(missing))


def channel_credentials(identity: Identity) -> grpc.ChannelCredentials:
    """Client credentials with our own certificate."""
    return grpc.ssl_channel_credentials(identity.ca, identity.key, identity.cert)


def _configuration(identity: Identity) -> grpc.ServerCertificateConfiguration:
    return grpc.ssl_server_certificate_configuration([(identity.key, identity.cert)], identity.ca)
