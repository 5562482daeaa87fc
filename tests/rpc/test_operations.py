"""Statements behind a real proxy: by their own service, and as google.longrunning.Operations."""

from __future__ import annotations

from contextlib import AsyncExitStack
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from uuid import uuid4

import grpc
import pytest
from google.longrunning import operations_pb2, operations_pb2_grpc

from chassis import rpc
from chassis.auth import SUBJECT_HEADER, Role, Subject, SubjectMinter
from chassis.errors import Reason
from ordermesh.archive.v1 import statement_service_pb2 as pb
from ordermesh.archive.v1 import statement_service_pb2_grpc as pb_grpc
from tests.behind import VIP, proxy_before
from tests.buckets import Place
from tests.inprocess_s3 import InProcessS3
from tests.listeners import CALL_S, Trust, refused
from tests.statements import Statements, opened, running, told, wish

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from tests.conftest import DatabaseFactory

Code = grpc.StatusCode


@dataclass
class Mesh:
    """A gateway, or an operator, before a proxy before the statements."""

    statements: Statements
    service: Any
    operations: Any
    as_operator: Any

    def user(self, name: str) -> dict[str, Any]:
        subject = Subject(name, frozenset({Role.USER}), "spiffe://ordermesh/gateway")
        signed = SubjectMinter(self.statements.trust.subjects, "gateway").mint(subject)
        return {"metadata": ((SUBJECT_HEADER, signed),), "timeout": CALL_S}

    async def request(self, user_id: str = "alice") -> operations_pb2.Operation:
        asked = pb.RequestStatementRequest(user_id=user_id, request_id=str(uuid4()), wish=wish())
        answer: operations_pb2.Operation = await self.service.RequestStatement(asked, **self.user(user_id))
        return answer


@pytest.fixture
async def mesh(tmp_path: Path, shard_database: DatabaseFactory) -> AsyncIterator[Mesh]:
    async with AsyncExitStack() as stack:
        trust = Trust.make(tmp_path)
        s3 = await stack.enter_async_context(InProcessS3.serving())
        statements = await stack.enter_async_context(
            opened(await shard_database(), Place.of(s3), trust, tmp_path)
        )
        services = {"archive_svc": statements.target}
        proxy = await stack.enter_async_context(
            proxy_before(trust, "127.0.0.1:1", tmp_path, services=services)
        )
        made = []
        for caller in ("gateway", "ops"):
            channel = rpc.Channel(f"127.0.0.1:{proxy.port}", service="shard_proxy", tls=trust.files(caller))
            made.append(await stack.enter_async_context(channel))
        gateway, ops = made
        yield Mesh(
            statements,
            pb_grpc.StatementServiceStub(gateway),
            operations_pb2_grpc.OperationsStub(gateway),
            operations_pb2_grpc.OperationsStub(ops),
        )


async def test_an_operation_is_shown_waited_for_and_listed_by_its_name(mesh: Mesh) -> None:
    asked = await mesh.request()
    by_name = operations_pb2.GetOperationRequest(name=asked.name)
    assert await mesh.operations.GetOperation(by_name, **mesh.user("alice")) == asked
    assert await mesh.as_operator.GetOperation(by_name, timeout=CALL_S) == asked

    async with running(mesh.statements.worker):
        over = await mesh.operations.WaitOperation(
            operations_pb2.WaitOperationRequest(name=asked.name), **mesh.user("alice")
        )
    ready = pb.Statement()
    assert over.done
    assert over.response.Unpack(ready)
    assert ready.state == pb.Statement.READY
    for parent in ("users/alice", "users/alice/statements"):
        listed = await mesh.operations.ListOperations(
            operations_pb2.ListOperationsRequest(name=parent), **mesh.user("alice")
        )
        assert [each.name for each in listed.operations] == [asked.name]


async def test_a_wait_ends_when_it_was_said_to(mesh: Mesh) -> None:
    asked = await mesh.request()
    request = operations_pb2.WaitOperationRequest(name=asked.name)
    request.timeout.FromMilliseconds(100)
    assert not (await mesh.operations.WaitOperation(request, **mesh.user("alice"))).done


async def test_an_operation_is_ended_by_its_name(mesh: Mesh) -> None:
    asked = await mesh.request()
    await mesh.operations.CancelOperation(
        operations_pb2.CancelOperationRequest(name=asked.name), **mesh.user("alice")
    )
    by_name = operations_pb2.GetOperationRequest(name=asked.name)
    over = await mesh.operations.GetOperation(by_name, **mesh.user("alice"))
    assert told(over).state == pb.Statement.CANCELLED


async def test_pages_of_operations_follow_each_other(mesh: Mesh) -> None:
    names = []
    for day in range(1, 4):
        asked = pb.RequestStatementRequest(
            user_id="alice", request_id=str(uuid4()), wish=wish(last=f"2025-03-{day:02}")
        )
        names.append((await mesh.service.RequestStatement(asked, **mesh.user("alice"))).name)
        assert await mesh.statements.worker.once()
    found, token = [], ""
    for _ in names:
        page = await mesh.operations.ListOperations(
            operations_pb2.ListOperationsRequest(name="users/alice", page_size=1, page_token=token),
            **mesh.user("alice"),
        )
        found += [each.name for each in page.operations]
        token = page.next_page_token
    assert (found, token) == (names[::-1], "")


@pytest.mark.parametrize(
    "name",
    ["", "users/alice", "statements/1", "users/alice/statements/1", "users/a/b/statements/" + "0" * 36],
)
async def test_a_name_that_is_none_is_refused(mesh: Mesh, name: str) -> None:
    with refused(Code.INVALID_ARGUMENT, Reason.INVALID_FIELD):
        await mesh.operations.GetOperation(
            operations_pb2.GetOperationRequest(name=name), **mesh.user("alice")
        )


async def test_users_reach_only_their_own_operations(mesh: Mesh) -> None:
    asked = await mesh.request()
    for call, request in (
        (mesh.operations.GetOperation, operations_pb2.GetOperationRequest(name=asked.name)),
        (mesh.operations.WaitOperation, operations_pb2.WaitOperationRequest(name=asked.name)),
        (mesh.operations.CancelOperation, operations_pb2.CancelOperationRequest(name=asked.name)),
        (mesh.operations.ListOperations, operations_pb2.ListOperationsRequest(name="users/alice")),
    ):
        with refused(Code.PERMISSION_DENIED, Reason.NOT_YOUR_ORDER):
            await call(request, **mesh.user("bob"))
    under_bob = asked.name.replace("alice", "bob")
    with refused(Code.NOT_FOUND, Reason.STATEMENT_NOT_FOUND):
        await mesh.operations.GetOperation(
            operations_pb2.GetOperationRequest(name=under_bob), **mesh.user("bob")
        )


async def test_operations_are_not_deleted(mesh: Mesh) -> None:
    with refused(Code.UNIMPLEMENTED, Reason.UNKNOWN_METHOD):
        await mesh.operations.DeleteOperation(
            operations_pb2.DeleteOperationRequest(name="users/alice/statements/x"), **mesh.user("alice")
        )


async def test_a_vip_s_statements_are_with_the_hash_whatever_bucket_the_orders_go_to(mesh: Mesh) -> None:
    listed = await mesh.service.ListStatements(pb.ListStatementsRequest(user_id=VIP), **mesh.user(VIP))
    assert list(listed.operations) == []
    # The shard of the dedicated bucket is not there: a statement would not be whole, so there is none.
    with refused(Code.UNAVAILABLE, Reason.SHARD_UNAVAILABLE):
        await mesh.request(VIP)
