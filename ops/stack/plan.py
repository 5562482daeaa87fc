"""Which processes the local stack has and what each is told: ports, settings, places. Pure but for the port
book and the passwords of the servers.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from ops.ports import HOST
from ops.prometheus import Target
from ops.stack import layout, objects
from ops.stack.endpoints import DatabaseEndpoint, Endpoints, Grpc, Service, State, Tls, Upstream
from ops.stack.units import Process

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from ops.ports import EdgePorts, PortBook
    from ops.stack.servers import Servers
    from ops.stack.units import Server

PORT_NAMES = (
    *("issuer", "shard_proxy.admin", "gateway.admin", "shipper", "shipper.admin"),
    *(
        f"{name}{suffix}"
        for name in ("history_svc", "projector", "recovery_svc", "archive_svc")
        for suffix in ("", ".admin")
    ),
    *(f"order_svc.{shard}{suffix}" for shard in layout.ALL_SHARDS for suffix in ("", ".admin")),
    *(f"upstream.{name}{suffix}" for name in layout.UPSTREAMS for suffix in ("", ".admin")),
)


@dataclass(slots=True)
class Plan:
    """The processes of one stack.

    extra:    environment of single processes, for tests.
    dsns:     addresses of the databases `control`, `s1`, `s2`, `v1`, once they are known.
    replicas: addresses of the shards' replicas, by shard; none without --full.
    read_model_dsn: address of the read model's own database; empty with --full, where it is Elasticsearch.
    """

    places: layout.Places
    edge: EdgePorts
    book: PortBook
    servers: Servers
    extra: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    dsns: dict[str, str] = field(default_factory=dict)
    replicas: dict[str, str] = field(default_factory=dict)
    read_model_dsn: str = ""

    def address(self, name: str) -> str:
        """Where a process listens."""
        return f"{HOST}:{self.book.port_of(name)}"

    def processes(self) -> list[Process]:
        """Every service that needs nothing but the primaries, in no particular order."""
        return [
            *self._shipper(),
            self._issuer(),
            *(self._upstream(name) for name in layout.UPSTREAMS),
            *(self._order_svc(shard) for shard in layout.ALL_SHARDS),
            self._recovery_svc(),
            self._archive_svc(),
            self._shard_proxy(),
            self._gateway(),
        ]

    def readers(self) -> list[Process]:
        """The read side, which needs every server."""
        return [self._history_svc(), self._projector()]

    def targets(self) -> list[Target]:
        """Whom Prometheus asks: every process that serves metrics, known before any of them runs."""
        admins = [name.removesuffix(".admin") for name in PORT_NAMES if name.endswith(".admin")]
        return [
            Target(
                service=name.partition(".")[0],
                name=name,
                address=self.address(f"{name}.admin"),
                shard=name.partition(".")[2] if name.startswith("order_svc.") else None,
            )
            for name in admins
        ]

    def lanes(self) -> dict[str, str]:
        """Address of each shard's order_svc."""
        return {shard: self.address(f"order_svc.{shard}") for shard in layout.ALL_SHARDS}

    def endpoints(
        self, state: State, stack_pid: int, units: Sequence[Process | Server], took_s: dict[str, float]
    ) -> Endpoints:
        """What endpoints.json says now."""
        tls, servers = self.places.tls, self.servers
        return Endpoints(
            state=state,
            stack_pid=stack_pid,
            gateway=f"http://{HOST}:{self.edge.rest}",
            grpc=Grpc(plain=f"{HOST}:{self.edge.plain}", mtls=f"{HOST}:{self.edge.mtls}"),
            tls=Tls(ca=str(tls / "ca.pem"), cert=str(tls / "ops/cert.pem"), key=str(tls / "ops/key.pem")),
            services=tuple(self._service(unit) for unit in units),
            databases=tuple(self._databases()),
            upstreams=tuple(
                Upstream(
                    name=name, target=self.address(f"upstream.{name}"), ledger=str(self.places.ledger(name))
                )
                for name in layout.UPSTREAMS
            ),
            issuer=f"http://{self.address('issuer')}",
            s3=objects.endpoint(servers.s3),
            kafka=servers.kafka.address if servers.kafka else None,
            elasticsearch=servers.elasticsearch.url if servers.elasticsearch else None,
            prometheus=servers.prometheus.url if servers.prometheus else None,
            took_s=dict(took_s),
        )

    def _databases(self) -> Iterator[DatabaseEndpoint]:
        for name, dsn in self.dsns.items():
            if name == "control":
                yield DatabaseEndpoint(role="control", dsn=dsn)
            else:
                yield DatabaseEndpoint(role="shard", shard=name, dsn=dsn)
        for shard, dsn in self.replicas.items():
            yield DatabaseEndpoint(role="replica", shard=shard, dsn=dsn)
        if self.read_model_dsn:
            yield DatabaseEndpoint(role="readmodel", dsn=self.read_model_dsn)

    def _service(self, unit: Process | Server) -> Service:
        if isinstance(unit, Process):
            return Service(
                name=unit.service if unit.shard else unit.name,
                shard=unit.shard,
                target=unit.target,
                metrics_url=f"{unit.admin_url}/metrics" if unit.admin_url else None,
                pid=unit.pid,
            )
        return Service(name=unit.name, target=unit.target, pid=unit.pid)

    def _process(
        self,
        name: str,
        module: str,
        environment: Mapping[str, str],
        *,
        listen: str | None = None,
        shard: str | None = None,
    ) -> Process:
        target = listen or self.address(name)
        admin = self.address(f"{name}.admin")
        settings = {
            "LISTEN": target,
            "ADMIN_LISTEN": admin,
            "TLS_DIR": str(self.places.tls),
            "SUBJECT_DIR": str(self.places.subject),
            "PROFILE": "local",
            "LOG_FILE": str(self.places.log(name)),
            "DRAIN_S": "2",
            **self._tracing(),
            "FAULTS_FIRED": str(self.places.faults_fired),
            **environment,
            **self.extra.get(name, {}),
        }
        return Process(
            name=name,
            module=module,
            environment={f"ORDERMESH_{key}": value for key, value in settings.items()},
            log_path=self.places.log(name),
            target=target,
            admin_url=f"http://{admin}",
            shard=shard,
        )

    def _tracing(self) -> dict[str, str]:
        """Every call is traced where there is something to find it with: any order may be asked about."""
        if self.servers.elasticsearch is None:
            return {"TRACE_RATIO": "0"}
        endpoint = f"http://{self.address('shipper')}/v1/traces"
        # Somebody looks at the order that was just made.
        return {"TRACE_RATIO": "1", "OTLP_ENDPOINT": endpoint, "TRACE_EXPORT_S": "0.5"}

    def _shipper(self) -> list[Process]:
        """Who carries lines and spans to Elasticsearch, if there is one; it waits for that itself."""
        if self.servers.elasticsearch is None:
            return []
        environment = {
            "ELASTICSEARCH": self.servers.elasticsearch.url,
            "LOGS_DIR": str(self.places.logs),
            "SHIPPER_DIR": str(self.places.shipper),
        }
        return [self._process("shipper", "ops.shipper", environment)]

    def _issuer(self) -> Process:
        environment = {
            "ORDERMESH_LISTEN": self.address("issuer"),
            "ORDERMESH_ISSUER_DIR": str(self.places.issuer),
        }
        return Process("issuer", "ops.issuer", environment, self.places.log("issuer"), self.address("issuer"))

    def _upstream(self, name: str) -> Process:
        environment = {
            "UPSTREAM_NAME": name,
            "LEDGER": str(self.places.ledger(name)),
            "IDEMPOTENT": str(layout.IDEMPOTENT[name]).lower(),
        }
        return self._process(f"upstream.{name}", "ops.upstream", environment)

    def _upstream_targets(self) -> str:
        return json.dumps({name: self.address(f"upstream.{name}") for name in layout.UPSTREAMS})

    def _order_svc(self, shard: str) -> Process:
        environment = {
            "SHARD": shard,
            "DSN": self.dsns[shard],
            "UPSTREAM_TARGETS": self._upstream_targets(),
        }
        return self._process(f"order_svc.{shard}", "order_svc", environment, shard=shard)

    def _history_svc(self) -> Process:
        return self._process("history_svc", "history_svc", self._read_side())

    def _projector(self) -> Process:
        partitions = layout.TOPICS[layout.EVENTS_TOPIC]
        here = {
            "INSTANCE": "projector",
            "TOPIC_REPLICAS": "1",
            "TOPIC_PARTITIONS": str(partitions),
            "CARE_EVERY_S": "1",
            "RETIRED_GRACE_S": "30",
        }
        return self._process("projector", "history_svc.projector", {**self._read_side(), **here})

    def _read_side(self) -> dict[str, str]:
        """What both processes of the read side are told: the shards, and what is behind each port."""
        shards = self._shards()
        kafka, elasticsearch = self.servers.kafka, self.servers.elasticsearch
        if kafka is None or elasticsearch is None:
            return {
                "SHARDS": shards,
                "CHANNEL": "outbox",
                "READ_MODEL": "postgres",
                "READ_MODEL_DSN": self.read_model_dsn,
            }
        return {
            "SHARDS": shards,
            "REPLICAS": json.dumps(self.replicas),
            "CHANNEL": "kafka",
            "KAFKA": kafka.address,
            "READ_MODEL": "elasticsearch",
            "ELASTICSEARCH": elasticsearch.url,
        }

    def _recovery_svc(self) -> Process:
        environment = {
            "PROXY_TARGET": f"{HOST}:{self.edge.mtls}",
            "UPSTREAMS": self._upstream_targets(),
        }
        return self._process("recovery_svc", "recovery_svc", environment)

    def _archive_svc(self) -> Process:
        where = objects.endpoint(self.servers.s3)
        bucket = {
            "endpoint": where.url,
            "bucket": where.bucket,
            "access_key": where.access_key,
            "secret_key": where.secret_key,
        }
        mail = {
            "mailbox_dir": str(self.places.mails),
            "base_url": f"http://{HOST}:{self.edge.rest}",
        }
        environment = {
            "SHARDS": self._shards(),
            "PROXY_TARGET": f"{HOST}:{self.edge.mtls}",
            "S3": json.dumps(bucket),
            "MAIL": json.dumps(mail),
        }
        return self._process("archive_svc", "archive_svc", environment)

    def _shards(self) -> str:
        return json.dumps({shard: self.dsns[shard] for shard in layout.ALL_SHARDS})

    def _shard_proxy(self) -> Process:
        environment = {
            "DSN": self.dsns["control"],
            "PLAIN_LISTEN": f"{HOST}:{self.edge.plain}",
            "MAP_FILE": str(self.places.map_copy()),
            "JWKS_URL": f"http://{self.address('issuer')}/.well-known/jwks.json",
        }
        return self._process("shard_proxy", "shard_proxy", environment, listen=f"{HOST}:{self.edge.mtls}")

    def _gateway(self) -> Process:
        environment = {
            "MESH_TARGET": f"{HOST}:{self.edge.mtls}",
            "JWKS_URL": f"http://{self.address('issuer')}/.well-known/jwks.json",
            "JWKS_FILE": str(self.places.state / "gateway" / "jwks.json"),
        }
        return self._process("gateway", "gateway", environment, listen=f"{HOST}:{self.edge.rest}")
