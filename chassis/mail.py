"""Mails on their way out: over SMTP, or into a directory where people of a laptop can read them.

Sending is at least once: who gets no answer sends again, with the same Message-ID. A refusal says whether
another try may help. Nothing here makes letters; see who does for what may stand in them.
"""

from __future__ import annotations

import asyncio
import os
import ssl
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal, Protocol

import aiosmtplib
from pydantic import BaseModel, ConfigDict, Field, SecretStr

if TYPE_CHECKING:
    from collections.abc import Iterator

NOTE_CHARS_MAX = 300
_QUIT_S = 2.0


class SmtpSettings(BaseModel):
    """One mail server that takes our mails."""

    model_config = ConfigDict(frozen=True)

    host: str = Field(min_length=1, max_length=253, description="Name or address of the mail server.")
    port: int = Field(587, ge=1, le=65_535, description="Its port.")
    security: Literal["starttls", "tls", "none"] = Field(
        "starttls", description="How the connection is protected; `none` only for a server on this machine."
    )
    username: str = Field("", max_length=256, description="Who we are there; empty to say nothing.")
    password: SecretStr = Field(SecretStr(""), description="Password of the user name.")
    ca_file: Path | None = Field(None, description="Whom to trust, when not the system's list.")
    helo: str = Field("ordermesh.invalid", max_length=253, description="What we call ourselves.")
    send_s: float = Field(30.0, gt=0, le=300, description="How long sending one mail may take in all.")

    @property
    def try_s(self) -> float:
        """How long one try may take: until the mail is taken, and then until both are gone."""
        return self.send_s + _QUIT_S


@dataclass(frozen=True, slots=True)
class Letter:
    """A mail as it is sent. sender, to: bare addresses. name: of a file, the same each time it is sent."""

    name: str
    sender: str
    to: str
    body: bytes


class NotSent(Exception):
    """A mail was not taken, or nobody knows. may_pass: whether another try may help. note: for people."""

    def __init__(self, note: str, *, may_pass: bool) -> None:
        super().__init__(note)
        self.note = "".join(each if each.isprintable() else " " for each in note)[:NOTE_CHARS_MAX]
        self.may_pass = may_pass


class Transport(Protocol):
    """Takes mails."""

    async def send(self, letter: Letter) -> None:
        """Hand a mail over. If cancelled here: it may be on its way. Raises: NotSent."""
        ...


class Smtp:
    """Sends each mail over a connection of its own: there are few, and none is kept open for nothing."""

    def __init__(self, settings: SmtpSettings) -> None:
        self._settings = settings

    async def send(self, letter: Letter) -> None:
        """Hand a mail to the server. If cancelled here: it may be on its way. Raises: NotSent."""
        client: aiosmtplib.SMTP | None = None
        try:
            client = self._client()
            async with asyncio.timeout(self._settings.send_s):
                await self._connect(client)
                await client.sendmail(letter.sender, [letter.to], letter.body)
            # The server has the mail; how the connection ends changes nothing.
            with suppress(aiosmtplib.SMTPException, OSError, TimeoutError):
                async with asyncio.timeout(_QUIT_S):
                    await client.quit()
        except (aiosmtplib.SMTPException, OSError, TimeoutError, ValueError) as failed:
            raise _not_sent(failed) from failed
        finally:
            if client is not None:
                client.close()

    async def _connect(self, client: aiosmtplib.SMTP) -> None:
        """Be let in. Whatever is wrong here is about us and not about the mail, so it may pass."""
        try:
            await client.connect()
            if self._settings.username:
                await client.login(self._settings.username, self._settings.password.get_secret_value())
        except aiosmtplib.SMTPResponseException as refused:
            raise NotSent(f"{refused.code} {refused.message}", may_pass=True) from refused

    def _client(self) -> aiosmtplib.SMTP:
        settings = self._settings
        is_plain = settings.security == "none"
        return aiosmtplib.SMTP(
            hostname=settings.host,
            port=settings.port,
            local_hostname=settings.helo,
            timeout=settings.send_s,
            use_tls=settings.security == "tls",
            start_tls=settings.security == "starttls",
            tls_context=None if is_plain else ssl.create_default_context(cafile=_text(settings.ca_file)),
        )


class Mailbox:
    """Keeps mails as `.eml` files in a directory; one that is sent again is the same file."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory

    async def send(self, letter: Letter) -> None:
        """Keep a mail. Idempotent. Raises: NotSent."""
        try:
            await asyncio.to_thread(self._write, letter)
        except OSError as failed:
            raise NotSent(f"{type(failed).__name__}: {failed.strerror}", may_pass=True) from failed

    def _write(self, letter: Letter) -> None:
        self._directory.mkdir(parents=True, exist_ok=True)
        partial = self._directory / f".{letter.name}.{os.getpid()}"
        partial.write_bytes(letter.body)
        partial.replace(self._directory / f"{letter.name}.eml")


def kept(directory: Path) -> Iterator[Path]:
    """The mails of a mailbox, the oldest first."""
    found = [(path.stat().st_mtime_ns, path) for path in directory.glob("*.eml")]
    return (path for _, path in sorted(found))


def _not_sent(failed: Exception) -> NotSent:
    """What a failure means: 5xx about this mail is final, everything else may pass."""
    if isinstance(failed, NotSent):
        return failed
    if isinstance(failed, aiosmtplib.SMTPRecipientsRefused) and failed.recipients:
        failed = failed.recipients[0]
    if isinstance(failed, aiosmtplib.SMTPResponseException):
        return NotSent(f"{failed.code} {failed.message}", may_pass=not 500 <= failed.code < 600)
    # An address that cannot even be written into a command stays so.
    is_ours = isinstance(failed, ValueError)
    return NotSent(f"{type(failed).__name__}: {failed}", may_pass=not is_ours)


def _text(path: Path | None) -> str | None:
    return None if path is None else str(path)
