"""How the demo speaks: chapters, commands, what it saw; and what it does when a promise is not kept."""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from ops.errors import OpsError

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable
    from pathlib import Path

    from rich.console import Console

WAIT_S_MAX = 40.0
"""No step of the story takes longer; when one does, the demo fails instead of hanging."""


@dataclass(slots=True)
class Stage:
    """Where the story is told."""

    console: Console
    state_dir: Path
    chapter: int = field(default=0)

    async def until(
        self, what: str, look: Callable[[], Awaitable[Any]], *, within_s: float = WAIT_S_MAX
    ) -> Any:
        """What `look` finds, looked for again and again. Raises: OpsError when the time is over."""
        end = time.monotonic() + within_s
        while True:
            found = await look()
            if found:
                return found
            self.expect(time.monotonic() < end, f"waited {within_s:.0f} s for {what}")
            await asyncio.sleep(0.05)

    def title(self, title: str, about: str) -> None:
        """Begin a chapter."""
        self.chapter += 1
        self.console.print(f"\n[bold]{self.chapter}. {title}[/]  [dim]{about}[/]")

    def say(self, text: str) -> None:
        """Say what was seen."""
        self.console.print(f"   {text}")

    def command(self, text: str) -> None:
        """Show what a person would type."""
        self.console.print(f"   [cyan]$ {text}[/]", soft_wrap=True)

    def expect(self, kept: bool, otherwise: str) -> None:
        """Go on only while promises are kept. Raises: OpsError."""
        if not kept:
            raise OpsError(
                f"the demo failed in chapter {self.chapter}: {otherwise}; see {self.state_dir}/logs"
            )
