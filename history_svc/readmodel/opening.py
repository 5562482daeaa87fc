"""Which read model the settings name."""

from __future__ import annotations

from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from history_svc.readmodel.port import ReadModel
    from history_svc.settings import ReadSideSettings


@asynccontextmanager
async def opened(settings: ReadSideSettings) -> AsyncIterator[ReadModel]:
    """The read model of the settings; nothing connects before it is needed."""
    raise NotImplementedError
    yield
