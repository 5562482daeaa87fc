"""How the clients of Kafka and Elasticsearch show who they are and whom they trust, and that no secret is
shown to anybody else.
"""

from __future__ import annotations

import asyncio
import base64
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from chassis.es import EsSettings, EsUnavailable, open_elastic
from chassis.kafka import Cluster, KafkaUnavailable, ensure_topic, open_consumer, open_producer
from chassis.settings import load
from history_svc.projector.settings import ProjectorSettings
from history_svc.settings import HistorySettings
from tests.listeners import Trust

SECRET = "correct horse battery staple"
ANSWER = (
    b"HTTP/1.1 200 OK\r\nX-Elastic-Product: Elasticsearch\r\n"
    b"Content-Type: application/json\r\nContent-Length: 2\r\n\r\n{}"
)
PLAIN = {"TLS_DIR": "x", "SUBJECT_DIR": "x", "PROFILE": "local", "SHARDS": '{"s1": "postgresql://x"}'}


class Nobody:
    def on_revoked(self, partitions: Any) -> None: ...

    def on_assigned(self, partitions: Any) -> None: ...


@dataclass
class Listener:
    """A server by TLS: whom it met, by their certificates, and what these said first."""

    port: int = 0
    callers: list[Any] = field(default_factory=list)
    heard: list[bytes] = field(default_factory=list)

    async def met(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        shown = writer.get_extra_info("peercert") or {"subject": ()}
        self.callers.append(dict(pair[0] for pair in shown["subject"]))
        self.heard.append(await reader.read(4096))
        writer.write(ANSWER)
        writer.close()


@pytest.fixture
def trust(tmp_path: Path) -> Trust:
    return Trust.make(tmp_path)


@asynccontextmanager
async def listening(trust: Trust, directory: Path, *, asks: bool) -> AsyncIterator[Listener]:
    shown = trust.peer()
    (directory / "server.pem").write_bytes(shown.cert + shown.key)
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH, cafile=str(trust.tls / "ca.pem"))
    context.load_cert_chain(directory / "server.pem")
    context.verify_mode = ssl.CERT_REQUIRED if asks else ssl.CERT_OPTIONAL
    listener = Listener()
    server = await asyncio.start_server(listener.met, "127.0.0.1", 0, ssl=context)
    listener.port = server.sockets[0].getsockname()[1]
    async with server:
        yield listener


async def produces(cluster: Cluster) -> None:
    async with open_producer(cluster, name="a"):
        pass


async def consumes(cluster: Cluster) -> None:
    async with open_consumer(cluster, "events", group="g", instance="a", rebalanced=Nobody()):
        pass


async def prepares(cluster: Cluster) -> None:
    await ensure_topic(cluster, "events", partitions=1, replicas=1)


@pytest.mark.parametrize("use", [produces, consumes, prepares])
async def test_each_client_of_kafka_shows_its_certificate_to_brokers_it_trusts_and_to_no_other(
    use: Callable[[Cluster], Awaitable[None]], trust: Trust, tmp_path: Path
) -> None:
    mine = trust.tls / "history_svc"
    other = Trust.make(tmp_path / "other")
    async with listening(trust, tmp_path, asks=True) as broker:
        for authority in (trust, other):
            cluster = Cluster(
                addresses=f"127.0.0.1:{broker.port}",
                tls=True,
                ca_file=authority.tls / "ca.pem",
                cert_file=mine / "cert.pem",
                key_file=mine / "key.pem",
            )
            met = len(broker.callers)
            with pytest.raises(KafkaUnavailable):
                await use(cluster)
            assert bool(len(broker.callers) - met) == (authority is trust)
    assert {caller["commonName"] for caller in broker.callers} == {"history_svc"}


async def test_a_certificate_that_cannot_be_read_is_a_broker_that_is_away(tmp_path: Path) -> None:
    for use in (produces, consumes, prepares):
        with pytest.raises(KafkaUnavailable):
            await use(Cluster(addresses="127.0.0.1:1", tls=True, ca_file=tmp_path / "none.pem"))


def test_a_password_is_proved_by_scram_and_goes_in_plain_by_tls_only() -> None:
    cluster = Cluster(addresses="b:9092", username="mesh", password=SECRET)
    options = cluster.options()
    assert (options["security_protocol"], options["sasl_mechanism"]) == ("SASL_PLAINTEXT", "SCRAM-SHA-512")
    assert (options["sasl_plain_username"], options["sasl_plain_password"]) == ("mesh", SECRET)
    tls = cluster.model_copy(update={"tls": True}).options()
    assert (tls["security_protocol"], tls["ssl_context"].verify_mode) == ("SASL_SSL", ssl.CERT_REQUIRED)
    assert tls["ssl_context"].check_hostname
    assert Cluster(addresses="b:9092").options()["security_protocol"] == "PLAINTEXT"
    assert SECRET not in f"{cluster!r} {cluster}"


async def test_elasticsearch_hears_the_password_or_the_key_from_whom_trusts_it(
    trust: Trust, tmp_path: Path
) -> None:
    basic = base64.b64encode(f"mesh:{SECRET}".encode()).decode()
    async with listening(trust, tmp_path, asks=False) as node:
        address = (f"https://127.0.0.1:{node.port}",)
        ca = trust.tls / "ca.pem"
        for wanted, said in (
            (EsSettings(addresses=address, ca_file=ca, username="mesh", password=SECRET), f"Basic {basic}"),
            (EsSettings(addresses=address, ca_file=ca, api_key=SECRET), f"ApiKey {SECRET}"),
        ):
            async with open_elastic(wanted) as elastic:
                assert await elastic.call("GET", "/") == {}
            assert f"authorization: {said}".lower() in node.heard[-1].decode().lower()
            assert SECRET not in f"{wanted!r} {wanted}"
        heard = len(node.heard)
        async with open_elastic(EsSettings(addresses=address, api_key=SECRET)) as elastic:
            with pytest.raises(EsUnavailable):
                await elastic.call("GET", "/")
        assert len(node.heard) == heard, "it is nobody whom the system trusts"


@pytest.mark.parametrize(
    ("wrong", "because"),
    [
        ({"KAFKA_USERNAME": "mesh"}, "belong together"),
        ({"KAFKA_PASSWORD": SECRET}, "belong together"),
        ({"KAFKA_TLS": "true", "KAFKA_CERT_FILE": "x"}, "belong together"),
        ({"KAFKA_CA_FILE": "x"}, "TLS only"),
        ({"KAFKA_USERNAME": "mesh", "KAFKA_PASSWORD": SECRET, "KAFKA_MECHANISM": "PLAIN"}, "by TLS"),
        ({"ELASTICSEARCH_USERNAME": "mesh", "ELASTICSEARCH": "https://e"}, "belong together"),
        ({"ELASTICSEARCH_API_KEY": SECRET, "ELASTICSEARCH": "http://e"}, "https only"),
        ({"ELASTICSEARCH": f"https://mesh:{SECRET}@e"}, "no password"),
    ],
)
def test_what_would_show_a_secret_or_is_half_a_credential_stops_the_process_without_naming_it(
    wrong: dict[str, str],
    because: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    for name, value in {**PLAIN, **wrong}.items():
        monkeypatch.setenv(f"ORDERMESH_{name}", value)
    with pytest.raises(SystemExit):
        load(ProjectorSettings)
    said = capsys.readouterr().err
    assert because in said
    assert SECRET not in said
    assert len(said.splitlines()) == 1


def test_the_settings_name_every_credential_and_show_no_secret(monkeypatch: pytest.MonkeyPatch) -> None:
    given = {
        "CHANNEL": "kafka",
        "KAFKA": "b:9093",
        "KAFKA_TLS": "true",
        "KAFKA_USERNAME": "mesh",
        "KAFKA_PASSWORD": SECRET,
        "KAFKA_MECHANISM": "PLAIN",
        "READ_MODEL": "elasticsearch",
        "ELASTICSEARCH": "https://e1:9200,https://e2:9200",
        "ELASTICSEARCH_USERNAME": "mesh",
        "ELASTICSEARCH_PASSWORD": SECRET,
    }
    for name, value in {**PLAIN, **given}.items():
        monkeypatch.setenv(f"ORDERMESH_{name}", value)
    projector, history = load(ProjectorSettings), load(HistorySettings)
    assert projector.topics().cluster.options()["sasl_plain_password"] == SECRET
    for elastic in (projector.elastic(), history.elastic()):
        assert elastic.options()["basic_auth"] == ("mesh", SECRET)
    assert SECRET not in f"{projector!r} {history!r} {projector.topics()!r}"
    with pytest.raises(ValidationError):
        Cluster(addresses="b", username="mesh")
