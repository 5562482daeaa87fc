"""The file of a statement: a zip of its documents, written as the orders come and never whole in memory.

The same orders and the same `as_of` give the same bytes.
"""

from __future__ import annotations

import hashlib
import os
from contextlib import contextmanager
from datetime import UTC
from typing import IO, TYPE_CHECKING
from zipfile import ZIP_DEFLATED, ZipFile, ZipInfo

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from datetime import datetime
    from pathlib import Path

_MODE = 0o100644 << 16
_PIECE_BYTES = 1024 * 1024


class BundleFile:
    """A zip that is being written. Everything here blocks; call it in a thread.

    path:  a file that is not there yet.
    as_of: when the entries say that they were written.
    """

    def __init__(self, path: Path, as_of: datetime) -> None:
        self.path = path
        self._at = as_of.astimezone(UTC)
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        self._file: IO[bytes] = os.fdopen(descriptor, "wb")
        self._zip = ZipFile(self._file, "w", ZIP_DEFLATED)
        self.sha256: dict[str, str] = {}

    @contextmanager
    def entry(self, name: str) -> Iterator[Callable[[bytes], None]]:
        """One entry, as long as the context lives; what to write it with."""
        about = ZipInfo(name, (max(1980, self._at.year), *self._at.timetuple()[1:6]))
        about.compress_type, about.external_attr, about.create_system = ZIP_DEFLATED, _MODE, 3
        digest = hashlib.sha256()
        with self._zip.open(about, "w", force_zip64=True) as sink:

            def write(piece: bytes) -> None:
                digest.update(piece)
                sink.write(piece)

            yield write
        self.sha256[name] = digest.hexdigest()

    def add(self, name: str, body: bytes) -> None:
        """One entry, whole."""
        with self.entry(name) as write:
            write(body)

    def close(self) -> tuple[int, str]:
        """Finish the file; its size and its SHA-256 in hex."""
        self._zip.close()
        self._file.close()
        digest = hashlib.sha256()
        with self.path.open("rb") as whole:
            while piece := whole.read(_PIECE_BYTES):
                digest.update(piece)
        return self.path.stat().st_size, digest.hexdigest()

    def discard(self) -> None:
        """Leave nothing of it."""
        # The zip's own end would be written by its destructor into whatever has the descriptor by then.
        self._zip.fp = None
        self._file.close()
        self.path.unlink(missing_ok=True)
