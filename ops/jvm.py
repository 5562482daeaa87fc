"""What the real servers on the JVM have in common: their files are bundles of ops.artifacts, Java comes from
its package, and every process carries the mark as a property. How they live and die says ops.owned.
"""

import asyncio
import threading
from pathlib import Path
from typing import ClassVar, Final

from ops import artifacts, places
from ops.owned import OwnedServer

HEAP_MB: Final = 256


class JavaServer(OwnedServer):
    """A server on the JVM with its own data directory, on fixed ports of 127.0.0.1.

    peer_port: where the server talks to itself.
    heap_mb:  the most that Java objects may take; the process takes about 250 MB more.
    quick:    compile less, which starts with a third less work and runs slower afterwards; for tests.
    """

    bundle: ClassVar[str]

    def __init__(
        self, data_dir: Path, port: int, peer_port: int, *, heap_mb: int = HEAP_MB, quick: bool = False
    ) -> None:
        super().__init__(data_dir, port, peer_port)
        self.peer_port = peer_port
        self.heap_mb = heap_mb
        self.quick = quick

    @property
    def mark(self) -> str:
        """The property that every process of this server has, and no other."""
        return f"-Dordermesh.data={self.data_dir}"

    async def _home(self) -> Path:
        return await _fetched(self.bundle)

    def _java(self) -> Path:
        return places.java_home() / "bin" / "java"

    def _compiler(self) -> list[str]:
        return ["-XX:TieredStopAtLevel=1"] if self.quick else []


async def _fetched(bundle: str) -> Path:
    """The bundle's tree, fetched in a thread that ends soon when we are cancelled."""
    stop = threading.Event()
    try:
        return await asyncio.to_thread(artifacts.tree, bundle, stop=stop)
    finally:
        stop.set()
