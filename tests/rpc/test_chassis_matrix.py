"""The authorization matrix, walked: every method of every service, as every role and as every peer.

The table here is a second bookkeeping, written by hand. A method that is missing from it, or from the matrix,
fails; so does a cell that was changed in one place only.
"""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from typing import Any

import grpc
import pytest
from grpc import StatusCode

import ordermesh
from chassis import rpc
from chassis.auth import MATRIX, Entrance, Role, Subject, SubjectMinter, SubjectVerifier
from chassis.errors import CallerNotAllowed, Reason
from ops import ca
from ordermesh.routing.v1 import options_pb2
from tests.listeners import CALL_S, Scripted, Trust, refused

ROLES = {
    "u": Role.USER,
    "s": Role.SERVICE,
    "r": Role.RECOVERY,
    "o": Role.OPERATOR,
    "m": Role.MOVER,
    "a": Role.ARCHIVE,
}
EXPECTED = {
    "order.v1.OrderService": {
        "CreateOrder": "us-o",
        "GetOrder": "usro",
        "UpdateOrder": "us-o",
        "BatchGetOrders": "-sro",
        "WatchOrder": "usro",
        "ListOrderEvents": "usro",
        "ClaimDueOrders": "--r-",
        "ReportVerdict": "--r-",
        "ListDueOrders": "--ro",
        "ListDeadLetters": "---o",
        "GetDeadLetter": "---o",
        "RedriveDeadLetter": "---o",
        "ResolveDeadLetter": "---o",
        "PutHold": "--ro",
        "LiftHold": "--ro",
        "GetShardStatus": "--ro",
    },
    "order.v1.BucketService": {
        "OwnBucket": "----m",
        "FreezeBucket": "----m",
        "ThawBucket": "----m",
        "ExportKeys": "----m",
        "ImportKeys": "----m",
    },
    "history.v1.HistoryService": {"ListOrders": "usro", "SearchOrders": "---o", "ExplainPage": "---o"},
    "history.v1.ProjectionService": {
        "GetProjectionStatus": "---o",
        "StartOperation": "---o",
        "ListOperations": "---o",
        "CancelOperation": "---o",
    },
    "archive.v1.ArchiveService": {
        "ListMonths": "---o",
        "MoveMonth": "---o",
        "VerifyMonth": "---o",
        "EraseUser": "---o",
        "AmendOrder": "---o",
        "SweepStrays": "---o",
        "PutLegalHold": "---o",
        "LiftLegalHold": "---o",
        "ListLegalHolds": "---o",
        "RebuildCatalog": "---o",
        "HaltArchive": "---o",
    },
    "archive.v1.StatementService": {
        "RequestStatement": "us-o",
        "WaitStatement": "us-o",
        "CancelStatement": "us-o",
        "ListStatements": "us-o",
        "LinkStatement": "us-o",
        "ListDeadMails": "---o",
        "RetryMail": "---o",
    },
    "recovery.v1.RecoveryService": {
        "ListHangingOrders": "---o",
        "ProbeOrder": "---o",
        "PauseRecovery": "---o",
        "ResumeRecovery": "---o",
        "GetRecoveryStatus": "---o",
    },
    "routing.v1.RoutingService": {
        "Where": "-sroa",
        "ListShards": "-sro",
        "ListVipUsers": "-sro",
        "PromoteVip": "---o",
        "DemoteVip": "---o",
        "ListVipMoves": "---o",
        "Explain": "-sro",
    },
    "upstream.v1.UpstreamService": {"Execute": "-s--", "Probe": "-sr-", "Reverse": "-s--"},
    "upstream.v1.SimulatorService": {
        "SetFault": "---o",
        "ClearFaults": "---o",
        "ListFaults": "---o",
        "GetLedger": "---o",
    },
}
OPERATIONS = "google.longrunning.Operations"
FOREIGN = {
    OPERATIONS: {
        "GetOperation": "us-o",
        "WaitOperation": "us-o",
        "CancelOperation": "us-o",
        "ListOperations": "us-o",
    }
}
"""Services of others' protos, as far as we serve them."""
SERVED = {**{f"ordermesh.{area}": methods for area, methods in EXPECTED.items()}, **FOREIGN}
PEERS = {
    "gateway": None,
    "shard_proxy": "s",
    "order_svc": "s",
    "history_svc": "",
    "projector": "",
    "recovery_svc": "r",
    "archive_svc": "a",
    "upstream": "",
    "ops": "so",
}
"""What a peer may be at the entrance when it speaks for itself; a gateway only brings users."""


def services() -> dict[str, list[str]]:
    """Every service of our protos and its methods, whichever files they stand in."""
    found: dict[str, list[str]] = {}
    for module in pkgutil.walk_packages(ordermesh.__path__, "ordermesh."):
        if module.name.endswith("_pb2"):
            file = importlib.import_module(module.name).DESCRIPTOR
            if file.package.startswith("ordermesh."):
                for service in file.services_by_name.values():
                    found[service.full_name] = [method.name for method in service.methods]
    return found | {service: [*methods] for service, methods in FOREIGN.items()}


METHODS = [
    (service, name, allowed) for service, methods in SERVED.items() for name, allowed in methods.items()
]


@pytest.fixture(scope="module")
def trust(tmp_path_factory: pytest.TempPathFactory) -> Trust:
    return Trust.make(tmp_path_factory.mktemp("trust"))


def gate_at_the_entrance(trust: Trust) -> rpc.Gate:
    return rpc.Gate(Entrance(SubjectVerifier(trust.subjects), SubjectMinter(trust.subjects, "shard_proxy")))


@pytest.fixture(scope="module")
async def doors(trust: Trust) -> AsyncIterator[dict[str, rpc.RunningServer]]:
    """Every service of the mesh behind a lane's gate, and behind the gate of the entrance."""
    async with AsyncExitStack() as stack:
        running = {}
        for name, gate in (("lane", trust.lane()), ("entrance", gate_at_the_entrance(trust))):
            mounts = [rpc.Mount(service, Scripted(service)) for service in SERVED]
            serving = rpc.serve("127.0.0.1:0", mounts, gate=gate, tls=trust.server())
            running[name] = await stack.enter_async_context(serving)
        yield running


def test_every_method_of_every_proto_service_is_in_the_matrix_and_in_this_walk() -> None:
    every = {f"/{service}/{method}" for service, methods in services().items() for method in methods}
    assert every == set(MATRIX)
    assert every == {f"/{service}/{method}" for service, method, _ in METHODS}


async def outcome(channel: rpc.Channel, service: str, name: str, metadata: Any) -> str:
    method = rpc.methods_of(service)[f"/{service}/{name}"]
    arity = channel.unary_stream if method.server_streaming else channel.unary_unary
    call = arity(method.path)(b"", timeout=CALL_S, metadata=metadata)
    try:
        if method.server_streaming:
            await call.read()
        else:
            await call
    except grpc.aio.AioRpcError as failed:
        error = rpc.error_of(failed)
        assert error.code in (StatusCode.PERMISSION_DENIED, StatusCode.UNAUTHENTICATED), error
        return error.reason
    return "served"


@pytest.mark.parametrize("letter", ROLES)
async def test_a_lane_serves_each_method_to_the_roles_of_the_table_only(
    trust: Trust, doors: dict[str, rpc.RunningServer], letter: str
) -> None:
    metadata = trust.metadata(Subject("somebody", frozenset({ROLES[letter]}), "spiffe://ordermesh/ops"))
    async with trust.channel(doors["lane"]) as channel:
        found = {(s, m): await outcome(channel, s, m, metadata) for s, m, _ in METHODS}
    assert found == {
        (s, m): "served" if letter in allowed else Reason.ROLE_REQUIRED for s, m, allowed in METHODS
    }


@pytest.mark.parametrize("peer", PEERS)
async def test_at_the_entrance_each_peer_reaches_what_its_own_roles_allow_only(
    trust: Trust, doors: dict[str, rpc.RunningServer], peer: str
) -> None:
    roles = PEERS[peer]

    def expected(allowed: str) -> str:
        if roles is None:
            return Reason.UNAUTHENTICATED
        if not roles:
            return Reason.CALLER_NOT_ALLOWED
        return "served" if set(roles) & set(allowed) else Reason.ROLE_REQUIRED

    async with trust.channel(doors["entrance"], peer) as channel:
        found = {(s, m): await outcome(channel, s, m, ()) for s, m, _ in METHODS}
    assert found == {(s, m): expected(allowed) for s, m, allowed in METHODS}


async def test_a_user_behind_the_gateway_is_held_to_the_role_user(
    trust: Trust, doors: dict[str, rpc.RunningServer]
) -> None:
    user = trust.metadata(Subject("alice", frozenset({Role.USER}), "spiffe://ordermesh/gateway"), "gateway")
    async with trust.channel(doors["entrance"], "gateway") as channel:
        found = {(s, m): await outcome(channel, s, m, user) for s, m, _ in METHODS}
    assert found == {
        (s, m): "served" if "u" in allowed else Reason.ROLE_REQUIRED for s, m, allowed in METHODS
    }


async def test_a_method_the_matrix_does_not_know_is_denied_to_everybody(
    trust: Trust, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = "/ordermesh.history.v1.HistoryService/ListOrders"
    monkeypatch.delitem(MATRIX, path)
    behind = Scripted("ordermesh.history.v1.HistoryService")
    mounts = [rpc.Mount("ordermesh.history.v1.HistoryService", behind)]
    async with (
        rpc.serve("127.0.0.1:0", mounts, gate=trust.lane(), tls=trust.server()) as server,
        trust.channel(server) as channel,
    ):
        with refused(StatusCode.PERMISSION_DENIED, CallerNotAllowed.reason):
            everything = Subject("mira", frozenset(Role), "spiffe://ordermesh/ops")
            await channel.unary_unary(path)(b"", timeout=CALL_S, metadata=trust.metadata(everything))
    assert behind.calls == []


def test_the_walk_knows_every_peer_that_has_a_certificate() -> None:
    assert set(PEERS) == set(ca.SERVICES)


def test_every_method_says_its_route_and_whether_it_may_be_sent_again() -> None:
    for service in services():
        for method in rpc.methods_of(service).values():
            assert method.by != options_pb2.ROUTE_BY_UNSPECIFIED
            assert method.retry != options_pb2.RETRY_UNSPECIFIED
            assert 0 < method.timeout_s <= 300, f"{method.path} has no sane default deadline"
