"""Settings of mails: one way out, addresses that can be written to, and links that lead somewhere."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from archive_svc.statement.letter import Stationery
from archive_svc.statement.settings import MailSettings, StatementSettings
from chassis.mail import _QUIT_S, Mailbox, Smtp

BOX = {"mailbox_dir": "mails"}
SMTP: dict[str, Any] = {"smtp": {"host": "mail.invalid"}, "base_url": "https://shop.invalid"}


def test_mails_go_out_by_smtp_or_into_a_mailbox() -> None:
    assert isinstance(MailSettings.model_validate(BOX).transport(), Mailbox)
    over_smtp = MailSettings.model_validate(SMTP)
    assert isinstance(over_smtp.transport(), Smtp)
    assert over_smtp.smtp is not None
    assert over_smtp.smtp.security == "starttls"
    assert over_smtp.stationery() == Stationery(
        "statements@ordermesh.invalid", "{user_id}@customers.invalid", "https://shop.invalid"
    )
    assert MailSettings(mailbox_dir=Path("mails")).mailbox_dir == Path("mails")


@pytest.mark.parametrize("send_s", [math.ulp(0.0), 1.0, None, 300.0])
def test_a_try_is_over_before_another_one_may_begin(send_s: float | None) -> None:
    """From the smallest to the largest that is taken; a try ends by the mail server being left, too."""
    changes = {} if send_s is None else {"send_s": send_s}
    mail = MailSettings.model_validate({**SMTP, "smtp": {**SMTP["smtp"], **changes}})
    assert mail.smtp is not None
    assert mail.rounds().lease.total_seconds() > mail.smtp.send_s + _QUIT_S + 10
    with pytest.raises(ValidationError):
        MailSettings.model_validate(
            {**SMTP, "smtp": {**SMTP["smtp"], "send_s": math.nextafter(300.0, 301.0)}}
        )


def test_mails_that_are_sent_link_to_a_place_that_somebody_named() -> None:
    with pytest.raises(ValidationError, match="base_url: needed with smtp"):
        MailSettings.model_validate({"smtp": SMTP["smtp"]})


@pytest.mark.parametrize(
    "wrong",
    [
        {"mailbox_dir": None},
        {**BOX, **SMTP},
        {**BOX, "to": "everybody@customers.invalid"},
        {**BOX, "to": "{user_id}@{user_id}.invalid"},
        {**BOX, "to": "a@{user_id}.invalid"},
        {**BOX, "to": "{user_id}"},
        {**BOX, "sender": "a@b\r\nBcc: c@d.e"},
        {**BOX, "sender": "a@b, c@d"},
        {**BOX, "reply_to": "=?utf-8?q?a?=@b.c"},
        {**BOX, "base_url": "javascript:alert(1)"},
        {**BOX, "base_url": "https://a b"},
    ],
)
def test_what_cannot_be_a_mail_is_refused_at_start(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        MailSettings.model_validate(wrong)


def test_one_worker_keeps_to_small_statements_and_all_others_make_any() -> None:
    assert StatementSettings().lanes() == [True, False]
    assert StatementSettings(workers=1).lanes() == [False]
    assert StatementSettings(workers=4).lanes() == [True, False, False, False]


def test_a_living_worker_speaks_well_before_its_lease_is_over() -> None:
    for lease_s in (3.0, 30.0, 600.0):
        turns = StatementSettings(lease_s=lease_s).turns()
        assert turns.beat_s <= turns.lease.total_seconds() / 3
