"""Spans that were taken and are not in Elasticsearch yet: files of lines, so that a kill loses none of them.

A new file is begun when one is large enough; a file is removed when all of it has been passed on. What is on
disk is bounded: more is refused, and whoever sends it comes back.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

FILE_BYTES = 4 * 1024 * 1024


class Spool:
    """Appends lines; one process and one task writes."""

    def __init__(self, directory: Path, *, bytes_max: int, file_bytes: int = FILE_BYTES) -> None:
        directory.mkdir(parents=True, exist_ok=True)
        self._directory = directory
        self._bytes_max = bytes_max
        self._file_bytes = file_bytes
        numbers = [int(path.stem.split("-")[1]) for path in self._paths()]
        # A file that a killed process wrote may end within a line; that one was acknowledged to nobody.
        for path in self._paths():
            _cut_to_lines(path)
        self._number = max(numbers, default=0) + 1
        self._waiting = sum(path.stat().st_size for path in self._paths())

    @staticmethod
    def wanted(name: str) -> bool:
        """Whether a name is a spool's file."""
        return name.startswith("spans-") and name.endswith(".ndjson")

    @property
    def bytes_waiting(self) -> int:
        """What is on disk."""
        return self._waiting

    def add(self, lines: Sequence[bytes]) -> bool:
        """Keep lines; False, and none of them is kept, when there is no room."""
        block = b"".join(line + b"\n" for line in lines)
        if self._waiting + len(block) > self._bytes_max:
            return False
        path = self._current()
        with path.open("ab", buffering=0) as file:
            before = file.tell()
            try:
                is_whole = file.write(block) == len(block)
            except OSError:
                is_whole = False
            if not is_whole:  # The disk is full.
                file.truncate(before)
                return False
            size = before + len(block)
        self._waiting += len(block)
        if size >= self._file_bytes:
            self._number += 1
        return True

    def clear(self, is_passed: Callable[[Path], bool]) -> None:
        """Remove files of which everything is passed on; the one that is written to becomes another one."""
        for path in self._paths():
            if is_passed(path):
                if path == self._current():
                    self._number += 1
                self._waiting -= path.stat().st_size
                path.unlink()

    def _current(self) -> Path:
        return self._directory / f"spans-{self._number:08d}.ndjson"

    def _paths(self) -> list[Path]:
        return sorted(path for path in self._directory.iterdir() if self.wanted(path.name))


def _cut_to_lines(path: Path) -> None:
    """Remove the beginning of a line that has no end."""
    with path.open("r+b") as file:
        whole = file.read().rfind(b"\n") + 1
        file.truncate(whole)
