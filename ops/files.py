"""Write small files of the state directory: whole or not at all, and private from their first byte.

Other processes read these files at any moment, so each is written beside its place and then renamed over it.
Fails with OSError; the caller knows which sentence to make of it.
"""

import os
import secrets
from pathlib import Path


def write_private(path: Path, text: str) -> None:
    """Replace a file that only its owner may read."""
    _replace(path, text, 0o600)


def write_public(path: Path, text: str) -> None:
    """Replace a file that everybody may read."""
    _replace(path, text, 0o644)


def _replace(path: Path, text: str, mode: int) -> None:
    partial = path.with_name(f".{path.name}.{secrets.token_hex(4)}.partial")
    descriptor = os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode)
    try:
        with os.fdopen(descriptor, "w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise
