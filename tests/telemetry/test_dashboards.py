"""Dashboards are what their sources say, load as Grafana's, and show data: each query is asked.

One full stack under load for those that ask; a query that gives nothing there is declared
`empty_when_healthy` in its source, with the reason.
"""

from __future__ import annotations

import asyncio
import dataclasses
import json
import re
import time
from collections.abc import AsyncIterator, Awaitable, Iterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from functools import partial
from itertools import count, cycle
from pathlib import Path
from typing import Any
from uuid import uuid4

import asyncpg
import grpc
import httpx
import pytest
import yaml
from grafana_foundation_sdk.cog import encoder, plugins
from grafana_foundation_sdk.models.dashboard import Dashboard

from chassis.testing import eventually
from ops.mesh import Mesh, spoken_by
from ops.stack import layout
from ordermesh.archive.v1 import archive_service_pb2 as archive
from ordermesh.history.v1 import history_service_pb2 as history
from ordermesh.history.v1 import projection_service_pb2 as projection
from ordermesh.order.v1 import order_service_pb2 as pb
from ordermesh.recovery.v1 import recovery_service_pb2 as recovery
from ordermesh.upstream.v1 import simulator_service_pb2 as sim
from scripts import telemetry as generator
from telemetry import dashboards as sources
from telemetry import registry, rules
from telemetry.dashboards.board import Board, Panel
from telemetry.dashboards.statements import statements
from telemetry.dashboards.watching import measured
from tests.telemetry import grafana
from tests.telemetry.grafana import NotYetThere, Servers, Target
from tests.telemetry.rig import Rig, ready

pytestmark = pytest.mark.timeout(600)
FULL_OF_DATA_WITHIN_S = 180.0
EACH_S = 0.5
"""One round of requests and orders so often."""
AT_ONCE = 4
"""So many queries are asked at once; the role of dashboards has as many connections."""
OURS = re.compile(r"\b(?:ordermesh|grpc|http)_[a-z_]+\b")
OF_PROMETHEUS = re.compile(r"\b(?:process|python|scrape)_[a-z_]+\b")
STAYS_EMPTY = {
    ("recovery", "Time since a shard was last swept", "B"),
    ("shards", "Calls by lane and code", "A"),
    ("read-side", "Operations that are open or over", "C"),
    ("archive", "Partitions made, or not", "B"),
    ("archive", "The newest months", "A"),
    ("archive", "Time until partitions end", "D"),
    ("archive", "Segments that did not read back", "B"),
    ("recovery", "Cases of severity 1", "C"),
    ("recovery", "Orders executed twice", "B"),
    ("runtime", "Tries that failed", "A"),
    *(("runtime", "Spans that are lost, or soon will be", query) for query in "BCDE"),
}
"""Queries that the load does not fill; all others must give data, whatever their source says."""
GIVEN = {
    *("process_start_time_seconds", "process_cpu_seconds_total", "process_resident_memory_bytes"),
    *("process_open_fds", "process_max_fds", "python_gc_collections_total"),
    *("scrape_duration_seconds", "scrape_samples_scraped"),
}
"""What Prometheus and its client library show by themselves."""
LABELS = {"grpc_service", "grpc_method", "grpc_type", "grpc_code"}

YEAR = {"firstDay": "2024-04-01", "lastDay": "2025-03-31"}

TARGETS = grafana.targets()
VARIABLES = [
    (name, variable) for name, board in grafana.dashboards().items() for variable in grafana.variables(board)
]


def source_panels(board: Board) -> list[Panel]:
    return [panel for row in board.rows for panel in row.panels]


def reasons() -> dict[tuple[str, str, str], str]:
    """Why a query may give nothing, by dashboard, panel and place."""
    return {
        (board.name, panel.title, chr(ord("A") + place)): query.empty_when_healthy
        for board in sources.boards()
        for panel in source_panels(board)
        for place, query in enumerate(panel.queries)
    }


def test_files_are_what_the_sources_say() -> None:
    made = generator.grafana_files()
    assert {path: path.read_text(encoding="utf-8") for path in made} == made
    there = set((grafana.DEPLOY / "dashboards").glob("*")) | {
        path for path in (grafana.DEPLOY / "provisioning").rglob("*") if path.is_file()
    }
    assert there == made.keys(), "nobody generates the others"


def test_each_dashboard_that_alerts_name_is_there_under_its_uid() -> None:
    found = {name: board["uid"] for name, board in grafana.dashboards().items()}
    assert found == {name: f"ordermesh-{name}" for name in rules.DASHBOARDS}


@pytest.mark.parametrize("name", rules.DASHBOARDS)
def test_a_dashboard_loads_as_the_models_of_grafana_have_it(name: str) -> None:
    plugins.register_default_plugins()
    text = (grafana.DEPLOY / f"dashboards/{name}.json").read_text(encoding="utf-8")
    loaded = Dashboard.from_json(json.loads(text))
    again = json.dumps(loaded, cls=encoder.JSONEncoder, indent=1, sort_keys=True) + "\n"
    assert again == text, "something in it is not Grafana's"


@pytest.mark.parametrize("name", rules.DASHBOARDS)
def test_panels_have_names_and_sentences_and_do_not_overlap(name: str) -> None:
    shown = list(grafana.panels(grafana.dashboards()[name]))
    titles = [panel["title"] for panel in shown]
    assert len(titles) == len(set(titles))
    assert len({panel["id"] for panel in shown}) == len(shown)
    cells: set[tuple[int, int]] = set()
    for panel in shown:
        assert panel["description"].endswith("."), panel["title"]
        at = panel["gridPos"]
        own = {(x, y) for x in range(at["x"], at["x"] + at["w"]) for y in range(at["y"], at["y"] + at["h"])}
        assert at["x"] + at["w"] <= 24
        assert not own & cells, panel["title"]
        cells |= own


def bare(expression: str) -> str:
    return " ".join(expression.split())


def squeezed(expression: str) -> str:
    """An expression without what joins and groups its comparisons."""
    return re.sub(r"[\s()]|\b(?:or|and)\b", "", expression)


@pytest.mark.parametrize("alert", rules.alerts(), ids=lambda alert: alert.name)
def test_an_alert_has_a_panel_on_its_dashboard_with_its_expression_threshold_and_runbook(
    alert: rules.Alert,
) -> None:
    whole = bare(rules.timed(alert.expr, rules.AS_IT_IS))
    compared = measured(alert.name)
    told = "".join(f"{each.expr}{each.comparison}{each.bound}" for each in compared)
    assert squeezed(told) == squeezed(whole), "nothing of the alert is left out"
    link = f"${{runbooks}}/{alert.dashboard}.md#{alert.name.lower()}"
    shown = [
        panel
        for panel in grafana.panels(grafana.dashboards()[alert.dashboard])
        if link in [each["url"] for each in panel.get("links", ())]
    ]
    wanted = {each.expr for each in compared} | {each.bound for each in compared if each.number is None}
    asked = [{bare(target.get("expr", "")) for target in panel["targets"]} for panel in shown]
    assert any(wanted - {""} <= expressions for expressions in asked), asked
    numbers = [each.number for each in compared if each.number is not None]
    drawn = [
        step["value"]
        for panel in shown
        for step in panel["fieldConfig"]["defaults"].get("thresholds", {}).get("steps", ())
    ]
    assert not numbers or (numbers[0] or 0.5) in drawn


def test_an_alert_links_to_a_panel_that_is_there_and_is_its_own() -> None:
    """In Grafana's form of a link to one panel, `viewPanel` and its id."""
    boards = {board["uid"]: board for board in grafana.dashboards().values()}
    told = yaml.safe_load((grafana.ROOT / "deploy/prometheus/rules.yml").read_text(encoding="utf-8"))
    found = [rule for group in told["groups"] for rule in group["rules"] if "alert" in rule]
    assert {rule["alert"] for rule in found} == {alert.name for alert in rules.alerts()}
    for rule in found:
        link = re.search(r"}}/d/([a-z-]+)\?viewPanel=(\d+)$", rule["annotations"]["dashboard_url"])
        assert link, rule
        (panel,) = [each for each in grafana.panels(boards[link[1]]) if each["id"] == int(link[2])]
        runbooks = [each["title"] for each in panel["links"]]
        assert f"Runbook: {rule['alert']}" in runbooks, f"{rule['alert']} links to {panel['title']}"


def test_an_alert_that_no_panel_shows_gets_no_link() -> None:
    nobody = dataclasses.replace(rules.alerts()[0], name="NobodyShowsMe")
    with pytest.raises(registry.RegistryError, match="NobodyShowsMe has no panel on the dashboard overview"):
        nobody.link()


def test_every_metric_is_in_the_registry_or_prometheus_own() -> None:
    known = {metric.name for metric in registry.metrics()}
    known |= {
        f"{metric.name}_{end}"
        for metric in registry.metrics()
        if metric.kind == "histogram"
        for end in ("bucket", "count", "sum")
    }
    asked = [target.asked["expr"] for target in TARGETS if "expr" in target.asked]
    asked += [variable["query"]["query"] for _, variable in VARIABLES if variable["type"] == "query"]
    asked = [re.sub(r'"[^"]*"', "", text) for text in asked]
    used = {name for text in asked for name in OURS.findall(text)} - LABELS
    assert used <= known
    assert {name for text in asked for name in OF_PROMETHEUS.findall(text)} <= GIVEN


def test_every_metric_is_shown_somewhere() -> None:
    asked = " ".join(target.asked.get("expr", "") for target in TARGETS)
    asked += " ".join(rule["expr"] for group in rules.rules()["groups"] for rule in group["rules"])
    names = [metric.name for metric in registry.metrics()]
    assert [name for name in names if not re.search(rf"\b{name}(?:_bucket)?\b", asked)] == []


def test_every_statement_is_shown_bounded_and_only_reads() -> None:
    shown = {target.asked["rawSql"] for target in TARGETS if "rawSql" in target.asked}
    assert shown == set(statements().values())
    for name, text in statements().items():
        assert re.match(r"-- \w.*[.:]$", text.splitlines()[0]), f"{name} says what it does"
        bare_text = "\n".join(line for line in text.splitlines() if not line.startswith("--"))
        assert re.match(r"SELECT|WITH", bare_text)
        assert not re.search(r"\b(INSERT|UPDATE|DELETE|FOR SHARE|SELECT \*)\b", bare_text)
        limit = re.search(r"LIMIT (\d+)$", bare_text)
        assert limit, f"{name} ends with a LIMIT"
        assert int(limit[1]) <= 100
        hours = [int(number) for number in re.findall(r"interval '(\d+) hours?'", bare_text)]
        assert all(number <= 6 for number in hours)


def test_data_sources_are_all_asked_and_every_source_that_is_asked_is_there() -> None:
    used = {target.source for target in TARGETS}
    provisioned = grafana.data_sources()
    replicas = {uid for uid in provisioned if uid.startswith("ordermesh-replica-")}
    assert used - {"${replica}"} == provisioned.keys() - replicas
    assert replicas == {f"ordermesh-replica-{shard}" for shard in layout.ALL_SHARDS}


@pytest.fixture(scope="module")
async def rig(server_dir: Path) -> AsyncIterator[Rig]:
    async with ready(server_dir / "boards", quiet=False) as opened, busy(opened):
        yield opened


def looks(mesh: Mesh) -> Iterator[Awaitable[object]]:
    """What operators call, what they may not call, and what makes no sense."""
    yield mesh.recovery.GetRecoveryStatus(recovery.GetRecoveryStatusRequest(), timeout=5.0)
    yield mesh.archive.ListMonths(archive.ListMonthsRequest(), timeout=5.0)
    yield mesh.projection.GetProjectionStatus(projection.GetProjectionStatusRequest(), timeout=5.0)
    yield mesh.history.SearchOrders(history.SearchOrdersRequest(page_size=5), timeout=5.0)
    yield mesh.orders.ClaimDueOrders(pb.ClaimDueOrdersRequest(), timeout=5.0)
    yield mesh.orders.GetOrder(pb.GetOrderRequest(order_id="rubbish"), timeout=5.0)


@asynccontextmanager
async def busy(rig: Rig) -> AsyncIterator[None]:
    """Requests over REST as well, some of them wrong; orders that the upstream rejects, takes its time for,
    or executes otherwise than it was asked; on one shard nobody looks after those that hang.
    """
    over = asyncio.Event()
    rest_users = map("boards-rest-{}".format, count())
    slow_users = cycle([f"boards-slow-{number}" for number in range(8)])

    async def requests() -> None:
        async with rig.world.rest() as http:
            while not over.is_set():
                # A statement of the same year is not made again for the same user.
                http.headers["Authorization"] = f"Bearer {rig.world.token(next(rest_users))}"
                order = {"kind": "payment", "amount": {"currency_code": "EUR", "amount_minor": "700"}}
                with suppress(httpx.HTTPError):
                    await http.post("/v1/orders", json=order, headers={"Idempotency-Key": str(uuid4())})
                    await http.get("/v1/orders")
                    await http.get("/v1/orders/rubbish")
                    await http.post("/v1/statements", json=YEAR, headers={"Idempotency-Key": str(uuid4())})
                with suppress(AssertionError):
                    await rig.world.create("boards-rejected")
                    await rig.world.create(next(slow_users))
                    await rig.world.create("boards-wrong")
                for call in looks(rig.world.mesh):
                    with suppress(grpc.aio.AioRpcError):
                        await call
                with suppress(TimeoutError):
                    await asyncio.wait_for(over.wait(), EACH_S)

    rejected = rig.world.fault("payments", kind=sim.Fault.REJECT, user_id_prefix="boards-rejected")
    slow = rig.world.fault(
        "payments", kind=sim.Fault.IN_PROGRESS, user_id_prefix="boards-slow", duration={"seconds": 4}
    )
    wrong = rig.world.fault("payments", kind=sim.Fault.WRONG_AMOUNT, user_id_prefix="boards-wrong", limit=3)
    pause = recovery.PauseRecoveryRequest(
        request_id=str(uuid4()), shard="s1", upstream="payments", reason="so that something hangs"
    )
    await rig.world.mesh.recovery.PauseRecovery(pause, timeout=10.0, metadata=spoken_by("boards"))
    async with rejected, slow, wrong:
        load = asyncio.create_task(requests(), name="boards-load")
        try:
            yield
        finally:
            over.set()
            await load


@pytest.fixture(scope="module")
async def servers(rig: Rig) -> AsyncIterator[Servers]:
    """The data sources; the role of dashboards is made as deploy/grafana/role.sql makes it."""
    endpoints = rig.world.endpoints
    for database in endpoints.databases:
        if database.role == "shard":
            await grafana.make_role(database.dsn)
    replicas = {
        str(database.shard): grafana.as_role(database.dsn)
        for database in endpoints.databases
        if database.role == "replica"
    }
    assert endpoints.prometheus
    assert endpoints.elasticsearch
    async with httpx.AsyncClient(timeout=20.0) as http:
        yield Servers(http, endpoints.prometheus, endpoints.elasticsearch, replicas)


async def choices(servers: Servers, board: str) -> list[dict[str, str]]:
    """What may stand at the top of a dashboard: all of everything, and each single value of each variable."""
    first: dict[str, str] = {}
    single: list[tuple[str, list[str]]] = []
    for variable in grafana.variables(grafana.dashboards()[board]):
        name = variable["name"]
        values = await eventually(
            partial(servers.values, variable, first), within_s=FULL_OF_DATA_WITHIN_S, every_s=0.5
        )
        first[name] = variable["allValue"] if variable.get("includeAll") else values[0]
        single.append((name, values))
    return [first, *(first | {name: value} for name, values in single for value in values)]


@pytest.mark.parametrize(
    ("board", "variable"), VARIABLES, ids=[f"{name}-{variable['name']}" for name, variable in VARIABLES]
)
async def test_a_variable_has_values(servers: Servers, board: str, variable: dict[str, Any]) -> None:
    (first, *_) = await choices(servers, board)
    assert first[variable["name"]]


def stays_empty(target: Target) -> bool:
    """Whether a query may give nothing here: it says why it does on a mesh that is well, and nothing that the
    load does wrong shows in it.
    """
    return bool(reasons()[target.key]) and target.key in STAYS_EMPTY


@dataclass
class Asked:
    """What came of a query, the last time. values: how many it gave with all that can be chosen. is_early: an
    index that it needs was made a moment ago.
    """

    values: int = 0
    wrong: str = ""
    is_early: bool = False


@pytest.fixture(scope="module")
async def asked(servers: Servers) -> dict[tuple[str, str, str], Asked]:
    """Every query asked with all that can be chosen, and again while one that must give data does not."""
    of_board = {name: await choices(servers, name) for name in grafana.dashboards()}
    answers: dict[tuple[str, str, str], Asked] = {}
    at_once = asyncio.Semaphore(AT_ONCE)

    async def ask(target: Target) -> None:
        answer = answers[target.key] = Asked()
        async with at_once:
            for chosen in target.differing(of_board[target.board]):
                try:
                    answer.values += await servers.ask(target, chosen)
                except NotYetThere as early:
                    answer.wrong, answer.is_early = str(early), True
                except (AssertionError, KeyError, ValueError, asyncpg.PostgresError) as wrong:
                    answer.wrong = f"with {chosen}: {wrong!r}"

    end = time.monotonic() + FULL_OF_DATA_WITHIN_S
    open_ones = TARGETS
    while open_ones and time.monotonic() < end:
        await asyncio.gather(*(ask(target) for target in open_ones))
        open_ones = [
            target
            for target in open_ones
            if answers[target.key].is_early or not (answers[target.key].values or stays_empty(target))
        ]
    return answers


@pytest.mark.parametrize("target", TARGETS, ids=str)
async def test_a_query_gives_data(asked: dict[tuple[str, str, str], Asked], target: Target) -> None:
    answer = asked[target.key]
    assert not answer.wrong
    assert answer.values or stays_empty(target), "it gives nothing"


def test_who_gives_nothing_when_all_is_well_says_why_in_a_sentence() -> None:
    said = {key: reason for key, reason in reasons().items() if reason}
    assert all(len(reason.split()) >= 3 and reason.endswith(".") for reason in said.values())
    assert said.keys() >= STAYS_EMPTY


async def test_the_role_of_dashboards_sees_no_person_writes_nothing_and_is_soon_cut_off(
    servers: Servers, rig: Rig
) -> None:
    for dsn in servers.replicas.values():
        connection = await asyncpg.connect(dsn)
        try:
            for secret in ("user_id", "amount_minor", "description", "labels"):
                with pytest.raises(asyncpg.InsufficientPrivilegeError):
                    await connection.fetch(f"SELECT {secret} FROM ordermesh.orders LIMIT 1")
            with pytest.raises(asyncpg.ReadOnlySQLTransactionError):
                await connection.execute("CREATE TEMP TABLE mine (a int)")
            with pytest.raises(asyncpg.QueryCanceledError):
                await connection.fetch("SELECT pg_sleep(10)")
        finally:
            await connection.close()


@pytest.mark.parametrize("name", statements())
async def test_a_statement_reads_orders_by_an_index(servers: Servers, name: str) -> None:
    """A small table is read whole whatever there is; so that way is closed here."""
    connection = await asyncpg.connect(servers.replicas["s1"])
    try:
        await connection.execute("SET enable_seqscan = off")
        plan = "\n".join(row[0] for row in await connection.fetch(f"EXPLAIN {statements()[name]}"))
    finally:
        await connection.close()
    assert not re.search(r"Seq Scan on (orders|order_timers|dead_letters)", plan), plan
