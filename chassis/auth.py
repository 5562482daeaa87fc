"""Who is calling, on whose behalf, and whether they may: identity from the certificate, a signed subject, a
matrix kept as data.

The peer is the SPIFFE id in the TLS certificate, never a name in metadata. The subject is the one on whose
behalf a call is made; it travels signed (Ed25519) in `x-ordermesh-subject` and every hop checks it again.
What the matrix does not list is denied.
"""

from __future__ import annotations

import re
import time
from dataclasses import dataclass, field
from enum import StrEnum
from typing import TYPE_CHECKING, Any, Protocol

import jwt

from chassis import metrics
from chassis.errors import CallerNotAllowed, InvalidField, NotYourOrder, RoleRequired, Unauthenticated

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

SUBJECT_HEADER = "x-ordermesh-subject"
ACTOR_HEADER = "x-ordermesh-actor"
"""Which person sits at a tool; only believed from a peer that people use."""
ACTOR_PATTERN = re.compile(r"[A-Za-z0-9_.-]{1,32}")
PEERS_OF_PEOPLE = frozenset({"ops"})
TRUST_DOMAIN = "spiffe://ordermesh/"
SUBJECT_TTL_S = 60
SUBJECT_CHARS_MAX = 2048
_CACHE_MAX = 4096
_RENEW_BEFORE_S = 20
"""A cached token is handed out while it has this long to live: longer than a call's way through the mesh."""


class Role(StrEnum):
    """What a subject may be."""

    USER = "user"
    SERVICE = "service"
    RECOVERY = "recovery"
    OPERATOR = "operator"
    MOVER = "mover"
    ARCHIVE = "archive"


@dataclass(frozen=True, slots=True)
class Subject:
    """On whose behalf a call is made.

    name: a user id for users, else the name of a service or person. act: SPIFFE id of the process that
    first spoke for them.
    """

    name: str
    roles: frozenset[Role]
    act: str = ""

    @property
    def is_only_user(self) -> bool:
        """A user with no other role sees only what is theirs."""
        return self.roles == {Role.USER}

    def must_own(self, user_id: str) -> None:
        """Refuse when a mere user asks for something of somebody else.

        Raises: NotYourOrder.
        """
        if self.is_only_user and self.name != user_id:
            raise NotYourOrder


_O = "/ordermesh.order.v1.OrderService/"
_R = "/ordermesh.recovery.v1.RecoveryService/"
_B = "/ordermesh.order.v1.BucketService/"
_T = "/ordermesh.routing.v1.RoutingService/"
_H = "/ordermesh.history.v1.HistoryService/"
_P = "/ordermesh.history.v1.ProjectionService/"
_A = "/ordermesh.archive.v1.ArchiveService/"
_D = "/ordermesh.archive.v1.StatementService/"
_L = "/google.longrunning.Operations/"
_U = "/ordermesh.upstream.v1.UpstreamService/"
_S = "/ordermesh.upstream.v1.SimulatorService/"
_WRITE = frozenset({Role.USER, Role.SERVICE, Role.OPERATOR})
_READ = frozenset({Role.USER, Role.SERVICE, Role.OPERATOR, Role.RECOVERY})
_SWEEP = frozenset({Role.RECOVERY})
_STEER = frozenset({Role.OPERATOR})
_STEER_OR_SWEEP = frozenset({Role.OPERATOR, Role.RECOVERY})
_MOVE = frozenset({Role.MOVER})
_MAP = frozenset({Role.SERVICE, Role.OPERATOR, Role.RECOVERY})
_WHERE = _MAP | {Role.ARCHIVE}

MATRIX: Mapping[str, frozenset[Role]] = {
    _O + "CreateOrder": _WRITE,
    _O + "GetOrder": _READ,
    _O + "UpdateOrder": _WRITE,
    _O + "BatchGetOrders": frozenset({Role.SERVICE, Role.OPERATOR, Role.RECOVERY}),
    _O + "WatchOrder": _READ,
    _O + "ListOrderEvents": _READ,
    _O + "ClaimDueOrders": _SWEEP,
    _O + "ReportVerdict": _SWEEP,
    _O + "ListDueOrders": _STEER_OR_SWEEP,
    _O + "ListDeadLetters": _STEER,
    _O + "GetDeadLetter": _STEER,
    _O + "RedriveDeadLetter": _STEER,
    _O + "ResolveDeadLetter": _STEER,
    _O + "PutHold": _STEER_OR_SWEEP,
    _O + "LiftHold": _STEER_OR_SWEEP,
    _O + "GetShardStatus": _STEER_OR_SWEEP,
    _B + "OwnBucket": _MOVE,
    _B + "FreezeBucket": _MOVE,
    _B + "ThawBucket": _MOVE,
    _B + "ExportKeys": _MOVE,
    _B + "ImportKeys": _MOVE,
    _H + "ListOrders": _READ,
    _H + "SearchOrders": _STEER,
    _H + "ExplainPage": _STEER,
    _P + "GetProjectionStatus": _STEER,
    _P + "StartOperation": _STEER,
    _P + "ListOperations": _STEER,
    _P + "CancelOperation": _STEER,
    _A + "ListMonths": _STEER,
    _A + "MoveMonth": _STEER,
    _A + "VerifyMonth": _STEER,
    _A + "EraseUser": _STEER,
    _A + "AmendOrder": _STEER,
    _A + "SweepStrays": _STEER,
    _A + "PutLegalHold": _STEER,
    _A + "LiftLegalHold": _STEER,
    _A + "ListLegalHolds": _STEER,
    _A + "RebuildCatalog": _STEER,
    _A + "HaltArchive": _STEER,
    _D + "RequestStatement": _WRITE,
    _D + "WaitStatement": _WRITE,
    _D + "CancelStatement": _WRITE,
    _D + "ListStatements": _WRITE,
    _D + "LinkStatement": _WRITE,
    _D + "ListDeadMails": _STEER,
    _D + "RetryMail": _STEER,
    _L + "GetOperation": _WRITE,
    _L + "WaitOperation": _WRITE,
    _L + "CancelOperation": _WRITE,
    _L + "ListOperations": _WRITE,
    _R + "ListHangingOrders": _STEER,
    _R + "ProbeOrder": _STEER,
    _R + "PauseRecovery": _STEER,
    _R + "ResumeRecovery": _STEER,
    _R + "GetRecoveryStatus": _STEER,
    _T + "Where": _WHERE,
    _T + "ListShards": _MAP,
    _T + "ListVipUsers": _MAP,
    _T + "PromoteVip": _STEER,
    _T + "DemoteVip": _STEER,
    _T + "ListVipMoves": _STEER,
    _T + "Explain": _MAP,
    _U + "Execute": frozenset({Role.SERVICE}),
    _U + "Probe": frozenset({Role.SERVICE, Role.RECOVERY}),
    _U + "Reverse": frozenset({Role.SERVICE}),
    _S + "SetFault": _STEER,
    _S + "ClearFaults": _STEER,
    _S + "ListFaults": _STEER,
    _S + "GetLedger": _STEER,
}
"""Method -> roles of which the subject needs one. The single source; docs/AUTHORIZATION.md is generated
from it.
"""

ROLES_OF_PEERS: Mapping[str, frozenset[Role]] = {
    "recovery_svc": frozenset({Role.RECOVERY}),
    "archive_svc": frozenset({Role.ARCHIVE}),
    "ops": frozenset({Role.OPERATOR, Role.SERVICE}),
    "dev": frozenset({Role.OPERATOR, Role.SERVICE}),
    "order_svc": frozenset({Role.SERVICE}),
    "shard_proxy": frozenset({Role.SERVICE}),
}
"""What a peer may be when it speaks for itself. A gateway is not here: it speaks only for users.

Nobody is a mover here: shard_proxy signs that for itself, for the calls of a move."""


ROLES_OF_ISSUERS: Mapping[str, frozenset[Role]] = {
    "gateway": frozenset({Role.USER, Role.OPERATOR}),
    "shard_proxy": frozenset(Role),
}
"""What an issuer may sign: a gateway speaks for people, so its key alone never makes a machine's subject."""


def permit(method: str, caller: str, subject: Subject) -> None:
    """Check a call against the matrix.

    Raises: CallerNotAllowed when the matrix does not know the method; RoleRequired when the subject has
    none of its roles.
    """
    allowed = MATRIX.get(method)
    if allowed is None:
        metrics.DENIED.labels(caller, method).inc()
        raise CallerNotAllowed(method=method)
    if not subject.roles & allowed:
        metrics.DENIED.labels(caller, method).inc()
        raise RoleRequired(method=method, roles=",".join(sorted(allowed)))


def peer_of(auth_context: Mapping[str, Any]) -> str:
    """The service name of a TLS peer.

    Raises: Unauthenticated unless the certificate carries exactly one SPIFFE id of our trust domain.
    """
    ids: list[str] = [value.decode() for value in auth_context.get("peer_spiffe_id", ())]
    if len(ids) != 1 or not ids[0].startswith(TRUST_DOMAIN) or "/" in ids[0].removeprefix(TRUST_DOMAIN):
        raise Unauthenticated
    return ids[0].removeprefix(TRUST_DOMAIN)


class SubjectMinter:
    """Signs subjects in the name of one issuer; a token is used again until it is near its end, since
    signing costs 0.1 ms.
    """

    def __init__(self, directory: Path, issuer: str) -> None:
        self._issuer = issuer
        self._key = (directory / f"{issuer}.key").read_bytes()
        self._cache: dict[Subject, tuple[float, str]] = {}

    def mint(self, subject: Subject, *, now: float | None = None) -> str:
        """A signed subject that lives between 20 and 60 seconds from now."""
        at = time.time() if now is None else now
        cached = self._cache.get(subject)
        if cached is not None and cached[0] - at > _RENEW_BEFORE_S:
            return cached[1]
        expires = int(at) + SUBJECT_TTL_S
        claims = {
            "sub": subject.name,
            "roles": sorted(subject.roles),
            "act": subject.act,
            "iss": self._issuer,
            "iat": int(at),
            "exp": expires,
        }
        token = jwt.encode(claims, self._key, algorithm="EdDSA", headers={"kid": self._issuer})
        _remember(self._cache, subject, (expires, token))
        return token


class SubjectVerifier:
    """Checks signed subjects of the issuers it trusts; a checked token is remembered until it expires."""

    def __init__(self, directory: Path, issuers: tuple[str, ...] = ("gateway", "shard_proxy")) -> None:
        self._keys = {issuer: (directory / f"{issuer}.pub").read_bytes() for issuer in issuers}
        self._cache: dict[str, tuple[float, Subject]] = {}

    def verify(self, token: str, *, now: float | None = None) -> Subject:
        """The subject of a token.

        Raises: Unauthenticated when it is not signed by a trusted issuer, is expired, lives too long or
        says nonsense.
        """
        at = time.time() if now is None else now
        cached = self._cache.get(token)
        if cached is not None and cached[0] > at:
            return cached[1]
        if len(token) > SUBJECT_CHARS_MAX:
            raise Unauthenticated
        expires, subject = self._read(token, at)
        _remember(self._cache, token, (expires, subject))
        return subject

    def _read(self, token: str, at: float) -> tuple[float, Subject]:
        try:
            issuer = jwt.get_unverified_header(token).get("kid", "")
            claims = jwt.decode(
                token,
                self._keys[issuer],
                algorithms=["EdDSA"],
                issuer=issuer,
                options={
                    "require": ["sub", "roles", "act", "iat", "exp", "iss"],
                    "verify_exp": False,
                    "verify_iat": False,
                },
            )
            roles = frozenset(Role(role) for role in claims["roles"])
            expires, issued = float(claims["exp"]), float(claims["iat"])
        except (jwt.PyJWTError, KeyError, ValueError, TypeError):
            raise Unauthenticated from None
        if not at < expires <= issued + SUBJECT_TTL_S or issued > at + 5 or not roles:
            raise Unauthenticated
        if not roles <= ROLES_OF_ISSUERS.get(issuer, frozenset()):
            raise Unauthenticated
        return expires, Subject(str(claims["sub"]), roles, str(claims["act"]))


def _remember(cache: dict[Any, Any], key: object, value: object) -> None:
    if len(cache) >= _CACHE_MAX:
        cache.clear()
    cache[key] = value


@dataclass(frozen=True, slots=True)
class Asking:
    """Who calls and for whom, with the token that says so when one came along."""

    caller: str
    subject: Subject
    token: str = ""


class Identify(Protocol):
    """How one listener finds out who is asking."""

    def __call__(self, auth_context: Mapping[str, Any], metadata: Mapping[str, str]) -> Asking:
        """Raises: Unauthenticated, CallerNotAllowed."""
        ...


@dataclass(frozen=True, slots=True)
class BehindProxy:
    """A lane: only listed peers may connect, and each call carries a signed subject."""

    verifier: SubjectVerifier
    peers: frozenset[str] = frozenset({"shard_proxy"})

    def __call__(self, auth_context: Mapping[str, Any], metadata: Mapping[str, str]) -> Asking:
        """Identify by certificate and signed subject."""
        caller = _listed(peer_of(auth_context), self.peers)
        token = metadata.get(SUBJECT_HEADER)
        if token is None:
            raise Unauthenticated
        return Asking(caller, self.verifier.verify(token), token)


@dataclass(frozen=True, slots=True)
class Direct:
    """A service whose peers speak for themselves."""

    peers: frozenset[str]

    def __call__(self, auth_context: Mapping[str, Any], metadata: Mapping[str, str]) -> Asking:
        """Identify by certificate alone."""
        caller = _listed(peer_of(auth_context), self.peers)
        return Asking(caller, Subject(caller, ROLES_OF_PEERS.get(caller, frozenset()), TRUST_DOMAIN + caller))


@dataclass(frozen=True, slots=True)
class Entrance:
    """The mesh's door: a gateway brings signed subjects of users, everybody else speaks for themselves and
    gets one minted. A tool of people says who sits at it: that is part of the name, and gives no role.
    """

    verifier: SubjectVerifier
    minter: SubjectMinter
    bearers: frozenset[str] = field(default=frozenset({"gateway"}))

    def __call__(self, auth_context: Mapping[str, Any], metadata: Mapping[str, str]) -> Asking:
        """Identify by certificate, and by signed subject where the peer speaks for users."""
        caller = peer_of(auth_context)
        if caller in self.bearers:
            token = metadata.get(SUBJECT_HEADER)
            if token is None:
                raise Unauthenticated
            return Asking(caller, self.verifier.verify(token), token)
        roles = ROLES_OF_PEERS.get(caller)
        if roles is None:
            raise CallerNotAllowed(caller=caller)
        subject = Subject(_name(caller, metadata.get(ACTOR_HEADER)), roles, TRUST_DOMAIN + caller)
        return Asking(caller, subject, self.minter.mint(subject))


def _name(caller: str, actor: str | None) -> str:
    """The name of a peer's subject: its own, with the person at it where it is a tool.

    Raises: InvalidField.
    """
    if actor is None or caller not in PEERS_OF_PEOPLE:
        return caller
    if not ACTOR_PATTERN.fullmatch(actor):
        raise InvalidField.of(ACTOR_HEADER, "must have 1 to 32 letters, digits, dots, hyphens or underscores")
    return f"{caller}:{actor}"


def _listed(caller: str, peers: frozenset[str]) -> str:
    if caller not in peers:
        metrics.DENIED.labels(caller, "connect").inc()
        raise CallerNotAllowed(caller=caller)
    return caller
