"""One real SeaweedFS of the local stack, the tests and the benchmarks: an S3 server in one process.

Master, volume server, filer and S3 in one program, each on two ports of loopback. Objects are append-only
files in the data directory, so a kill loses nothing that was acknowledged. What it owns, and how it lives and
dies, says ops.owned.

    server = SeaweedServer(data_directory(state_dir, "s3", kind="servers"), *(free_port() for _ in PORTS))
    await server.start()
    server.url            # http://127.0.0.1:8333, with server.access_key and server.secret_key
    await server.stop()
"""

import json
import secrets
from collections.abc import Mapping
from pathlib import Path
from typing import Final

import httpx

from ops import places
from ops.owned import HOST, OwnedServer

PORTS: Final = (
    *("s3", "s3.internal", "s3.master", "s3.master.internal"),
    *("s3.volume", "s3.volume.internal", "s3.filer", "s3.filer.internal"),
)
"""What the ports are for, in the order in which the server takes them; clients need the first."""
ACCESS_KEY: Final = "ordermesh"
VOLUME_MB: Final = 128
VOLUMES_MAX: Final = 10_000
"""Said, since it is computed from the free disk otherwise; a volume takes the room of what is in it."""

_ANSWER_TIMEOUT_S: Final = 2.0
_SHUTDOWN_S: Final = 0.5
"""Its own shutdown waits 15 s for streams between its own parts; there is nothing in it to wait for."""


class SeaweedServer(OwnedServer):
    """A SeaweedFS that is all its parts, with one identity that may do everything.

    port_numbers: eight, for what PORTS says.
    """

    title = "SeaweedFS"

    def __init__(self, data_dir: Path, *port_numbers: int) -> None:
        super().__init__(data_dir, *port_numbers)
        self._ports = dict(zip(PORTS, port_numbers, strict=True))
        self.access_key = ACCESS_KEY
        self.secret_key = secrets.token_urlsafe(24)

    @property
    def url(self) -> str:
        """Where clients ask."""
        return f"http://{HOST}:{self.port}"

    @property
    def mark(self) -> str:
        """The option that names the data; the server has one process."""
        return f"-dir={self.data_dir / 'data'}"

    async def stop(self, *, fast_s: float = _SHUTDOWN_S) -> None:
        """Stop the server, whoever started it; what it acknowledged stays. Idempotent."""
        await super().stop(fast_s=min(fast_s, _SHUTDOWN_S))

    async def _home(self) -> Path:
        return places.seaweedfs().parent

    def _configure(self, home: Path) -> None:
        identity = {
            "name": "ordermesh",
            "credentials": [{"accessKey": self.access_key, "secretKey": self.secret_key}],
            "actions": ["Admin", "Read", "Write", "List", "Tagging"],
        }
        self._write_config("s3.json", json.dumps({"identities": [identity]}, indent=2))

    def _command(self, home: Path) -> list[str | Path]:
        ports = self._ports
        return [
            *(home / "weed", "server", self.mark, f"-ip={HOST}", f"-ip.bind={HOST}"),
            *(f"-master.port={ports['s3.master']}", f"-master.port.grpc={ports['s3.master.internal']}"),
            *(f"-master.volumeSizeLimitMB={VOLUME_MB}", "-master.telemetry=false"),
            *(f"-volume.port={ports['s3.volume']}", f"-volume.port.grpc={ports['s3.volume.internal']}"),
            *(f"-volume.max={VOLUMES_MAX}", "-volume.preStopSeconds=0"),
            *("-filer", f"-filer.port={ports['s3.filer']}"),
            f"-filer.port.grpc={ports['s3.filer.internal']}",
            # Relative to the data directory: the path of a socket is 107 bytes at most.
            *("-filer.localSocket=tmp/filer.sock", "-s3.localSocket=tmp/s3.sock"),
            *("-s3", f"-s3.port={ports['s3']}", f"-s3.port.grpc={ports['s3.internal']}"),
            *("-s3.iam=false", "-s3.port.iceberg=0", "-s3.port.lance=0", "-s3.autoCreateBucket=false"),
            f"-s3.config={self.config_dir / 's3.json'}",
        ]

    def _environment(self) -> Mapping[str, str]:
        return {
            "HOME": str(self.data_dir),
            "TMPDIR": str(self.data_dir / "tmp"),
            "GOMEMLIMIT": "256MiB",
            # The first write into a bucket makes its volumes; of seven, six would stay empty.
            "WEED_MASTER_VOLUME_GROWTH_COPY_1": "1",
        }

    async def _answers(self) -> bool:
        """Whether S3 serves, and a volume takes what is written."""
        async with httpx.AsyncClient(timeout=_ANSWER_TIMEOUT_S) as client:
            try:
                health = await client.get(f"{self.url}/healthz")
                master = f"http://{HOST}:{self._ports['s3.master']}"
                place = await client.get(f"{master}/dir/assign")
            except httpx.TransportError:
                return False
        return health.status_code == httpx.codes.OK and place.status_code == httpx.codes.OK
