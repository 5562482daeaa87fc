"""The sweep on the wire: what is claimed is probed at a real upstream server and reported, whatever fails."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import grpc
import pytest
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from prometheus_client import REGISTRY

from chassis import faults, traces
from chassis.supervise import LoopDied
from chassis.testing import eventually
from ops import ports
from ordermesh.order.v1 import order_pb2
from ordermesh.recovery.v1 import recovery_service_pb2 as recovery_pb
from tests.rpc.recovery_mesh import MeshScript, Shard, Trust, new_order, recovering, scripted, served
from tests.upstreams import Upstream, simulated


@pytest.fixture(scope="module")
def trust(tmp_path_factory) -> Trust:
    return Trust.make(tmp_path_factory.mktemp("trust"))


@pytest.fixture
async def payments(tmp_path: Path, trust: Trust) -> AsyncIterator[Upstream]:
    async with simulated(tmp_path, trust.tls_dir, name="payments") as upstream:
        yield upstream


@pytest.fixture
async def mesh() -> MeshScript:
    return scripted("s1", "s2")


@pytest.fixture
async def proxy(mesh: MeshScript, trust: Trust) -> AsyncIterator[str]:
    async with served(mesh, trust) as address:
        yield address


def swept_until(shard: str) -> float | None:
    return REGISTRY.get_sample_value("ordermesh_recovery_swept_until_seconds", {"shard": shard})


def in_flight(shard: str) -> float | None:
    return REGISTRY.get_sample_value("ordermesh_recovery_in_flight", {"shard": shard})


@pytest.fixture(autouse=True)
def no_faults_left():
    yield
    faults.arm("")


async def test_a_due_order_is_probed_with_its_key_and_reported_with_the_event_of_its_claim(
    mesh: MeshScript, proxy: str, payments: Upstream, trust: Trust
) -> None:
    order_id = new_order()
    executed = await payments.execute(order_id, amount_minor=995)
    mesh.owe("s2", order_id=order_id)
    (claim,) = mesh.shards["s2"].due

    async with recovering(proxy, {"payments": payments.target}, trust):
        await eventually(lambda: mesh.taken_about(order_id))

    (report,) = mesh.reports
    assert report.report.probe_class == order_pb2.PROBE_CLASS_ANSWERED
    assert report.report.answer == executed
    assert (report.event_id, report.lease_token) == (claim.event_id, claim.lease_token)
    assert (report.leg, report.attempt) == (0, 1)


@pytest.mark.parametrize(
    ("kind", "probe_class", "detail"),
    [
        ("DOWN", order_pb2.PROBE_CLASS_NO_ANSWER, "UNAVAILABLE: UPSTREAM_UNAVAILABLE"),
        ("LATE", order_pb2.PROBE_CLASS_NO_ANSWER, "DEADLINE_EXCEEDED"),
        ("MALFORMED", order_pb2.PROBE_CLASS_MALFORMED, ""),
        ("UNKNOWN", order_pb2.PROBE_CLASS_ANSWERED, ""),
    ],
)
async def test_each_way_of_not_knowing_is_reported_as_what_it_is(
    mesh: MeshScript,
    proxy: str,
    payments: Upstream,
    trust: Trust,
    monkeypatch: pytest.MonkeyPatch,
    kind: str,
    probe_class: int,
    detail: str,
) -> None:
    exporter, provider = InMemorySpanExporter(), TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    monkeypatch.setattr(traces, "_tracer", provider.get_tracer("test"))
    await payments.misbehave(kind)
    order_id = mesh.owe("s1")

    async with recovering(proxy, {"payments": payments.target}, trust, probe_timeout_s=0.3):
        await eventually(lambda: mesh.taken_about(order_id))

    report = mesh.report_of(order_id)
    assert report.probe_class == probe_class
    assert report.detail.startswith(detail)
    is_answered = probe_class == order_pb2.PROBE_CLASS_ANSWERED
    assert report.HasField("answer") is is_answered
    probed = {span.status.is_ok for span in exporter.get_finished_spans() if span.name == "probe"}
    assert probed == {is_answered}, "a probe without an answer is a span that failed"


async def test_an_upstream_that_nobody_configured_or_nobody_serves_is_no_evidence(
    mesh: MeshScript, proxy: str, trust: Trust
) -> None:
    unknown, dead = mesh.owe("s1", "fulfilment"), mesh.owe("s1", "payments")

    async with recovering(proxy, {"payments": f"127.0.0.1:{ports.free_port()}"}, trust):
        await eventually(lambda: mesh.taken_about(unknown, dead))

    found = {order_id: mesh.report_of(order_id) for order_id in (unknown, dead)}
    assert found[unknown].probe_class == order_pb2.PROBE_CLASS_OUR_FAULT
    assert found[unknown].detail == "no address is configured for upstream fulfilment"
    assert found[dead].probe_class == order_pb2.PROBE_CLASS_NO_ANSWER
    assert found[dead].detail.startswith("UNAVAILABLE")


async def test_a_server_that_is_not_the_upstream_is_never_believed(
    mesh: MeshScript, proxy: str, trust: Trust
) -> None:
    """Another service of the mesh answers at the upstream's address: the name in its certificate is wrong."""
    order_id = mesh.owe("s1")

    async with recovering(proxy, {"payments": proxy}, trust):
        await eventually(lambda: mesh.taken_about(order_id))

    assert mesh.report_of(order_id).probe_class == order_pb2.PROBE_CLASS_NO_ANSWER


async def test_a_hanging_shard_and_a_dead_shard_delay_no_other(
    mesh: MeshScript, proxy: str, payments: Upstream, trust: Trust
) -> None:
    mesh.shards["s1"].hangs = True
    mesh.shards["s3"] = Shard(refuses_with=grpc.StatusCode.UNAVAILABLE)

    async with recovering(
        proxy, {"payments": payments.target}, trust, claim_timeout_s=2, lease_s=30
    ) as recovery:
        first = [mesh.owe("s2") for _ in range(3)]
        await eventually(lambda: mesh.taken_about(*first), within_s=1.5)
        second = mesh.owe("s2")
        await eventually(lambda: mesh.taken_about(second), within_s=1.5)
        mesh.shards["s3"].refuses_with = None
        healed = mesh.owe("s3")
        await eventually(lambda: mesh.taken_about(healed), within_s=3)
        swept = {shard: sweep.last_sweep for shard, sweep in recovery.process.sweeps.sweeps.items()}

    assert swept["s1"] is None
    assert swept["s2"] is not None
    assert swept["s3"] is not None


async def test_claims_never_ask_for_more_than_there_are_free_slots(
    mesh: MeshScript, proxy: str, payments: Upstream, trust: Trust
) -> None:
    await payments.misbehave("SLOW", duration_s=0.15)
    owed = [mesh.owe("s1") for _ in range(12)]

    async with recovering(proxy, {"payments": payments.target}, trust, slots_per_shard=4):
        await eventually(lambda: mesh.taken_about(*owed))
        limits = list(mesh.shards["s1"].limits)

    assert limits[0] == 4
    assert max(limits) == 4
    assert min(limits) >= 1
    assert len(mesh.reports) == len(owed)


async def test_an_upstream_without_free_slots_is_not_claimed_for(
    mesh: MeshScript, proxy: str, payments: Upstream, trust: Trust
) -> None:
    await payments.misbehave("SLOW", duration_s=0.2)
    owed = [mesh.owe("s1") for _ in range(4)]

    async with recovering(
        proxy, {"payments": payments.target}, trust, slots_per_upstream=1, queue_per_upstream=0
    ):
        await eventually(lambda: mesh.taken_about(*owed))

    classes = {mesh.report_of(order_id).probe_class for order_id in owed}
    assert classes == {order_pb2.PROBE_CLASS_ANSWERED}
    assert max(mesh.shards["s1"].limits) == 1


async def test_a_claim_for_which_its_upstream_has_no_free_slot_is_given_back_at_once(
    mesh: MeshScript, proxy: str, payments: Upstream, trust: Trust
) -> None:
    """Slots of another upstream are free, so more is claimed than this one can take."""
    await payments.misbehave("SLOW", duration_s=0.6)
    owed = [mesh.owe("s1") for _ in range(3)]
    targets = {"payments": payments.target, "fulfilment": payments.target, "shipping": payments.target}

    async with recovering(proxy, targets, trust, slots_per_upstream=1, queue_per_upstream=1):
        await eventually(lambda: mesh.taken_about(*owed))

    classes = [mesh.report_of(order_id).probe_class for order_id in owed]
    details = {mesh.report_of(order_id).detail for order_id in owed}
    assert sorted(classes) == [order_pb2.PROBE_CLASS_ANSWERED] + [order_pb2.PROBE_CLASS_NOT_MADE] * 2
    assert "no free slot of upstream:payments" in details


async def test_suspects_are_probed_one_after_the_other_and_innocents_beside_them(
    mesh: MeshScript, proxy: str, payments: Upstream, trust: Trust
) -> None:
    await payments.misbehave("SLOW", duration_s=0.4)
    suspects = [mesh.owe("s1", unfinished=1) for _ in range(2)]
    innocents = [mesh.owe("s1") for _ in range(2)]

    async with recovering(proxy, {"payments": payments.target}, trust):
        await eventually(lambda: mesh.taken_about(*innocents, *suspects))

    def apart_s(order_ids: list[str]) -> float:
        first, second = sorted(mesh.taken_at[order_id] for order_id in order_ids)
        return second - first

    assert apart_s(suspects) >= 0.4
    assert apart_s(innocents) < 0.4
    for order_id in (*suspects, *innocents):
        assert mesh.report_of(order_id).probe_class == order_pb2.PROBE_CLASS_ANSWERED


@pytest.mark.parametrize(
    "lost", [grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.ABORTED, grpc.StatusCode.DEADLINE_EXCEEDED]
)
async def test_a_report_whose_answer_is_lost_is_sent_again_as_the_same_event(
    mesh: MeshScript, proxy: str, payments: Upstream, trust: Trust, lost: grpc.StatusCode
) -> None:
    mesh.report_codes = [lost, lost]
    order_id = mesh.owe("s1")

    async with recovering(proxy, {"payments": payments.target}, trust):
        await eventually(lambda: mesh.taken_about(order_id))

    assert len(mesh.reports) == 3
    assert len({report.SerializeToString(deterministic=True) for report in mesh.reports}) == 1


async def test_a_report_that_is_refused_for_good_is_not_repeated_and_blocks_nobody(
    mesh: MeshScript, proxy: str, payments: Upstream, trust: Trust
) -> None:
    mesh.report_codes = [grpc.StatusCode.FAILED_PRECONDITION]
    refused = mesh.owe("s1")

    async with recovering(proxy, {"payments": payments.target}, trust):
        await eventually(lambda: _true(len(mesh.reports) == 1))
        other = mesh.owe("s1")
        await eventually(lambda: mesh.taken_about(other))

    assert [report.order_id for report in mesh.reports] == [refused, other]


async def test_an_order_that_breaks_its_own_recovery_takes_no_other_with_it(
    mesh: MeshScript, proxy: str, payments: Upstream, trust: Trust
) -> None:
    faults.arm("probe.after_call=raise")
    owed = [mesh.owe("s1") for _ in range(5)]

    async with recovering(proxy, {"payments": payments.target}, trust):
        await eventually(lambda: _true(len(mesh.reports) == 4))

    assert faults.armed() == ()
    assert len(set(owed) - set(mesh.taken)) == 1


async def test_the_sweep_follows_the_map_and_survives_its_absence(
    mesh: MeshScript, proxy: str, payments: Upstream, trust: Trust
) -> None:
    async with recovering(proxy, {"payments": payments.target}, trust) as recovery:
        sweeps = recovery.process.sweeps
        await eventually(lambda: _true(set(sweeps.sweeps) == {"s1", "s2"}))
        mesh.listed = False
        during = mesh.owe("s1")
        await eventually(lambda: mesh.taken_about(during))
        assert swept_until("s2")
        mesh.listed = True
        mesh.shards["v1"] = Shard()
        del mesh.shards["s2"]
        await eventually(lambda: _true(set(sweeps.sweeps) == {"s1", "v1"}))
        fresh = mesh.owe("v1")
        await eventually(lambda: mesh.taken_about(fresh))
        assert swept_until("v1")
        await eventually(lambda: _true(swept_until("s2") is None))
    assert swept_until("s1") is None


async def test_a_shard_that_never_answered_and_a_sweep_without_a_free_slot_are_told_by_a_time_that_stands(
    mesh: MeshScript, proxy: str, payments: Upstream, trust: Trust
) -> None:
    await payments.misbehave("SLOW", duration_s=30.0)
    mesh.shards["s1"].hangs = True
    mesh.owe("s2")

    async with recovering(
        proxy, {"payments": payments.target}, trust, slots_per_shard=1, probe_timeout_s=20.0, lease_s=60
    ):
        await eventually(lambda: _true(len(mesh.shards["s1"].limits) >= 2))
        assert swept_until("s1") == 0.0
        await eventually(lambda: _true(in_flight("s2") == 1.0))
        busy = swept_until("s2")
        await eventually(lambda: _true(len(mesh.shards["s1"].limits) >= 4))
        assert swept_until("s2") == busy, "every slot is taken, and nothing is swept"
        assert busy


async def test_nothing_is_claimed_during_the_grace_after_start(
    mesh: MeshScript, proxy: str, payments: Upstream, trust: Trust
) -> None:
    order_id = mesh.owe("s1")

    async with recovering(proxy, {"payments": payments.target}, trust, startup_grace_s=60) as recovery:
        status = await recovery.ask("GetRecoveryStatus", recovery_pb.GetRecoveryStatusRequest())
        assert [shard.shard for shard in status.shards] == ["s1", "s2"]
        assert mesh.shards["s1"].limits == []
    async with recovering(proxy, {"payments": payments.target}, trust, startup_grace_s=0.1):
        await eventually(lambda: mesh.taken_about(order_id))


async def test_the_death_of_one_shards_loop_is_the_death_of_all(
    mesh: MeshScript, proxy: str, payments: Upstream, trust: Trust
) -> None:
    """The supervisor ends the process then; half a sweep would look alive."""
    async with recovering(proxy, {"payments": payments.target}, trust, sweeping=False) as recovery:
        faults.arm("sweep.after_claim=raise")
        mesh.owe("s1")
        with pytest.raises(LoopDied, match="sweep s1"):
            async with asyncio.timeout(5):
                await recovery.process.sweeps.run()


async def test_what_was_claimed_before_a_stop_is_reported_after_it(
    mesh: MeshScript, proxy: str, payments: Upstream, trust: Trust
) -> None:
    await payments.misbehave("SLOW", duration_s=0.5)
    order_id = mesh.owe("s1")

    async with recovering(proxy, {"payments": payments.target}, trust) as recovery:
        await eventually(lambda: _true(not mesh.shards["s1"].due))
        await recovery.process.sweeps.stop()
        late = mesh.owe("s1")
        await recovery.process.owned.drain(5.0)

    assert set(mesh.taken) == {order_id}
    assert [claim.order.order_id for claim in mesh.shards["s1"].due] == [late]


async def _true(value: bool) -> bool:
    return value
