"""Reads files that grow, line by line, from where it stopped, also after a restart and over rotation.

A file is known by its inode and its first line, not by its name: one that is renamed to `.log.1` is read on
to its end, and a new one of the old name from its beginning. An offset only moves when `passed` says so, and
what it stands at is on disk after `save`.
"""

from __future__ import annotations

import hashlib
import json
import os
from dataclasses import dataclass
from typing import TYPE_CHECKING, BinaryIO

from ops.files import write_public

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence
    from pathlib import Path

LINE_BYTES_MAX = 256 * 1024
"""A longer line is cut into pieces of this size, each a line of its own."""
FILES_MAX = 256
"""Open at once; the stack has a tenth of it."""
FORGOTTEN_MAX = 512
"""Offsets that are kept of files that are gone, since they may come back with a remounted directory."""


@dataclass(frozen=True, slots=True)
class Line:
    """One line: its file by identity and name, where it begins and ends, its bytes without the end."""

    file: str
    name: str
    offset: int
    end: int
    text: bytes

    @property
    def id(self) -> str:
        """Names the line for ever: the same for the same line however often it is read."""
        return f"{self.file}-{self.offset:x}"


@dataclass(slots=True)
class _File:
    handle: BinaryIO
    path: Path
    identity: str
    offset: int


class Tail:
    """Tails the files of a directory. Not for several tasks at once.

    wanted: whether a file of this name is read. offsets: the file that remembers how far.
    """

    def __init__(self, directory: Path, offsets: Path, *, wanted: Callable[[str], bool]) -> None:
        self._directory = directory
        self._offsets_path = offsets
        self._wanted = wanted
        self._offsets: dict[str, int] = _read_offsets(offsets)
        self._files: dict[tuple[int, int], _File] = {}
        self._is_dirty = False

    def read(self, *, bytes_max: int, lines_max: int) -> list[Line]:
        """The next whole lines of all files, each file's in order; a line without its end waits for it.

        Files take turns. The same lines come again until `passed`.
        """
        self.look()
        found: list[Line] = []
        left = bytes_max
        files = list(self._files.items())
        for key, file in files:
            if left <= 0 or len(found) >= lines_max:
                break
            share = max(LINE_BYTES_MAX, left // len(files))
            lines = list(_lines(file, min(share, max(left, LINE_BYTES_MAX)), lines_max - len(found)))
            found += lines
            left -= sum(line.end - line.offset for line in lines)
            if lines:
                self._files[key] = self._files.pop(key)  # To the end of the queue.
        return found

    def passed(self, lines: Sequence[Line]) -> None:
        """These lines are where they should be."""
        ends = {line.file: line.end for line in lines}
        for file in self._files.values():
            if file.identity in ends:
                file.offset = ends[file.identity]
        self._offsets.update(ends)
        self._is_dirty = self._is_dirty or bool(ends)

    def save(self) -> None:
        """Write down how far every file is passed."""
        if not self._is_dirty:
            return
        open_now = {file.identity for file in self._files.values()}
        gone = [identity for identity in self._offsets if identity not in open_now]
        for identity in gone[: max(0, len(gone) - FORGOTTEN_MAX)]:
            del self._offsets[identity]
        write_public(self._offsets_path, json.dumps(self._offsets) + "\n")
        self._is_dirty = False

    def bytes_behind(self) -> int:
        """What the files have beyond what is passed."""
        return sum(
            max(0, os.fstat(file.handle.fileno()).st_size - file.offset) for file in self._files.values()
        )

    def is_at_end_of(self, path: Path) -> bool:
        """Whether everything in a file is passed; false for one that was never read."""
        for file in self._files.values():
            if file.path == path:
                return os.fstat(file.handle.fileno()).st_size == file.offset
        return False

    def close(self) -> None:
        """Let go of the files."""
        for file in self._files.values():
            file.handle.close()
        self._files.clear()

    def look(self) -> None:
        """Open what is new, follow what was renamed, and let go of what is gone and read.

        What is open stays readable when its name is given to another file.
        """
        there: dict[tuple[int, int], Path] = {}
        for path in self._paths():
            try:
                status = path.stat()
            except FileNotFoundError:
                continue
            there[status.st_dev, status.st_ino] = path
        for key, path in there.items():
            known = self._files.get(key)
            if known is not None:
                known.path = path
                if os.fstat(known.handle.fileno()).st_size < known.offset:
                    known.handle.close()  # Begun anew in place.
                    del self._files[key]
            if key not in self._files and len(self._files) < FILES_MAX:
                self._open(key, path)
        for key in [key for key in self._files if key not in there]:
            file = self._files[key]
            if os.fstat(file.handle.fileno()).st_size <= file.offset:
                file.handle.close()
                del self._files[key]

    def _paths(self) -> Iterable[Path]:
        try:
            return sorted(path for path in self._directory.iterdir() if self._wanted(path.name))
        except FileNotFoundError:
            return []

    def _open(self, key: tuple[int, int], path: Path) -> None:
        try:
            handle = path.open("rb", buffering=0)
        except OSError:
            return
        identity = _identity(handle, key)
        if identity is None:  # Without a whole line it has no name yet.
            handle.close()
            return
        offset = self._offsets.get(identity, 0)
        if offset > os.fstat(handle.fileno()).st_size:
            offset = 0  # Begun anew in place, with the same first line.
        self._files[key] = _File(handle, path, identity, offset)


def _identity(handle: BinaryIO, key: tuple[int, int]) -> str | None:
    head = os.pread(handle.fileno(), LINE_BYTES_MAX, 0)
    first, newline, _ = head.partition(b"\n")
    if not newline and len(head) < LINE_BYTES_MAX:
        return None
    return hashlib.sha256(b"%d " % key[1] + first).hexdigest()[:24]


def _lines(file: _File, bytes_max: int, lines_max: int) -> Iterator[Line]:
    chunk = os.pread(file.handle.fileno(), bytes_max, file.offset)
    at, count = 0, 0
    while count < lines_max and at < len(chunk):
        newline = chunk.find(b"\n", at, at + LINE_BYTES_MAX)
        if newline >= 0:
            text, after = chunk[at:newline], newline + 1
        elif len(chunk) - at >= LINE_BYTES_MAX:
            text, after = chunk[at : at + LINE_BYTES_MAX], at + LINE_BYTES_MAX
        else:
            return
        yield Line(file.identity, file.path.name, file.offset + at, file.offset + after, text)
        at, count = after, count + 1


def _read_offsets(path: Path) -> dict[str, int]:
    """What was saved; nothing without such a file, or when it makes no sense: then all is read again."""
    try:
        saved = json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, ValueError):
        return {}
    if not isinstance(saved, dict):
        return {}
    return {str(key): value for key, value in saved.items() if isinstance(value, int) and value >= 0}
