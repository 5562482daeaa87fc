"""The tools of statements against the real service: followed, fetched and compared; and mails, read."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from dataclasses import dataclass, replace
from datetime import UTC, date, datetime
from pathlib import Path
from typing import Any, cast
from uuid import UUID, uuid4

import pytest
from typer.testing import CliRunner

from archive_svc.statement.letter import News, write
from chassis import rpc
from chassis.mail import Mailbox
from ops import statements as tools
from ops.cli import app
from ops.cli import statement as command
from ops.mesh import Mesh
from ops.stack.layout import Places
from ordermesh.archive.v1 import statement_service_pb2 as pb
from ordermesh.archive.v1 import statement_service_pb2_grpc as pb_grpc
from tests.behind import proxy_before
from tests.buckets import Place
from tests.conftest import DatabaseFactory
from tests.inprocess_s3 import InProcessS3
from tests.listeners import CALL_S, Trust
from tests.statements import BODY, PAPER, Statements, named, opened, running, wish


@dataclass
class Tools:
    """A mesh of which only statements are there, as the identity `ops` sees it."""

    s3: InProcessS3
    statements: Statements
    mesh: Mesh

    async def request(self) -> Any:
        asked = pb.RequestStatementRequest(user_id="alice", request_id=str(uuid4()), wish=wish())
        return await self.mesh.statements.RequestStatement(asked, timeout=CALL_S)


@pytest.fixture
async def made(tmp_path: Path, shard_database: DatabaseFactory) -> AsyncIterator[Tools]:
    trust = Trust.make(tmp_path)
    async with (
        InProcessS3.serving() as s3,
        opened(await shard_database(), Place.of(s3), trust, tmp_path) as statements,
        proxy_before(trust, "127.0.0.1:1", tmp_path, services={"archive_svc": statements.target}) as proxy,
        rpc.Channel(f"127.0.0.1:{proxy.port}", service="shard_proxy", tls=trust.files("ops")) as channel,
    ):
        nobody = cast("Any", None)
        stub = pb_grpc.StatementServiceStub(channel)
        yield Tools(s3, statements, replace(Mesh(*[nobody] * 7), statements=cast("Any", stub)))


async def test_a_statement_is_followed_until_it_is_over_and_its_progress_told(made: Tools) -> None:
    asked = await made.request()
    seen: list[pb.Statement] = []
    over = await tools.followed(made.mesh, asked, wait_s=0.1, tell=seen.append)
    assert not over.done

    go_on = asyncio.Event()
    made.statements.maker.holds[2] = go_on.wait

    def tell(statement: pb.Statement) -> None:
        seen.append(statement)
        if statement.read_month_count == 2:
            go_on.set()

    async with running(made.statements.worker):
        over = await tools.followed(made.mesh, asked, wait_s=20, tell=tell)
    assert over.done
    assert (pb.Statement.READING, 2, 3) in {(s.state, s.read_month_count, s.month_count) for s in seen}
    assert seen[-1] == tools.told(over)


async def test_a_file_is_fetched_under_its_name_and_compared(made: Tools, tmp_path: Path) -> None:
    asked = await made.request()
    assert await made.statements.worker.once()
    where = tmp_path / "downloads"
    where.mkdir()
    path, statement = await tools.fetched(made.mesh, *named(asked), where)
    assert path == where / "statement-2024-04-01-2025-03-31.zip"
    assert path.read_bytes() == BODY
    assert statement.size_bytes == len(BODY)

    other, _ = await tools.fetched(made.mesh, *named(asked), tmp_path / "other.zip")
    assert other.read_bytes() == BODY


async def test_a_file_that_is_not_the_one_is_not_kept(made: Tools, tmp_path: Path) -> None:
    asked = await made.request()
    assert await made.statements.worker.once()
    where = tmp_path / "downloads"
    where.mkdir()
    made.s3.flip_on_the_way_out()
    with pytest.raises(tools.NotFetched, match="nothing was kept"):
        await tools.fetched(made.mesh, *named(asked), where)
    made.s3.fail("GetObject", 500, "InternalError")
    with pytest.raises(tools.NotFetched, match="cannot be fetched"):
        await tools.fetched(made.mesh, *named(asked), where)
    with pytest.raises(tools.NotFetched, match="cannot be fetched"):
        await tools.fetched(made.mesh, *named(asked), where / "no" / "such" / "place")
    assert list(where.iterdir()) == []


async def test_what_is_known_of_a_statement_is_shown(made: Tools) -> None:
    asked = await made.request()
    assert await made.statements.worker.once()
    over = await tools.shown(made.mesh, *named(asked))
    cells = [str(cell) for column in command._one(over).columns for cell in column.cells]
    assert {"ready", "waiting", "2024-04-01 to 2025-03-31, Asia/Kolkata"} <= set(cells)
    assert f"2 orders, {2**70 // 100}.{2**70 % 100} EUR" in cells
    assert "1 orders, 5 JPY" in cells


def test_names_of_operations_are_read_and_others_are_not() -> None:
    statement_id = str(uuid4())
    assert tools.named(f"users/a.b:c/statements/{statement_id}") == ("a.b:c", statement_id)
    for wrong in ("", statement_id, f"users//statements/{statement_id}", "users/alice/statements/1"):
        assert tools.named(wrong) is None
    refused = CliRunner().invoke(app, ["statement", "wait", "users/alice"], prog_name="ordermesh")
    assert refused.exit_code == 2


async def test_mails_are_listed_and_read(tmp_path: Path) -> None:
    news = News(
        UUID("018f0000-0000-7000-8000-000000000001"),
        "alice",
        "hi",
        date(2024, 4, 1),
        date(2025, 3, 31),
        datetime(2026, 1, 2, tzinfo=UTC),
        datetime(2026, 1, 9, tzinfo=UTC),
    )

    def run(*words: str) -> Any:
        return CliRunner().invoke(app, ["mail", *words, "--state-dir", str(tmp_path)], prog_name="ordermesh")

    assert json.loads(run("list", "-o", "json").stdout) == []
    await Mailbox(Places(tmp_path).mails).send(write(news, PAPER))
    name = f"statement.{news.statement_id}"
    assert name in run("list").stdout
    (mail,) = json.loads(run("list", "-o", "json").stdout)
    assert (mail["name"], mail["to"]) == (name, "alice@customers.invalid")
    shown = run("show", name).stdout
    assert "आपका ऑर्डर विवरण तैयार है" in shown
    assert f"https://shop.invalid/statements/{news.statement_id}" in shown
    assert json.loads(run("show", name, "-o", "json").stdout) == mail
    assert run("show", "another").exit_code == 1
