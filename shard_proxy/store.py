"""Where the map comes from: the control database, and a file for when that is gone.

The file is replaced whole and carries a checksum; one that does not match it is as good as none.
"""

from __future__ import annotations

import hashlib
import json
import os
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import structlog

from chassis import pg
from chassis.store_spans import traced
from shard_proxy.domain import MapSnapshot, Owner, Shard, VipUser

if TYPE_CHECKING:
    from collections.abc import Mapping

log = structlog.get_logger("map")
_QUERIES = pg.queries("shard_proxy")
READ_TIMEOUT_S = 1.0
"""A control database that needs longer is treated as gone; the map that we have serves on."""
_FORMAT = "ordermesh-map-1"


@traced
class MapStore:
    """The map in the control database."""

    def __init__(self, control: pg.Database) -> None:
        self._control = control

    async def version(self) -> int:
        """The map's version. Raises: ShardUnavailable, DeadlineExceeded, Overloaded."""
        return int(await self._control.fetchval(_QUERIES.map_version, timeout_s=READ_TIMEOUT_S))

    async def read(self) -> MapSnapshot:
        """The whole map, all of one version. Raises: as `version`."""
        row = await self._control.fetchrow(_QUERIES.whole_map, timeout_s=READ_TIMEOUT_S)
        assert row is not None, "map_head always has its row"
        return snapshot_of(dict(row))


class MapFile:
    """The last good map on this machine's disk."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def save(self, map_: MapSnapshot) -> None:
        """Replace the file; a reader, or a process that dies here, finds the old or the new one whole.

        Raises: OSError.
        """
        body = json.dumps(_plain(map_), separators=(",", ":")).encode()
        self._path.parent.mkdir(parents=True, exist_ok=True)
        partial = self._path.with_name(f".{self._path.name}.{os.getpid()}")
        with partial.open("wb") as file:
            file.write(f"{_FORMAT} {hashlib.sha256(body).hexdigest()}\n".encode() + body)
            file.flush()
            os.fsync(file.fileno())
        partial.replace(self._path)

    def load(self) -> MapSnapshot | None:
        """The saved map; None, with a line in the log, when there is none that is whole."""
        try:
            head, _, body = self._path.read_bytes().partition(b"\n")
        except FileNotFoundError:
            log.info("map_file_missing", path=str(self._path))
            return None
        except OSError as unreadable:
            log.error("map_file_unreadable", path=str(self._path), error=type(unreadable).__name__)
            return None
        if head.decode("ascii", "replace") != f"{_FORMAT} {hashlib.sha256(body).hexdigest()}":
            log.error("map_file_corrupt", path=str(self._path))
            return None
        return snapshot_of(json.loads(body))


def snapshot_of(plain: Mapping[str, Any]) -> MapSnapshot:
    """A snapshot from plain values, as the statement gives and the file holds them."""
    read_at = plain["read_at"]
    return MapSnapshot(
        version=int(plain["version"]),
        shards={row[0]: Shard(*row) for row in plain["shards"]},
        services=dict(plain["services"]),
        owners={bucket: Owner(shard, epoch) for bucket, shard, epoch in plain["owners"]},
        vips={
            user_id: VipUser(user_id, tuple(buckets), datetime.fromtimestamp(float(since), UTC))
            for user_id, buckets, since in plain["vips"]
        },
        ever={user_id: tuple(buckets) for user_id, buckets in plain["ever"]},
        read_at=read_at if isinstance(read_at, datetime) else datetime.fromisoformat(read_at),
    )


def _plain(map_: MapSnapshot) -> dict[str, Any]:
    return {
        "version": map_.version,
        "read_at": map_.read_at.isoformat(),
        "shards": [[s.name, s.vip, s.lane_target, s.history_target, s.state] for s in map_.shards.values()],
        "services": [[service, target] for service, target in map_.services.items()],
        "owners": [[bucket, owner.shard, owner.epoch] for bucket, owner in map_.owners.items()],
        "vips": [[vip.user_id, list(vip.buckets), vip.since.timestamp()] for vip in map_.vips.values()],
        "ever": [[user_id, list(buckets)] for user_id, buckets in map_.ever.items()],
    }
