"""Statements made of a real shard and an S3, as files: what is in them, and what failures leave."""

from __future__ import annotations

import asyncio
import csv
import hashlib
import io
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from dataclasses import replace
from pathlib import Path
from zipfile import ZipFile
from zoneinfo import ZoneInfo

import pypdf
import pytest

from archive_svc.errors import StatementIncomplete, UnknownShard
from archive_svc.lifecycle import State
from archive_svc.statement import maker as making
from archive_svc.statement.csv_file import BOM, header, lines
from archive_svc.statement.maker import StatementMaker
from archive_svc.statement.wish import CSV, PDF, Progress, Total
from chassis.placement import Held
from chassis.testing import eventually
from tests.archiving import AUGUST, SEPTEMBER, Archive, fill, opened
from tests.buckets import Place
from tests.conftest import DatabaseFactory
from tests.inprocess_s3 import InProcessS3
from tests.papers import known_rows, reader, wanted

USERS = ("user.a", "user.b", "user.c")
BOTH = (CSV, PDF)


@pytest.fixture
async def archive(shard_database: DatabaseFactory) -> AsyncIterator[Archive]:
    async with AsyncExitStack() as stack:
        server = await stack.enter_async_context(InProcessS3.serving())
        ready = await stack.enter_async_context(opened(await shard_database(), Place.of(server)))
        await fill(ready.database, 150, AUGUST, seed=1, users=USERS)
        await fill(ready.database, 60, SEPTEMBER, seed=2, users=USERS)
        yield ready


def maker(archive: Archive, folder: Path, *, bom: bool = False) -> StatementMaker:
    return StatementMaker({"s1": reader(archive.database.dsn, archive.store)}, folder, bom=bom)


async def nobody(_: Progress) -> None:
    """Hears nothing."""


async def test_a_statement_has_every_order_in_each_of_its_files(archive: Archive, tmp_path: Path) -> None:
    known = (await known_rows(archive))["user.a"]
    await archive.want(AUGUST, State.COMMITTED)
    await archive.work()
    heard: list[Progress] = []

    async def tell(so_far: Progress) -> None:
        heard.append(so_far)

    wish = wanted("user.a", zone="Asia/Kolkata", formats=BOTH)
    bundle = await maker(archive, tmp_path, bom=True).make(wish, tell)
    assert bundle.path.parent == tmp_path
    body = bundle.path.read_bytes()
    assert (bundle.size_bytes, bundle.sha256) == (len(body), hashlib.sha256(body).hexdigest())
    assert bundle.path.stat().st_mode & 0o777 == 0o600
    with ZipFile(bundle.path) as files:
        assert files.testzip() is None
        assert files.namelist() == ["orders.csv", "statement.pdf", "summary.txt"]
        table, paper, text = (files.read(name) for name in files.namelist())
    assert table == BOM + header() + lines(known, ZoneInfo("Asia/Kolkata"))
    pages = "\n".join(page.extract_text() for page in pypdf.PdfReader(io.BytesIO(paper)).pages)
    assert all(row.order_id in pages for row in known)
    for name, content in (("orders.csv", table), ("statement.pdf", paper)):
        assert f"{hashlib.sha256(content).hexdigest()}  {name}\r\n" in text.decode()
    august = sum(row.created_us < 1_693_526_400_000_000 for row in known)
    assert f"{august:,} orders come from the archive (2023-08)" in text.decode()

    assert bundle.orders == len(known) == sum(total.orders for total in bundle.totals)
    yen = [row for row in known if (row.currency_code, row.status) == ("JPY", "SUCCESS")]
    assert Total("JPY", "SUCCESS", len(yen), sum(row.amount_minor for row in yen)) in bundle.totals
    assert bundle.pdf_note == ""
    assert heard[0] == Progress(0, 3, 0, 0)
    assert (heard[-1].months, heard[-1].months_in_all, heard[-1].rows) == (3, 3, len(known))
    assert heard[-1].archive_bytes > 0
    assert [each.months for each in heard] == sorted(each.months for each in heard)


async def test_the_same_wish_gives_the_same_file_and_the_archive_changes_no_order_in_it(
    archive: Archive, tmp_path: Path
) -> None:
    make = maker(archive, tmp_path).make
    wish = wanted("user.b", formats=BOTH)
    first, second = await make(wish, nobody), await make(replace(wish), nobody)
    assert first.path != second.path
    assert first.sha256 == second.sha256
    await archive.want(AUGUST)
    assert (await archive.work()).state is State.DROPPED
    third = await make(wish, nobody)
    assert third.sha256 != first.sha256, "it says where the orders come from"
    before, after = (ZipFile(each.path).read("orders.csv") for each in (first, third))
    assert before == after
    assert (third.totals, third.orders) == (first.totals, first.orders)


async def test_without_orders_there_is_an_empty_statement(archive: Archive, tmp_path: Path) -> None:
    bundle = await maker(archive, tmp_path).make(wanted("nobody", formats=BOTH, locale="hi"), nobody)
    assert (bundle.orders, bundle.totals) == (0, ())
    with ZipFile(bundle.path) as files:
        assert list(csv.reader(io.StringIO(files.read("orders.csv").decode()))) == [
            header().decode().strip().split(",")
        ]
        assert "कोई ऑर्डर नहीं" in files.read("summary.txt").decode()


@pytest.mark.parametrize(("most", "has_lines"), [(0, True), (-1, False)])
async def test_a_pdf_lists_orders_up_to_its_limit_and_a_note_says_when_it_does_not(
    archive: Archive, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, most: int, has_lines: bool
) -> None:
    known = (await known_rows(archive))["user.c"]
    monkeypatch.setattr(making, "PDF_ROWS_MAX", len(known) + most)
    bundle = await maker(archive, tmp_path).make(wanted("user.c", formats=BOTH), nobody)
    pdf = pypdf.PdfReader(io.BytesIO(ZipFile(bundle.path).read("statement.pdf")))
    text = " ".join(page.extract_text() for page in pdf.pages)
    assert [row.order_id in text for row in known] == [has_lines] * len(known)
    assert ("totals alone" in text) is not has_lines
    assert all(f"{total.orders:,}" in text for total in bundle.totals)
    assert ("PDF" in bundle.pdf_note) is not has_lines
    assert bundle.pdf_note in ZipFile(bundle.path).read("summary.txt").decode()
    assert bundle.orders == len(known)


async def test_what_fails_or_is_cancelled_leaves_no_file_and_no_process(
    archive: Archive, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make = maker(archive, tmp_path).make
    with pytest.raises(UnknownShard):
        await make(wanted("user.a", placements={"s9": (Held(1, 1),)}), nobody)

    async def refuse(so_far: Progress) -> None:
        if so_far.months == 1:
            raise StatementIncomplete(what="a test")

    with pytest.raises(StatementIncomplete):
        await make(wanted("user.a"), refuse)
    assert list(tmp_path.iterdir()) == []

    started = tmp_path / "started"
    script = f"import pathlib, time; pathlib.Path({str(started)!r}).touch(); time.sleep(600)"
    monkeypatch.setattr("archive_svc.statement.rendering._COMMAND", ("-c", script))
    task = asyncio.create_task(make(wanted("user.a", formats=BOTH), nobody))

    async def has_started() -> bool:
        return started.exists()

    assert await eventually(has_started, within_s=30)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert list(tmp_path.iterdir()) == [started]


async def test_what_a_killed_process_left_is_swept_away_after_a_day(
    archive: Archive, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    left, other = tmp_path / "statement-of-a-dead-one.zip", tmp_path / "other.zip"
    left.touch()
    other.touch()
    make = maker(archive, tmp_path).make
    await make(wanted("user.a"), nobody)
    assert left.exists()
    monkeypatch.setattr(making, "LEFT_S", -1.0)
    bundle = await make(wanted("user.a"), nobody)
    assert not left.exists()
    assert other.exists()
    assert bundle.path.exists()
