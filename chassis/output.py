"""Where lines go: standard output, a whole line with each write, also from several threads.

Whoever starts a process may have sent its output to a file. Told which one, the process moves it aside when
it is long, to the same name with `.1`, and goes on in a new one: with a line for each call a file would fill
a disk. Some older ones are kept, `.2` and on, for whoever ships them and could not for a while.

Where nothing can be written, because the disk is full or nobody reads any more, the line is lost and counted,
and whoever said it goes on: a service that cannot talk still works.
"""

from __future__ import annotations

import errno
import os
import sys
import threading
from contextlib import suppress
from typing import TYPE_CHECKING

from chassis import metrics

if TYPE_CHECKING:
    from pathlib import Path

FILE_BYTES_MAX = 32 * 1024 * 1024
FILES_KEPT = 7
"""Moved aside; with the one that is written a quarter of a GiB for each process."""
_OUT, _ERR = 1, 2


class Output:
    """Standard output. file: what it is, when it is to be moved aside; None leaves it alone."""

    def __init__(
        self, file: Path | None = None, *, bytes_max: int = FILE_BYTES_MAX, kept: int = FILES_KEPT
    ) -> None:
        self._file = file
        self._bytes_max = bytes_max
        self._kept = kept
        self._lock = threading.Lock()
        self._is_torn = False
        self._is_open = sys.__stdout__ is not None
        self._size = 0
        if file is not None:
            with suppress(OSError):
                self._size = os.fstat(_OUT).st_size

    def line(self, line: bytes) -> None:
        """Write a line and its end; one that cannot be written is lost, and counted. Raises: nothing."""
        with self._lock:
            try:
                self._write(line + b"\n")
            except OSError:
                metrics.LINES_LOST.inc()
                return
            if self._file is not None and self._size >= self._bytes_max:
                self._move_aside(self._file)

    # What structlog calls, by the severity.
    debug = info = warning = error = critical = line

    def _write(self, left: bytes) -> None:
        """Write all of it. Past the buffer of `sys.stdout`: what failed there would be written later."""
        if not self._is_open:
            # Whatever has that number by now is somebody else's: a connection, or a file of ours.
            raise OSError(errno.EBADF, os.strerror(errno.EBADF))
        if self._is_torn:
            left = b"\n" + left
        while left:
            written = os.write(_OUT, left)
            self._size += written
            left = left[written:]
            self._is_torn = bool(left)

    def _move_aside(self, file: Path) -> None:
        """Begin a new file; with no such file, or no right to, go on in the old one for good."""
        try:
            ours = os.fstat(_OUT)
            if not os.path.samestat(ours, file.stat()):
                raise FileNotFoundError(file)
            for number in range(self._kept - 1, 0, -1):
                with suppress(FileNotFoundError):
                    aside(file, number).replace(aside(file, number + 1))
            file.replace(aside(file, 1))
            fresh = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
        except OSError:
            self._file = None
            return
        if os.path.samestat(ours, os.fstat(_ERR)):
            os.dup2(fresh, _ERR)
        os.dup2(fresh, _OUT)
        os.close(fresh)
        self._size = 0


def aside(file: Path, number: int) -> Path:
    """Where the file is that was moved aside as the last one, the last but one, and so on from 1."""
    return file.with_name(f"{file.name}.{number}")
