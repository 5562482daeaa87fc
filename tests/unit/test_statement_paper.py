"""What a statement says for people, and its PDF, read back as text."""

from __future__ import annotations

import hashlib
import io
import subprocess
import sys
from dataclasses import replace
from datetime import date, datetime
from typing import Any

import pypdf
import pytest

from archive_svc.statement.merge import Tally
from archive_svc.statement.paper import Paper, grouped, masked, paper, plain, spans, summary
from archive_svc.statement.pdf_file import rendered
from archive_svc.statement.rendering import pdf_of
from archive_svc.statement.rows import Row
from chassis.errors import InternalError
from tests.papers import AS_OF, wanted
from tests.unit.test_statement_rows import row

TORTURE = (
    "₹ 500 की पुस्तक — हिन्दी साहित्य",
    "বাংলা ক্রম",
    "தமிழ் நூல்",
    "తెలుగు పుస్తకం",
    "كتاب عن النيل",
    "שלום עולם",
    "a \u202eturned\u202c b",
    "🧾👩🏽‍🚀 emoji",
    "e\u0301 combining",
    "two\nlines\tand\r\ntabs",
    "\0nul \x1b[31m",
    "ß" * 512,
    "no_space_" * 60,
    "漢字かな交じり文",
    "{page} {nb} **bold** --it--",
    "",
)


def said_of(rows: list[Row], **options: Any) -> Paper:
    tally = Tally()
    tally.add(rows)
    archived = options.pop("archived", {})
    wish = wanted("user.12345", zone="Asia/Kolkata", **options)
    return paper(wish, tally, rows, archived_rows=len(archived), archived=archived)


def pages(pdf: bytes) -> list[str]:
    return [page.extract_text() for page in pypdf.PdfReader(io.BytesIO(pdf)).pages]


def test_every_text_makes_a_pdf_and_the_next_cells_stay_where_they_are() -> None:
    rows = [row(n, description=text, upstream_ref=text[:40]) for n, text in enumerate(TORTURE)]
    (page,) = pages(rendered(said_of(rows).as_json()))
    for each in rows:
        assert each.order_id in page
    assert page.count("EUR 12.50") == len(rows)
    for word in ("₹", "पुस्तक", "combining", "two lines and tabs", "nul [31m", "emoji", "{page} {nb} **bold**"):
        assert word in page, word
    assert "a turned b" in page, "nothing turns its neighbours round"


def test_a_pdf_tells_the_opening_the_totals_and_every_order_in_pages_that_are_numbered() -> None:
    rows = [row(n, amount_minor=1_234_567, currency_code="JPY", currency_exp=0) for n in range(120)]
    rows.append(row(120, status="FAILED", note="paid by hand"))
    archived = {("s1", date(2023, 8, 1)), ("s1", date(2023, 9, 1)), ("s2", date(2023, 9, 1))}
    said = said_of(rows, archived=archived)
    found = pages(rendered(said.as_json()))
    assert len(found) > 2
    for number, page in enumerate(found, 1):
        assert f"Page {number} of {len(found)}" in page
        assert "Created" in page, "the head is repeated"
    first = found[0]
    for text in ("us***45", "2026-01-31 18:00 +05:30", "Asia/Kolkata", "2023-08 - 2023-09"):
        assert text in first
    assert "user.12345" not in "".join(found)
    assert "148,148,040" in first, "the total of 120 orders in yen, which have no smaller unit"
    whole = "\n".join(found)
    assert all(each.order_id in whole for each in rows)
    assert "[corrected: paid by hand]" in whole
    assert whole.count("JPY 1,234,567") == 120


def test_the_same_paper_gives_the_same_bytes_and_the_other_language_others() -> None:
    rows = [row(n, description=text) for n, text in enumerate(TORTURE)]
    english, again, hindi = (rendered(said_of(rows, locale=each).as_json()) for each in ("en", "en", "hi"))
    assert hashlib.sha256(english).digest() == hashlib.sha256(again).digest()
    assert english != hindi
    assert "पृष्ठ 1 / 1" in pages(hindi)[0]
    created = pypdf.PdfReader(io.BytesIO(english)).metadata
    assert created is not None
    assert created.creation_date == AS_OF


async def test_a_process_of_its_own_writes_the_same_and_a_broken_one_is_told(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    said = said_of([row(1, description="₹ पुस्तक")])
    assert await pdf_of(said) == rendered(said.as_json())
    monkeypatch.setattr("archive_svc.statement.rendering._COMMAND", ("-c", "raise SystemExit(3)"))
    with pytest.raises(InternalError):
        await pdf_of(said)


def test_what_is_no_paper_writes_nothing() -> None:
    ended = subprocess.run(
        [sys.executable, "-m", "archive_svc.statement.pdf_file"],
        input=b"{}",
        capture_output=True,
        timeout=60,
        check=False,
    )
    assert ended.returncode
    assert ended.stdout == b""


def test_a_summary_has_the_totals_and_what_proves_the_other_files() -> None:
    said = replace(said_of([row(1), row(2)]), note="No PDF.")
    text = summary(said, {"orders.csv": "ab" * 32}, locale="en")
    assert "User: us***45\r\n" in text
    assert "Period: 2023-08-01 05:30 +05:30 until before 2023-11-01 05:30 +05:30 (Asia/Kolkata)" in text
    assert "EUR       successful  2       25.00\r\n" in text
    assert f"{'ab' * 32}  orders.csv\r\n" in text
    assert "No PDF." in text
    assert "There are no orders" in summary(said_of([]), {}, locale="en")


@pytest.mark.parametrize(
    ("user_id", "shown"),
    [("user.12345", "us***45"), ("alice", "a***e"), ("ab", "***"), ("a", "***"), ("a.b", "a***b")],
)
def test_a_user_is_masked(user_id: str, shown: str) -> None:
    assert masked(user_id) == shown


def test_small_rules() -> None:
    assert plain(" a\u202e\n\tb\x00\u200dc ") == "a b \u200dc"
    assert grouped(-123456789, 2) == "-1,234,567.89"
    assert grouped(-5, 2) == "-0.05"
    assert grouped(5, 0) == "5"
    months = [date(2023, 11, 1), date(2023, 12, 1), date(2024, 1, 1), date(2024, 3, 1)]
    assert spans(months) == "2023-11 - 2024-01, 2024-03"
    assert spans([]) == ""
    assert datetime.fromtimestamp(said_of([]).written_at, AS_OF.tzinfo) == AS_OF
