"""`endpoints.json`: what runs, where, and under which pid. Written by the stack alone, read by every
command and test.

It holds the databases' passwords, so it is readable by its owner only. A reader that finds no file, or one
of a stack that is gone, gets a StackDown with the command that helps. A mesh that runs elsewhere is described
by a file that a person wrote, with the state `elsewhere`: commands ask it, and none starts, stops, loads or
damages it.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Literal

from pydantic import BaseModel, ConfigDict, ValidationError

from ops.errors import OpsError
from ops.files import write_private

if TYPE_CHECKING:
    from pathlib import Path

    from chassis.s3.settings import S3Settings

FILE = "endpoints.json"
State = Literal["starting", "ready", "stopping", "stopped", "elsewhere"]


class StackDown(OpsError):
    """No stack runs in the state directory."""


class RunsElsewhere(OpsError):
    """A command for a stack of this machine was given a mesh that runs elsewhere."""


class _Model(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Grpc(_Model):
    """The two doors of shard_proxy: plain text on loopback, empty elsewhere, and mTLS."""

    plain: str = ""
    mtls: str


class Tls(_Model):
    """Files of the identity `ops`, for clients."""

    ca: str
    cert: str
    key: str


class Service(_Model):
    """One process. target: where it serves; pid: 0 while it is being started again, and elsewhere."""

    name: str
    shard: str | None = None
    target: str = ""
    metrics_url: str | None = None
    pid: int = 0


class DatabaseEndpoint(_Model):
    """One database; a shard's name with the roles `shard` and `replica`."""

    role: Literal["control", "shard", "replica", "readmodel"]
    shard: str | None = None
    dsn: str


class Upstream(_Model):
    """One simulated upstream and the SQLite file of its ledger."""

    name: str
    target: str
    ledger: str


class S3(_Model):
    """The S3 server and the bucket in it, with the keys of an identity that may do everything there."""

    url: str
    bucket: str
    access_key: str
    secret_key: str

    def settings(self, **more: float) -> S3Settings:
        """For who opens the bucket; `more` are other fields of the settings."""
        from chassis.s3.settings import S3Settings

        own = {
            "endpoint": self.url,
            "bucket": self.bucket,
            "access_key": self.access_key,
            "secret_key": self.secret_key,
        }
        return S3Settings.model_validate(own | more)


class Endpoints(_Model):
    """Everything that runs."""

    state: State
    stack_pid: int = 0
    gateway: str = ""
    grpc: Grpc
    tls: Tls
    services: tuple[Service, ...] = ()
    databases: tuple[DatabaseEndpoint, ...] = ()
    upstreams: tuple[Upstream, ...] = ()
    issuer: str = ""
    s3: S3 | None = None
    kafka: str | None = None
    elasticsearch: str | None = None
    elasticsearch_api_key: str = ""
    prometheus: str | None = None
    mailbox: str | None = None
    took_s: dict[str, float] = {}
    """How long each part of the start took; `ready` is the whole, and parts run side by side."""

    @classmethod
    def read(cls, state_dir: Path) -> Endpoints:
        """The endpoints of a running stack, or of a mesh elsewhere.

        Raises: StackDown when there is none; OpsError when a description of one elsewhere is wrong.
        """
        found = cls.peek(state_dir)
        if found is not None and found.state == "elsewhere":
            return found
        if found is None or found.state == "stopped" or not _is_alive(found.stack_pid):
            _explain(state_dir)
            raise StackDown(
                f"no stack runs in {state_dir}; start one with `ordermesh dev` (or name another --state-dir)"
            )
        return found

    @classmethod
    def read_here(cls, state_dir: Path) -> Endpoints:
        """The endpoints of a stack that runs on this machine, to be started, stopped, loaded or damaged.

        Raises: StackDown when there is none; RunsElsewhere.
        """
        found = cls.read(state_dir)
        if found.state == "elsewhere":
            raise RunsElsewhere(
                f"{state_dir / FILE} names a mesh that runs elsewhere; this is for a local one"
            )
        return found

    @classmethod
    def peek(cls, state_dir: Path) -> Endpoints | None:
        """What the file says, whether or not anything runs; none without a readable file."""
        try:
            return cls.model_validate_json((state_dir / FILE).read_text(encoding="utf-8"))
        except (FileNotFoundError, ValidationError):
            return None

    def write(self, state_dir: Path) -> None:
        """Replace the file in one step."""
        write_private(state_dir / FILE, self.model_dump_json(indent=2) + "\n")

    def service(self, name: str, shard: str | None = None) -> Service:
        """One process by name.

        Raises: OpsError when the stack has no such process.
        """
        for service in self.services:
            if service.name == name and (shard is None or service.shard == shard):
                return service
        raise OpsError(f"the stack has no process {name!r}{f' of shard {shard!r}' if shard else ''}")

    def shard_dsns(self) -> dict[str, str]:
        """Databases of the shards by name."""
        return {db.shard: db.dsn for db in self.databases if db.role == "shard" and db.shard is not None}

    def shards(self) -> list[str]:
        """Names of the shards, whether their databases are named or only their processes."""
        return sorted({*self.shard_dsns(), *(each.shard for each in self.services if each.shard)})

    def replica_dsns(self) -> dict[str, str]:
        """Databases of the shards' replicas by the shard's name; none without --full."""
        return {db.shard: db.dsn for db in self.databases if db.role == "replica" and db.shard is not None}

    @property
    def control_dsn(self) -> str:
        """The control database.

        Raises: OpsError where it is not named.
        """
        found = next((db.dsn for db in self.databases if db.role == "control"), None)
        if found is None:
            raise OpsError(f"{FILE} names no control database")
        return found


def _explain(state_dir: Path) -> None:
    """Say what is wrong with a description that a person wrote.

    Raises: OpsError.
    """
    try:
        text = (state_dir / FILE).read_text(encoding="utf-8")
    except OSError:
        return
    if '"elsewhere"' not in text:
        return
    try:
        Endpoints.model_validate_json(text)
    except ValidationError as wrong:
        first = wrong.errors()[0]
        where = ".".join(map(str, first["loc"])) or "the file"
        raise OpsError(f"{state_dir / FILE}: {where}: {first['msg']}") from None


def _is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True
