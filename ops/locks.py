"""One process at a time, by a lock file: the kernel lets the lock go when its holder dies."""

import fcntl
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

_POLL_S: Final = 0.1


@contextmanager
def only_one(path: Path, check: Callable[[], None]) -> Iterator[None]:
    """Hold the lock of a file while the context lives, waiting for whoever holds it now.

    check: called while waiting; it raises when nobody waits any more or the time is up. Blocking: call it in
    a thread.
    """
    with path.open("w") as lock:
        while True:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                check()
                time.sleep(_POLL_S)
        yield
