"""Checks of a mesh that runs elsewhere: what its description names is asked, and nothing on this machine."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import grpc
import httpx

from chassis import rpc
from ops.doctor import servers, stack
from ops.doctor.findings import Finding, Word, bad, ok
from ops.mesh import connect
from ordermesh.routing.v1 import routing_service_pb2 as routing

if TYPE_CHECKING:
    from ops.stack.endpoints import Endpoints, Service

FIX = "look where it runs; docs/runbooks has a section for each alert"


async def check(endpoints: Endpoints) -> list[Finding]:
    """Everything that can be said of what is named, each part within a few seconds."""
    parts = await asyncio.gather(
        _map(endpoints),
        _processes(endpoints.services),
        _databases(endpoints),
        servers.check(endpoints),
    )
    own = stack.certificates(Path(endpoints.tls.ca).parent)
    found = [own, *(each for part in parts for each in part)]
    return [each if each.word is Word.OK else replace(each, fix=FIX) for each in found]


async def _map(endpoints: Endpoints) -> list[Finding]:
    """As a local stack's, where the control database is named; else whether the proxy answers."""
    if any(each.role == "control" for each in endpoints.databases):
        return await stack.map_version(endpoints)
    try:
        async with connect(endpoints) as mesh:
            request = routing.ListShardsRequest()
            answer = await mesh.routing.ListShards(request, timeout=stack.CALL_TIMEOUT_S)
    except grpc.aio.AioRpcError as failed:
        said = rpc.error_of(failed)
        return [bad("map", f"the proxy does not answer: {said.reason or said.code.name}", FIX)]
    names = ", ".join(sorted(each.shard for each in answer.shards))
    return [ok("map", f"the proxy routes with version {answer.map_version} to {names}")]


async def _databases(endpoints: Endpoints) -> list[Finding]:
    if not endpoints.shard_dsns():
        return [ok("databases", "no shard's is named")]
    return await stack.databases(endpoints)


async def _processes(services: tuple[Service, ...]) -> list[Finding]:
    """Whether each process that shows metrics says that it is ready."""
    shown = [each for each in services if each.metrics_url]
    async with httpx.AsyncClient(timeout=stack.READY_TIMEOUT_S) as client:
        found = await asyncio.gather(*(_process(client, each) for each in shown))
    wrong = [each for each in found if each.word is not Word.OK]
    return wrong or [ok("processes", f"{len(found)} are named, and ready")]


async def _process(client: httpx.AsyncClient, service: Service) -> Finding:
    name = f"{service.name}.{service.shard}" if service.shard else service.name
    return await stack.ready(client, service, name, name, FIX)
