"""The certificate authority and the signing keys of one local stack.

Owns `<state>/tls`, `<state>/subject` and `<state>/issuer`. Made for the machine it runs on and for nothing
else: the CA's key lies beside its certificate, readable by its owner only. Leaves live a day and are renewed
by renew_due() while the services run; a renewal keeps the service's key, so whoever reads certificate and key
always reads a pair.

    tls/ca.pem  tls/ca.key  tls/<service>/{cert.pem,key.pem}     mTLS between the services
    subject/{gateway,shard_proxy}.{key,pub}                      Ed25519, for x-ordermesh-subject
    issuer/{signing.key,jwks.json}                               ES256, for the JWTs of users

What is missing or damaged is made again. Fails with OpsError when a file cannot be read or written.
"""

import hashlib
import ipaddress
import json
from base64 import urlsafe_b64encode
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Final, TypeVar

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519
from cryptography.hazmat.primitives.asymmetric.types import PrivateKeyTypes
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from ops.errors import OpsError
from ops.files import write_private, write_public

TRUST_DOMAIN: Final = "ordermesh"
SERVICES: Final = (
    *("gateway", "shard_proxy", "order_svc", "history_svc", "projector", "recovery_svc"),
    "archive_svc",
    *("upstream", "ops"),
)
SUBJECT_ISSUERS: Final = ("gateway", "shard_proxy")
LEAF_LIFETIME: Final = timedelta(hours=24)
CA_LIFETIME: Final = timedelta(days=3650)

_CLOCK_MARGIN: Final = timedelta(minutes=5)
_RENEW_BELOW: Final = 1 / 3  # Of the lifetime: with a day, 8 hours are left to notice that renewal fails.

_PrivateKey = ec.EllipticCurvePrivateKey | ed25519.Ed25519PrivateKey
_Parsed = TypeVar("_Parsed")


@dataclass(frozen=True, slots=True)
class Leaf:
    """The files of one service's identity."""

    service: str
    cert: Path
    key: Path
    expires_at: datetime


@dataclass(frozen=True, slots=True)
class IssuerKey:
    """The key that signs the JWTs of users, and the id under which jwks.json publishes it."""

    kid: str
    key: Path
    jwks: Path


def spiffe_id(service: str) -> str:
    """Return the name by which services know each other."""
    return f"spiffe://{TRUST_DOMAIN}/{service}"


def server_name(service: str) -> str:
    """Return the DNS name under which clients check a service's certificate."""
    return f"{service.replace('_', '-')}.{TRUST_DOMAIN}"


def ensure_ca(tls_dir: Path, *, at: datetime | None = None) -> Path:
    """Make the authority when there is none, or when its files do not belong together; return ca.pem.

    A new authority makes all leaves void; renew_due() replaces them.
    """
    at = at or datetime.now(UTC)
    tls_dir.mkdir(parents=True, exist_ok=True, mode=0o700)
    key = _load_p256(tls_dir / "ca.key")
    certificate = _load_certificate(tls_dir / "ca.pem")
    if key is None or certificate is None or not _usable_ca(key, certificate, at):
        key = ec.generate_private_key(ec.SECP256R1())
        write_private(tls_dir / "ca.key", _private_pem(key))
        write_public(tls_dir / "ca.pem", _certificate_pem(_ca_certificate(key, at)))
    return tls_dir / "ca.pem"


def issue_leaf(
    tls_dir: Path, service: str, *, lifetime: timedelta = LEAF_LIFETIME, at: datetime | None = None
) -> Leaf:
    """Issue a certificate for a service, as a server and as a client; a key that it has is kept."""
    at = at or datetime.now(UTC)
    ca_key, ca_certificate = _authority(tls_dir)
    directory = tls_dir / service
    directory.mkdir(exist_ok=True, mode=0o700)
    leaf = Leaf(service, directory / "cert.pem", directory / "key.pem", at + lifetime)
    key = _load_p256(leaf.key)
    if key is None:
        key = ec.generate_private_key(ec.SECP256R1())
        leaf.cert.unlink(missing_ok=True)  # It would not fit the new key.
        write_private(leaf.key, _private_pem(key))
    certificate = _leaf_certificate(service, key, ca_key, ca_certificate, at, leaf.expires_at)
    write_public(leaf.cert, _certificate_pem(certificate))
    return leaf


def renew_due(
    tls_dir: Path,
    services: Iterable[str] = SERVICES,
    *,
    lifetime: timedelta = LEAF_LIFETIME,
    at: datetime | None = None,
) -> list[Leaf]:
    """Issue every leaf that is missing, void, or in the last third of its life; return what was issued.

    Call it at start and then at least every tenth of a lifetime: services read their files again by
    themselves.
    """
    at = at or datetime.now(UTC)
    ensure_ca(tls_dir, at=at)
    _, ca_certificate = _authority(tls_dir)
    due = [service for service in services if _is_due(tls_dir / service, ca_certificate, at)]
    return [issue_leaf(tls_dir, service, lifetime=lifetime, at=at) for service in due]


def ensure_subject_keys(subject_dir: Path) -> None:
    """Make the key pairs that sign who is asking, one for each process that may say so."""
    subject_dir.mkdir(parents=True, exist_ok=True, mode=0o700)
    for name in SUBJECT_ISSUERS:
        path = subject_dir / f"{name}.key"
        key = _load_ed25519(path)
        if key is None:
            key = ed25519.Ed25519PrivateKey.generate()
            write_private(path, _private_pem(key))
        write_public(subject_dir / f"{name}.pub", _public_pem(key))


def ensure_issuer(issuer_dir: Path) -> IssuerKey:
    """Make the key that signs JWTs, and the key set that publishes its public half."""
    issuer_dir.mkdir(parents=True, exist_ok=True, mode=0o700)
    path = issuer_dir / "signing.key"
    key = _load_p256(path)
    if key is None:
        key = ec.generate_private_key(ec.SECP256R1())
        write_private(path, _private_pem(key))
    jwk = _jwk(key.public_key())
    jwks = issuer_dir / "jwks.json"
    write_public(jwks, json.dumps({"keys": [jwk]}, indent=2) + "\n")
    return IssuerKey(jwk["kid"], path, jwks)


def _jwk(key: ec.EllipticCurvePublicKey) -> dict[str, str]:
    """Render a P-256 key as a JWK, named by its thumbprint (RFC 7638)."""
    numbers = key.public_numbers()
    required = {
        "crv": "P-256",
        "kty": "EC",
        "x": _base64url(numbers.x.to_bytes(32, "big")),
        "y": _base64url(numbers.y.to_bytes(32, "big")),
    }
    canonical = json.dumps(required, sort_keys=True, separators=(",", ":"))
    kid = _base64url(hashlib.sha256(canonical.encode()).digest())
    return {**required, "alg": "ES256", "use": "sig", "kid": kid}


def _authority(tls_dir: Path) -> tuple[ec.EllipticCurvePrivateKey, x509.Certificate]:
    key = _load_p256(tls_dir / "ca.key")
    certificate = _load_certificate(tls_dir / "ca.pem")
    if key is None or certificate is None:
        raise OpsError(f"{tls_dir} has no certificate authority; ensure_ca() makes one.")
    return key, certificate


def _usable_ca(key: ec.EllipticCurvePrivateKey, certificate: x509.Certificate, at: datetime) -> bool:
    pair = certificate.public_key() == key.public_key()
    return pair and certificate.not_valid_before_utc <= at < certificate.not_valid_after_utc - LEAF_LIFETIME


def _is_due(directory: Path, ca_certificate: x509.Certificate, at: datetime) -> bool:
    certificate = _load_certificate(directory / "cert.pem")
    key = _load_p256(directory / "key.pem")
    if certificate is None or key is None or certificate.public_key() != key.public_key():
        return True
    ca_key_id = ca_certificate.extensions.get_extension_for_class(
        x509.SubjectKeyIdentifier
    ).value.key_identifier
    authority = certificate.extensions.get_extension_for_class(x509.AuthorityKeyIdentifier).value
    begins, ends = certificate.not_valid_before_utc, certificate.not_valid_after_utc
    aged = ends - at < (ends - begins) * _RENEW_BELOW
    return authority.key_identifier != ca_key_id or aged or at < begins


def _ca_certificate(key: ec.EllipticCurvePrivateKey, at: datetime) -> x509.Certificate:
    name = _name("ordermesh local CA")
    return (
        x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number())
        .not_valid_before(at - _CLOCK_MARGIN)
        .not_valid_after(at + CA_LIFETIME)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(_key_usage(signs_certificates=True), critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .sign(key, hashes.SHA256())
    )


def _leaf_certificate(
    service: str,
    key: ec.EllipticCurvePrivateKey,
    ca_key: ec.EllipticCurvePrivateKey,
    ca_certificate: x509.Certificate,
    at: datetime,
    expires_at: datetime,
) -> x509.Certificate:
    names = x509.SubjectAlternativeName(
        [
            x509.DNSName(server_name(service)),
            x509.DNSName("localhost"),
            x509.IPAddress(ipaddress.IPv4Address("127.0.0.1")),
            x509.UniformResourceIdentifier(spiffe_id(service)),
        ]
    )
    usages = x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH])
    authority = x509.AuthorityKeyIdentifier.from_issuer_public_key(ca_key.public_key())
    builder = x509.CertificateBuilder(
        ca_certificate.subject, _name(service), key.public_key(), x509.random_serial_number()
    )
    return (
        builder.not_valid_before(at - _CLOCK_MARGIN)
        .not_valid_after(expires_at)
        .add_extension(names, critical=False)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(_key_usage(signs_certificates=False), critical=True)
        .add_extension(usages, critical=False)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .add_extension(authority, critical=False)
        .sign(ca_key, hashes.SHA256())
    )


def _key_usage(*, signs_certificates: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not signs_certificates,
        key_cert_sign=signs_certificates,
        crl_sign=signs_certificates,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        encipher_only=False,
        decipher_only=False,
    )


def _name(common_name: str) -> x509.Name:
    """Name a certificate for people who look at it; identity is the URI, never this."""
    return x509.Name(
        [
            x509.NameAttribute(NameOID.ORGANIZATION_NAME, TRUST_DOMAIN),
            x509.NameAttribute(NameOID.COMMON_NAME, common_name),
        ]
    )


def _load_p256(path: Path) -> ec.EllipticCurvePrivateKey | None:
    """Read a private key; None when the file is missing or holds no key of this kind."""
    key = _load(path, _parse_key)
    return key if isinstance(key, ec.EllipticCurvePrivateKey) else None


def _load_ed25519(path: Path) -> ed25519.Ed25519PrivateKey | None:
    """Read a private key; None when the file is missing or holds no key of this kind."""
    key = _load(path, _parse_key)
    return key if isinstance(key, ed25519.Ed25519PrivateKey) else None


def _parse_key(data: bytes) -> PrivateKeyTypes:
    return serialization.load_pem_private_key(data, password=None)


def _load_certificate(path: Path) -> x509.Certificate | None:
    """Read a certificate; None when the file is missing or holds none."""
    return _load(path, x509.load_pem_x509_certificate)


def _load(path: Path, parse: Callable[[bytes], _Parsed]) -> _Parsed | None:
    try:
        return parse(path.read_bytes())
    except (FileNotFoundError, ValueError):  # The parsers say ValueError to whatever is no PEM.
        return None
    except OSError as error:
        raise OpsError(f"Cannot read {path}: {error.strerror}.") from error


def _private_pem(key: _PrivateKey) -> str:
    return key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    ).decode()


def _public_pem(key: _PrivateKey) -> str:
    return (
        key.public_key()
        .public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)
        .decode()
    )


def _certificate_pem(certificate: x509.Certificate) -> str:
    return certificate.public_bytes(serialization.Encoding.PEM).decode()


def _base64url(data: bytes) -> str:
    return urlsafe_b64encode(data).rstrip(b"=").decode()
