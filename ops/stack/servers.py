"""The real servers of one stack. Always an S3. Without --full: two Postgres servers, one for the control
database and one for all shards. With it: one for each shard, a streaming replica of each, Kafka,
Elasticsearch and Prometheus.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from ops import places
from ops.elasticsearch import ElasticsearchServer
from ops.errors import OpsError
from ops.files import write_public
from ops.kafka import KafkaServer
from ops.postgres import PostgresServer
from ops.prometheus import PrometheusServer
from ops.replica import PRIMARY_SETTINGS, PostgresReplica
from ops.seaweedfs import PORTS as SEAWEED_PORTS
from ops.seaweedfs import SeaweedServer
from ops.stack import layout
from ops.stack.units import Server

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from ops.ports import PortBook
    from ops.stack.units import RealServer

Choice = Literal["full", "small"]
_NOT_POSTGRES = ("kafka", "elasticsearch", "s3", "prometheus")


@dataclass(frozen=True, slots=True)
class Servers:
    """What runs besides our own processes.

    shards:   the server of each shard, the same one for all without --full.
    replicas: one for each shard, or none.
    """

    control: PostgresServer
    shards: Mapping[str, PostgresServer]
    replicas: Mapping[str, PostgresReplica]
    s3: SeaweedServer
    kafka: KafkaServer | None = None
    elasticsearch: ElasticsearchServer | None = None
    prometheus: PrometheusServer | None = None

    @classmethod
    def small(cls, state_dir: Path, book: PortBook, *, durable: bool) -> Servers:
        """One server for all shards."""
        control, shards = (
            PostgresServer(_data(state_dir, name), book.port_of(f"postgres.{name}"), durable=durable)
            for name in ("control", "shards")
        )
        return cls(control, dict.fromkeys(layout.ALL_SHARDS, shards), {}, _s3(state_dir, book))

    @classmethod
    def full(cls, state_dir: Path, book: PortBook, *, durable: bool) -> Servers:
        """Everything that production has."""
        shards = {
            name: PostgresServer(
                _data(state_dir, name),
                book.port_of(f"postgres.{name}"),
                durable=durable,
                settings=PRIMARY_SETTINGS,
            )
            for name in layout.ALL_SHARDS
        }
        return cls(
            PostgresServer(_data(state_dir, "control"), book.port_of("postgres.control"), durable=durable),
            shards,
            {
                name: PostgresReplica(
                    _data(state_dir, f"{name}.replica"),
                    book.port_of(f"postgres.{name}.replica"),
                    primary=primary,
                    durable=durable,
                )
                for name, primary in shards.items()
            },
            _s3(state_dir, book),
            KafkaServer(
                _data(state_dir, "kafka"),
                book.port_of("kafka"),
                book.port_of("kafka.controller"),
                quick=not durable,
            ),
            ElasticsearchServer(
                _data(state_dir, "elasticsearch"),
                book.port_of("elasticsearch"),
                book.port_of("elasticsearch.transport"),
                quick=not durable,
            ),
            PrometheusServer(
                _data(state_dir, "prometheus"),
                book.port_of("prometheus"),
                rules=[places.deploy_dir() / "prometheus" / "rules.yml"],
            ),
        )

    def primaries(self) -> list[Server]:
        """The Postgres servers that are written to."""
        by_name: dict[str, RealServer] = {"control": self.control}
        by_name |= self.shards if self.replicas else {"shards": next(iter(self.shards.values()))}
        return [Server(f"postgres.{name}", server) for name, server in by_name.items()]

    def standbys(self) -> list[Server]:
        """The replicas."""
        return [Server(f"postgres.{name}.replica", server) for name, server in self.replicas.items()]


def remember(where: layout.Places, choice: Choice) -> None:
    """Keep to the first choice of a state directory: shards do not move to other servers by themselves.

    Raises: OpsError when the directory holds the other kind of stack.
    """
    before = _before(where)
    if before is not None and before != choice:
        raise OpsError(
            f"{where.state} holds a stack {'with' if before == 'full' else 'without'} --full; "
            f"start it {'with' if before == 'full' else 'without'} the flag, or name another --state-dir"
        )
    if not where.choice.exists():
        write_public(where.choice, choice + "\n")


def _before(where: layout.Places) -> str | None:
    if where.choice.exists():
        return where.choice.read_text(encoding="utf-8").strip()
    # Made before there was a choice.
    return "small" if (where.state / "ports.json").exists() else None


def log_of(state_dir: Path, unit: str) -> Path | None:
    """The log of a server by the name of its unit, such as `postgres.s1.replica`; none for our processes."""
    name = unit.removeprefix("postgres.")
    if name == unit and name not in _NOT_POSTGRES:
        return None
    return _data(state_dir, name).with_name(f"{name}.log")


def _s3(state_dir: Path, book: PortBook) -> SeaweedServer:
    return SeaweedServer(_data(state_dir, "s3"), *(book.port_of(name) for name in SEAWEED_PORTS))


def _data(state_dir: Path, name: str) -> Path:
    return places.data_directory(state_dir, name, kind="servers" if name in _NOT_POSTGRES else "postgres")
