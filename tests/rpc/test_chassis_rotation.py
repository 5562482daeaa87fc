"""Certificates are renewed under running servers and channels: nothing restarts, nothing is cut off."""

from __future__ import annotations

import asyncio
import shutil
import socket
import ssl
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from cryptography import x509
from grpc import StatusCode

from chassis import rpc
from chassis.rpc import channel as channel_module
from chassis.testing import FakeClock
from chassis.tls import CertificateWatcher
from ops import ca
from ordermesh.order.v1 import order_service_pb2 as pb
from tests.listeners import CALL_S, ORDERS, Scripted, Trust, orders_of, orders_served, refused


@pytest.fixture
def trust(tmp_path: Path) -> Trust:
    return Trust.make(tmp_path)


def serial_on_disk(trust: Trust, service: str = "order_svc") -> int:
    return x509.load_pem_x509_certificate((trust.tls / service / "cert.pem").read_bytes()).serial_number


def serial_shown(trust: Trust, port: int) -> int:
    """The serial number of the certificate that a new handshake gets to see."""
    context = ssl.create_default_context(cafile=trust.tls / "ca.pem")
    context.load_cert_chain(trust.tls / "ops" / "cert.pem", trust.tls / "ops" / "key.pem")
    context.set_alpn_protocols(["h2"])
    with (
        socket.create_connection(("127.0.0.1", port), timeout=5) as plain,
        context.wrap_socket(plain, server_hostname="order-svc.ordermesh") as secure,
    ):
        shown = secure.getpeercert(binary_form=True)
    assert shown is not None
    return x509.load_der_x509_certificate(shown).serial_number


async def get(trust: Trust, channel: rpc.Channel) -> pb.GetOrderResponse:
    return await orders_of(channel).GetOrder(pb.GetOrderRequest(), timeout=CALL_S, metadata=trust.metadata())


async def test_a_renewed_certificate_is_shown_to_new_peers_while_live_channels_go_on(trust: Trust) -> None:
    release = asyncio.Event()

    async def watches(_: object, __: rpc.Call) -> AsyncIterator[pb.WatchOrderResponse]:
        yield pb.WatchOrderResponse()
        await release.wait()
        yield pb.WatchOrderResponse()

    orders, identity = Scripted(WatchOrder=watches), trust.server()
    mounts = [rpc.Mount(ORDERS, orders)]
    async with (
        rpc.serve("127.0.0.1:0", mounts, gate=trust.lane(), tls=identity) as server,
        trust.channel(server) as channel,
    ):
        stream = orders_of(channel).WatchOrder(
            pb.WatchOrderRequest(), timeout=CALL_S, metadata=trust.metadata()
        )
        await stream.read()
        first = await asyncio.to_thread(serial_shown, trust, server.port)
        ca.issue_leaf(trust.tls, "order_svc")

        assert await asyncio.to_thread(serial_shown, trust, server.port) == first, "not read in handshakes"
        assert identity.refresh()
        second = await asyncio.to_thread(serial_shown, trust, server.port)

        await get(trust, channel)
        release.set()
        assert await stream.read() == pb.WatchOrderResponse()
    assert first != second == serial_on_disk(trust)


async def test_the_watcher_follows_the_files_and_survives_missing_ones(trust: Trust) -> None:
    identity = trust.server()
    rounds = asyncio.Queue[None]()

    class Ticking(FakeClock):
        async def sleep(self, seconds: float) -> None:
            assert 0 < seconds <= 60, "leaves live a day; a minute is late enough"
            await rounds.get()

    watcher = asyncio.create_task(CertificateWatcher(identity, Ticking()).run())

    async def look() -> None:
        rounds.put_nowait(None)
        for _ in range(5):
            await asyncio.sleep(0)

    hidden = trust.tls / "order_svc.hidden"
    shutil.move(trust.tls / "order_svc", hidden)
    await look()
    assert not watcher.done(), "a missing file must not end the process"
    shutil.move(hidden, trust.tls / "order_svc")
    ca.issue_leaf(trust.tls, "order_svc")
    await look()
    assert not identity.refresh(), "the watcher has taken the renewed files already"
    watcher.cancel()


async def test_a_client_shows_its_renewed_certificate_without_dropping_a_call(
    trust: Trust, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(channel_module, "CHECK_EVERY_S", -1.0)
    seen: list[int] = []
    lane = trust.lane()

    class Noting:
        def __call__(self, auth_context: object, metadata: object) -> object:
            assert isinstance(auth_context, dict)
            pem = auth_context["x509_pem_cert"][0]
            seen.append(x509.load_pem_x509_certificate(pem).serial_number)
            return lane.identify(auth_context, metadata)  # type: ignore[arg-type]

    release = asyncio.Event()

    async def watches(_: object, __: rpc.Call) -> AsyncIterator[pb.WatchOrderResponse]:
        yield pb.WatchOrderResponse()
        await release.wait()
        yield pb.WatchOrderResponse()

    gate = rpc.Gate(Noting())  # type: ignore[arg-type]
    async with (
        orders_served(trust, Scripted(WatchOrder=watches), gate=gate) as server,
        trust.channel(server) as channel,
    ):
        old = serial_on_disk(trust, "shard_proxy")
        stream = orders_of(channel).WatchOrder(
            pb.WatchOrderRequest(), timeout=CALL_S, metadata=trust.metadata()
        )
        await stream.read()
        ca.issue_leaf(trust.tls, "shard_proxy")
        await get(trust, channel)
        release.set()
        assert await stream.read() == pb.WatchOrderResponse(), "the old channel ends when its calls do"
    assert seen == [old, serial_on_disk(trust, "shard_proxy")]


async def test_a_client_whose_files_are_gone_keeps_what_it_has(
    trust: Trust, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(channel_module, "CHECK_EVERY_S", -1.0)
    async with orders_served(trust, Scripted()) as server, trust.channel(server) as channel:
        shutil.rmtree(trust.tls / "shard_proxy")
        await get(trust, channel)


async def test_a_new_authority_takes_over_and_the_old_one_is_refused(
    trust: Trust, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    old = Trust(tmp_path / "old", trust.subjects)
    shutil.copytree(trust.tls, old.tls)
    identity = trust.server()
    mounts = [rpc.Mount(ORDERS, Scripted())]
    async with rpc.serve("127.0.0.1:0", mounts, gate=trust.lane(), tls=identity) as server:
        shutil.rmtree(trust.tls)
        ca.renew_due(trust.tls)
        identity.refresh()
        async with trust.channel(server) as channel, old.channel(server) as outdated:
            await get(trust, channel)
            with refused(StatusCode.UNAVAILABLE):
                await get(trust, outdated)


async def test_files_that_are_being_replaced_are_left_for_the_next_look(
    trust: Trust, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Key and certificate are two files; between their writes they do not fit."""
    monkeypatch.setattr(channel_module, "CHECK_EVERY_S", -1.0)
    identity = trust.server()
    mounts = [rpc.Mount(ORDERS, Scripted())]
    async with (
        rpc.serve("127.0.0.1:0", mounts, gate=trust.lane(), tls=identity) as server,
        trust.channel(server) as channel,
    ):
        for between in halves(trust, "order_svc"):
            (trust.tls / "order_svc" / "cert.pem").write_bytes(between)
            assert not identity.refresh()
            await asyncio.to_thread(serial_shown, trust, server.port)
        for between in halves(trust, "shard_proxy"):
            (trust.tls / "shard_proxy" / "cert.pem").write_bytes(between)
            await get(trust, channel)
        for service in ("order_svc", "shard_proxy"):
            ca.issue_leaf(trust.tls, service)
        assert identity.refresh()
        assert await asyncio.to_thread(serial_shown, trust, server.port) == serial_on_disk(trust)
        await get(trust, channel)


def halves(trust: Trust, service: str) -> list[bytes]:
    whole = (trust.tls / service / "cert.pem").read_bytes()
    return [whole[: len(whole) // 2], (trust.tls / "ops" / "cert.pem").read_bytes(), b""]
