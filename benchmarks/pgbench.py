"""pgbench running order_svc's own statements on the same database: the server with nothing around it.

The statements are read from order_svc/queries.sql when the benchmark runs, so they never drift apart; only
their parameters are replaced, by pgbench's variables, literals, and an id made in SQL.
"""

from __future__ import annotations

import asyncio
import os
import re
from typing import TYPE_CHECKING

from benchmarks.cpu import Meter
from benchmarks.sample import Sample
from chassis import pg
from ops.errors import OpsError

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from ops.postgres import PostgresServer

CREATE, CREATE_AND_SETTLE = "pgbench create", "pgbench create+settle"
_OPTIONS = "-c plan_cache_mode=force_generic_plan"
"""As the sessions of order_svc."""
_PARAMETER = re.compile(r"\$(\d+)")
_COMMENT = re.compile(r"^\s*--.*\n", re.MULTILINE)
_VARIABLES = """\\set bucket random(0, 2047)
\\set user random(1, 200)
\\set amount random(1, 99999)
"""
# A UUIDv7 with its bucket, as chassis.ids makes them; materialized, so that every mention is the same id.
_MADE = """WITH made AS MATERIALIZED (
    SELECT (lpad(to_hex((extract(epoch FROM ordermesh.clock()) * 1000)::bigint), 12, '0')
            || '7' || lpad(to_hex((random() * 4095)::int), 3, '0')
            || to_hex((-9223372036854775808)::bigint | (:bucket::bigint << 46)
                      | (random() * 70368744177663)::bigint))::uuid AS id,
           gen_random_uuid() AS request_id, gen_random_uuid() AS event_id
), """
_ID = "(SELECT id FROM made)"
_CREATE: Mapping[int, str] = {
    1: "('bench.' || :user::text)",
    2: "(SELECT request_id FROM made)",
    3: _ID,
    4: f"ordermesh.id_time({_ID})",
    5: ":bucket::int",
    6: "1",
    7: "'\\x00112233445566778899aabbccddeeff'::bytea",
    8: "('bench.' || :user::text)",
    9: "'payment'",
    10: "'{payments}'",
    11: ":amount::bigint",
    12: "'EUR'",
    13: "2",
    14: "''",
    15: "'{}'",
    16: "''",
    17: "interval '1 day'",  # Recovery leaves the orders of pgbench alone.
    18: "interval '3 s'",
    19: "(SELECT event_id FROM made)",
    20: "'bench'",
    21: """'{"key": "bench", "upstream": "payments"}'""",
    22: "''",
}
_SETTLE: Mapping[int, str] = {
    **dict.fromkeys(range(21, 41), "NULL"),
    41: "''",
    1: ":o_order_id::uuid",
    2: ":o_created_at::timestamptz",
    3: "1",
    4: "'SUCCESS'",
    5: "'DONE'",
    6: "0",
    7: "1",
    8: "'payments-1'",
    9: "''",
    10: "'UPSTREAM'",
    11: ":o_request_id::uuid",
    12: "'SETTLED'",
    13: "'PENDING'",
    14: "'SUBMITTING'",
    15: "0",
    16: "1",
    17: "'bench'",
    18: "'UPSTREAM_SUCCEEDED'",
    19: """'{"verdict": "SUCCEEDED"}'""",
    20: "''",
    33: "NULL::uuid",
    22: "NULL::interval",
    36: "NULL::jsonb",
    37: "NULL::text",
    **dict.fromkeys(range(23, 28), "0"),
    **dict.fromkeys(range(28, 33), "NULL::timestamptz"),
}


def scripts() -> dict[str, str]:
    """The script of each comparison."""
    queries = pg.queries("order_svc")
    create = _filled(queries.create_order, _CREATE).replace("WITH ", _MADE, 1)
    settle = _filled(queries.apply_change, _SETTLE)
    return {
        CREATE: f"{_VARIABLES}{create};\n",
        CREATE_AND_SETTLE: f"{_VARIABLES}{create}\n\\gset o_\n{settle};\n",
    }


def _filled(statement: str, values: Mapping[int, str]) -> str:
    return _PARAMETER.sub(lambda found: values[int(found[1])], _COMMENT.sub("", statement))


async def run(
    server: PostgresServer,
    database: str,
    name: str,
    clients: int,
    seconds: float,
    directory: Path,
    *,
    per_s: float | None = None,
) -> Sample:
    """Run one script with so many clients; latencies are pgbench's own, of whole scripts.

    per_s: begin so many in a second, come what may, and count a latency from then; else as many as can be.
    """
    script = directory / f"{name.replace(' ', '-').replace('+', '-')}.sql"
    script.write_text(scripts()[name], encoding="utf-8")
    for old in directory.glob("pgbench_log.*"):
        old.unlink()
    meter = Meter()
    process = await asyncio.create_subprocess_exec(
        *(str(server.pgbench), "--no-vacuum", "--protocol=prepared", f"--file={script}", "--log"),
        *(f"--client={clients}", f"--jobs={min(clients, 2)}", f"--time={max(1, round(seconds))}"),
        *(() if per_s is None else (f"--rate={per_s:g}",)),
        cwd=directory,
        env={
            **os.environ,
            **server.environment(database),
            "PGOPTIONS": _OPTIONS,
        },
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    async with asyncio.timeout(seconds + 60):
        said, _ = await process.communicate()
    if process.returncode:
        raise OpsError(f"pgbench failed: {said.decode(errors='replace')[-1000:]}")
    return Sample.of(name, clients, _latencies(directory), seconds, meter)


def _latencies(directory: Path) -> list[float]:
    """The third column of pgbench's logs, in seconds."""
    return [
        int(line.split()[2]) / 1e6
        for log in directory.glob("pgbench_log.*")
        for line in log.read_text(encoding="utf-8").splitlines()
    ]
