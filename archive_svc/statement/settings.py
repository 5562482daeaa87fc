"""Settings of statements and of their mails."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path
from typing import Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from archive_svc.statement.asking import Limits
from archive_svc.statement.letter import LetterUnsafe, Stationery, address
from archive_svc.statement.postman import Rounds
from archive_svc.statement.worker import Turns
from chassis.mail import Mailbox, Smtp, SmtpSettings, Transport

USER = "{user_id}"
NOWHERE = "http://127.0.0.1"
"""Where mails link to that nobody is sent."""
MARGIN_S = 30.0
"""Of a mail's lease beyond a try: for the shard's answers, and for a process that was held up."""


class MailSettings(BaseModel):
    """How users hear that their statements are ready. There is no profile service: addresses are made."""

    model_config = ConfigDict(frozen=True)

    smtp: SmtpSettings | None = Field(None, description="The mail server; or none, with a mailbox.")
    mailbox_dir: Path | None = Field(
        None, description="A directory that keeps mails as files in place of sending them, for a laptop."
    )
    sender: str = Field(
        "statements@ordermesh.invalid", description="Whom mails are from; its domain is that of Message-IDs."
    )
    to: str = Field(
        "{user_id}@customers.invalid",
        description="A user's address, with the user's id at `{user_id}` before the `@`.",
    )
    reply_to: str = Field("", description="Whom an answer goes to; empty for the sender.")
    base_url: str = Field(
        "",
        pattern=r"^(https?://[A-Za-z0-9.:\[\]/_-]{1,200})?$",
        description="Mails link to `<base_url>/statements/<id>`, where one logs in; needed with `smtp`.",
    )

    @model_validator(mode="after")
    def _usable(self) -> Self:
        if (self.smtp is None) == (self.mailbox_dir is None):
            raise ValueError("give either smtp or mailbox_dir")
        if self.smtp is not None and not self.base_url:
            raise ValueError("base_url: needed with smtp, since mails link to `<base_url>/statements/<id>`")
        if self.to.partition("@")[0].count(USER) != 1 or self.to.count(USER) != 1:
            raise ValueError(f"to: needs {USER} once, before the @")
        try:
            for each in filter(None, (self.sender, self.to.replace(USER, "u"), self.reply_to)):
                address(each)
        except LetterUnsafe:
            raise ValueError("sender, to, reply_to: plain addresses such as a@example.com") from None
        return self

    def transport(self) -> Transport:
        """What takes the mails."""
        if self.smtp is not None:
            return Smtp(self.smtp)
        assert self.mailbox_dir is not None, "one of them is there"
        return Mailbox(self.mailbox_dir)

    def rounds(self) -> Rounds:
        """How mails are tried: no second try begins before the first one is over for sure."""
        return Rounds(lease=timedelta(seconds=self.smtp.try_s + MARGIN_S)) if self.smtp else Rounds()

    def stationery(self) -> Stationery:
        """What stands on every mail."""
        return Stationery(self.sender, self.to, self.base_url or NOWHERE, self.reply_to)


class StatementSettings(BaseModel):
    """How many statements there may be, and how they are made."""

    model_config = ConfigDict(frozen=True)

    day_max: int = Field(5, ge=1, le=1000, description="Statements that one user may begin in 24 hours.")
    month_max: int = Field(20, ge=1, le=10_000, description="Statements that one user may begin in 30 days.")
    bytes_max: int = Field(
        4 * 1024**3, ge=1024**2, description="What one statement may read from the archive, as estimated."
    )
    keep_days: float = Field(7.0, gt=0, le=90, description="How long a file can be downloaded.")
    pool_size: int = Field(
        4, ge=1, le=32, description="Connections to each shard for what is asked of statements."
    )
    pool_queue: int = Field(128, ge=0, le=256, description="Such questions that may wait for a connection.")
    workers: int = Field(
        2,
        ge=1,
        le=16,
        description="Statements that are made at once, of each shard; one of several is always a small one.",
    )
    large_bytes: int = Field(
        64 * 1024**2,
        ge=1024**2,
        description="What makes a statement a large one: so much to read from the archive, as estimated.",
    )
    lease_s: float = Field(
        30.0, ge=3, le=600, description="How long a process that died keeps a statement from being made."
    )
    attempts_max: int = Field(
        10, ge=1, le=100, description="Tries of a statement before it has failed; ten take some 15 minutes."
    )
    work_dir: Path | None = Field(
        None,
        description="Where files are made before they are stored; on a disk. None for the system's own.",
    )
    csv_bom: bool = Field(True, description="Whether the CSV begins with the mark that spreadsheets know.")
    sweep_s: float = Field(60.0, ge=0.05, le=3600, description="How often expired files are looked for.")

    def limits(self) -> Limits:
        """What users may ask for."""
        return Limits(
            day_max=self.day_max,
            month_max=self.month_max,
            bytes_max=self.bytes_max,
            large_bytes=self.large_bytes,
        )

    def lanes(self) -> list[bool]:
        """Whether each worker of a shard keeps to small statements: one does, where it is not alone."""
        return [number == 0 and self.workers > 1 for number in range(self.workers)]

    def turns(self) -> Turns:
        """How statements are tried."""
        return Turns(
            lease=timedelta(seconds=self.lease_s),
            beat_s=min(2.0, self.lease_s / 3),
            attempts_max=self.attempts_max,
            kept=timedelta(days=self.keep_days),
        )
