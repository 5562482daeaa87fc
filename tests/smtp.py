"""A mail server in the test's own process, which does what the test says."""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

CUT, SILENT = "", "silent"
_USUAL = {
    "CONNECT": "220 here",
    "EHLO": "250 hello",
    "QUIT": "221 bye",
    "DATA": "354 go on",
    ".": "250 taken",
}


@dataclass
class MailServer:
    """Takes mails.

    answers: what is said in place of the usual, one a time, by command; CONNECT before any, `.` after a mail.
             CUT ends the connection, SILENT says nothing until the server ends.
    taken:   every mail that came, whole; unless it was refused with 4xx or 5xx, the server has it.
    """

    port: int = 0
    answers: dict[str, list[str]] = field(default_factory=lambda: defaultdict(list))
    taken: list[bytes] = field(default_factory=list)
    commands: list[str] = field(default_factory=list)
    _end: asyncio.Event = field(default_factory=asyncio.Event)

    @classmethod
    @asynccontextmanager
    async def serving(cls) -> AsyncIterator[MailServer]:
        made = cls()
        server = await asyncio.start_server(made._talk, "127.0.0.1", 0)
        made.port = server.sockets[0].getsockname()[1]
        try:
            yield made
        finally:
            made._end.set()
            server.close()
            await server.wait_closed()

    async def _talk(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            if await self._says(writer, "CONNECT") is None:
                return
            while line := (await reader.readline()).decode().strip():
                self.commands.append(line)
                command = line.split(" ")[0].upper()
                said = await self._says(writer, command)
                if said is None or command == "QUIT":
                    return
                if said.startswith("354") and not await self._takes(reader, writer):
                    return
        except (ConnectionError, asyncio.IncompleteReadError):
            return
        finally:
            writer.close()

    async def _takes(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        """A mail; whether the conversation goes on."""
        body = await reader.readuntil(b"\r\n.\r\n")
        refusals = self.answers["."][:1]
        if not refusals or refusals[0][:1] not in ("4", "5"):
            self.taken.append(body[:-3])
        return await self._says(writer, ".") is not None

    async def _says(self, writer: asyncio.StreamWriter, command: str) -> str | None:
        """Answer a command; None when the connection is to end."""
        waiting = self.answers[command]
        answer = waiting.pop(0) if waiting else _USUAL.get(command, "250 ok")
        if answer == SILENT:
            await self._end.wait()
        if answer in (CUT, SILENT):
            return None
        writer.write(f"{answer}\r\n".encode())
        await writer.drain()
        return answer
