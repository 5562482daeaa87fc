"""The chapter about old months: made, archived, proven, given up, and shown in a statement all the same."""

from __future__ import annotations

import time
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from email import message_from_bytes, policy
from pathlib import Path
from typing import TYPE_CHECKING, Any
from uuid import uuid4

import asyncpg
import httpx
from rich.table import Table

from chassis.mail import kept
from ops import archive, mesh, seed
from ops.issuer import mint_token
from ops.seed import Plan
from ops.stack import layout
from ordermesh.archive.v1 import archive_service_pb2 as pb

if TYPE_CHECKING:
    from collections.abc import Sequence

    from ops.demo.stage import Stage
    from ops.stack.endpoints import Endpoints

PLAN = Plan(users=200, orders=200_000, months=32)
MONTHS = 6
USER = PLAN.user(7)
ARCHIVE_S_MAX = 300.0
MIB = 1024 * 1024
_TOTALS = """
SELECT currency_code, status, count(*) AS orders, sum(amount_minor) AS amount
  FROM ordermesh.orders WHERE user_id = $1 AND created_at >= $2 AND created_at < $3 GROUP BY 1, 2"""
_SIZE = "SELECT pg_database_size(current_database())"
Totals = dict[tuple[str, str], tuple[int, int]]
"""Orders and their amounts in minor units, by currency and status."""


@dataclass(slots=True)
class OldMonths:
    """Two and a half years of orders, of which the oldest months leave their shards."""

    stage: Stage
    endpoints: Endpoints
    stubs: mesh.Mesh

    async def tell(self) -> None:
        """The whole chapter."""
        stage = self.stage
        stage.title(
            "Two years later", "Old months leave Postgres for S3; no row before its copy was read back."
        )
        stage.command(f"ordermesh seed --users {PLAN.users} --orders {PLAN.orders} --months {PLAN.months}")
        ledgers = {each.name: Path(each.ledger) for each in self.endpoints.upstreams}
        made = await seed.run(PLAN, self.endpoints.shard_dsns(), ledgers, self._tell_seeded())
        stage.say(f"{made.added:,} orders over {PLAN.months} months, {made.rate:,.0f} a second.")
        first, last = f"{made.months[0]:%Y-%m}-01", f"{made.months[-2]:%Y-%m}-28"
        source = await self._totals(first, last)
        before = await self._sizes()
        months = await self._archived()
        self._show(months)
        after = await self._sizes()
        stage.say(
            f"The shards' databases: {sum(before) / MIB:.0f} MiB before, {sum(after) / MIB:.0f} MiB now; "
            f"in S3 these months take up {sum(each.stored_bytes for each in months) / MIB:.1f} MiB."
        )
        stage.expect(sum(after) < sum(before), "the databases did not shrink")
        await self._statement(first, last, source)

    def _tell_seeded(self) -> Any:
        """Say how far it is, four times."""
        told = {"next": PLAN.orders // 4}

        def tell(done: int) -> None:
            if done >= told["next"]:
                self.stage.say(f"[dim]{done:,} orders[/]")
                told["next"] += PLAN.orders // 4

        return tell

    async def _archived(self) -> list[pb.Month]:
        """Ask for the oldest months to leave, and follow them."""
        stage = self.stage
        stage.command(f"ordermesh archive run --oldest {MONTHS} --reason 'it is time' --execute")
        chosen = [m for s in (await archive.listed(self.stubs)).shards for m in archive.ready(s)[:MONTHS]]
        stage.expect(bool(chosen), "no month can leave")
        begun: list[pb.Month] = []
        for month in chosen:
            request = pb.MoveMonthRequest(
                request_id=str(uuid4()),
                shard=month.shard,
                month=month.month,
                reach=pb.Month.DROPPED,
                reason="it is time",
            )
            answer = await self.stubs.archive.MoveMonth(request, timeout=mesh.TIMEOUT_S)
            begun += answer.months
        told: set[int] = set()

        def tell(months: Sequence[pb.Month]) -> None:
            gone = sum(each.state == pb.Month.DROPPED for each in months)
            quarter = 4 * gone // len(months)
            if quarter and quarter not in told:
                told.add(quarter)
                stage.say(f"[dim]{gone} of {len(months)} months read back, proven and given up[/]")

        months = await archive.followed(self.stubs, begun, wait_s=ARCHIVE_S_MAX, tell=tell)
        left = [
            f"{each.shard} {each.month}: {each.quarantined or each.note}"
            for each in months
            if each.state != each.reach
        ]
        stage.expect(not left, f"not archived: {'; '.join(left)}")
        return months

    def _show(self, months: Sequence[pb.Month]) -> None:
        table = Table("month", "orders", "segments read back", "in S3")
        for name in sorted({each.month for each in months}):
            of = [each for each in months if each.month == name]
            table.add_row(
                name,
                f"{sum(each.order_count for each in of):,}",
                str(sum(each.verified_count for each in of)),
                f"{sum(each.stored_bytes for each in of) / MIB:.1f} MiB",
            )
        self.stage.console.print(table)

    async def _statement(self, first: str, last: str, source: Totals) -> None:
        """A statement over archived and live orders, by REST; its mail, and its totals beside the source."""
        stage = self.stage
        token = mint_token(layout.Places(stage.state_dir).issuer, USER, ("user",), 3600)
        url = f"{self.endpoints.gateway}/v1/statements"
        stage.command(f'curl -X POST {url} ... -d \'{{"firstDay": "{first}", "lastDay": "{last}"}}\'')
        headers = {"Authorization": f"Bearer {token}", "Idempotency-Key": str(uuid4())}
        began = time.monotonic()
        async with httpx.AsyncClient(base_url=self.endpoints.gateway, headers=headers, timeout=30.0) as http:
            asked = await http.post("/v1/statements", json={"firstDay": first, "lastDay": last})
            stage.expect(asked.status_code == httpx.codes.ACCEPTED, f"202 expected: {asked.text}")
            where = asked.headers["location"]

            async def ready() -> dict[str, Any] | None:
                answer = await http.get(where, headers={"Prefer": "wait=5"})
                stage.expect(answer.status_code == httpx.codes.OK, f"200 expected: {answer.text}")
                told: dict[str, Any] = answer.json()
                stage.expect(told["state"] not in ("FAILED", "CANCELLED"), f"the statement failed: {told}")
                return told if told["state"] == "READY" else None

            statement = await stage.until("the statement", ready)
            fetched = await http.get(f"{where}/download", follow_redirects=True)
        stage.expect(len(fetched.content) == statement["sizeBytes"], "the file is another one")
        stage.say(
            f"202 Accepted, ready after {time.monotonic() - began:.1f} s: {statement['orderCount']:,} orders "
            f"of {USER}, {statement['sizeBytes'] / 1024:.0f} KiB."
        )
        mail = await stage.until("its mail", self._mail)
        stage.command("ordermesh mail show ...")
        for line in mail.splitlines():
            stage.say(f"[dim]| {line}[/]")
        told = {
            (each["currencyCode"], each["status"]): (each["orderCount"], each["amountMinor"])
            for each in statement["totals"]
        }
        self._compare(told, source)

    async def _mail(self) -> str:
        """The text of the last mail; empty while there is none."""
        paths = [*kept(layout.Places(self.stage.state_dir).mails)]
        if not paths:
            return ""
        mail = message_from_bytes(paths[-1].read_bytes(), policy=policy.default)
        body = mail.get_body(("plain",))
        return (
            f"To: {mail['To']}\nSubject: {mail['Subject']}\n\n{body.get_content() if body else ''}".rstrip()
        )

    def _compare(self, told: Totals, source: Totals) -> None:
        table = Table("currency", "status", "orders", "amount, minor units", "in the shards before")
        for key, (orders, amount) in sorted(told.items()):
            same = "the same" if source.get(key) == (orders, amount) else f"[red]{source.get(key)}[/]"
            table.add_row(*key, f"{orders:,}", f"{amount:,}", same)
        self.stage.console.print(table)
        self.stage.expect(told == source, "the statement's totals are not those of the source")
        self.stage.say("[bold]Every order is there[/], from S3 and from the live tables, each once.")

    async def _totals(self, first: str, last: str) -> Totals:
        """What the shards have of the user in these days, before anything is archived."""
        found: Totals = {}
        for dsn in self.endpoints.shard_dsns().values():
            for row in await _fetched(dsn, _TOTALS, USER, _day(first), _day(last, after=1)):
                key = (row["currency_code"], row["status"])
                orders, amount = found.get(key, (0, 0))
                found[key] = (orders + row["orders"], amount + int(Decimal(row["amount"])))
        return found

    async def _sizes(self) -> list[int]:
        """Of the shards' databases, in bytes."""
        return [(await _fetched(dsn, _SIZE))[0][0] for dsn in self.endpoints.shard_dsns().values()]


def _day(text: str, *, after: int = 0) -> datetime:
    return datetime.fromisoformat(text).replace(tzinfo=UTC) + timedelta(days=after)


async def _fetched(dsn: str, sql: str, *args: object) -> list[Any]:
    session = await asyncpg.connect(dsn, timeout=10, command_timeout=60)
    try:
        return list(await session.fetch(sql, *args))
    finally:
        await session.close(timeout=5)
