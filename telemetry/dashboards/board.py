"""What a dashboard is made of, and how it becomes Grafana's JSON.

Panels are laid out from left to right, in rows; a panel says in plain words what it shows and what is wrong.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Final, Literal

from grafana_foundation_sdk.builders import (
    common,
    dashboard,
    heatmap,
    logs,
    prometheus,
    stat,
    table,
    timeseries,
)
from grafana_foundation_sdk.cog import builder, encoder, runtime, variants
from grafana_foundation_sdk.models import common as kinds
from grafana_foundation_sdk.models import dashboard as models
from grafana_foundation_sdk.models import elasticsearch as es
from grafana_foundation_sdk.models.heatmap import HeatmapColorMode
from grafana_foundation_sdk.models.prometheus import PromQueryFormat

from telemetry.dashboards import sources
from telemetry.dashboards.statements import statement

WIDTH: Final = 24
HEIGHT: Final = 8
LOG_LINES_MAX: Final = "500"
TERMS_MAX: Final = "10"
_GOOD, _BAD = "green", "red"


@dataclass(frozen=True, slots=True)
class Prom:
    """One expression of PromQL. legend: how a series is called. now: its last value alone.

    exemplars:          whether single calls are shown as well, each of which leads to its log lines.
    empty_when_healthy: why it gives no series on a mesh that is well; empty where it must give some.
    """

    expr: str
    legend: str = ""
    now: bool = False
    exemplars: bool = False
    empty_when_healthy: str = ""


@dataclass(frozen=True, slots=True)
class Sql:
    """A statement of queries.sql, on the replica that is chosen. empty_when_healthy: as of Prom."""

    name: str
    empty_when_healthy: str = ""


@dataclass(frozen=True, slots=True)
class Elastic:
    """One search.

    shows:    `orders` counts each order once; `lines` counts lines; `logs` shows them.
    by:       one series for each of the ten most frequent values of this field.
    in_table: one number for each value, not one for each moment.
    empty_when_healthy: as of Prom.
    """

    query: str
    shows: Literal["orders", "lines", "logs"]
    by: str = ""
    in_table: bool = False
    empty_when_healthy: str = ""

    @property
    def source(self) -> models.DataSourceRef:
        """Orders are counted where orders are, everything else where lines are."""
        return sources.ORDERS if self.shows == "orders" else sources.LOGS


Query = Prom | Sql | Elastic


@dataclass(frozen=True, slots=True)
class Limit:
    """Where it becomes bad, on the scale of the panel. below: it is bad under the limit, not over it."""

    at: float
    below: bool = False


@dataclass(frozen=True, slots=True)
class Panel:
    """One panel. says: what it shows, in a sentence or two. alerts: what is computed from its queries.

    unit: as Grafana names it. wide: of 24 columns. traced: the rows have a column `trace`.
    """

    kind: Literal["series", "stat", "table", "heatmap", "logs"]
    title: str
    says: str
    queries: tuple[Query, ...]
    unit: str = "short"
    limit: Limit | None = None
    alerts: tuple[str, ...] = ()
    wide: int = 8
    stacked: bool = False
    traced: bool = False


@dataclass(frozen=True, slots=True)
class Row:
    """Panels under a heading."""

    title: str
    panels: tuple[Panel, ...]


@dataclass(frozen=True, slots=True)
class Labels:
    """A variable: the values of a label of a metric. many: all of them are chosen at first."""

    name: str
    title: str
    metric: str
    label: str
    many: bool = True


@dataclass(frozen=True, slots=True)
class Replicas:
    """A variable: which shard's replica is asked."""

    name: str = "replica"
    title: str = "Replica of shard"


@dataclass(frozen=True, slots=True)
class Text:
    """A variable: what somebody types."""

    name: str
    title: str
    value: str


Variable = Labels | Replicas | Text

SHARD: Final = Labels("shard", "Shard", "ordermesh_lookback_up", "shard")
UPSTREAM: Final = Labels("upstream", "Upstream", "ordermesh_order_submits_total", "upstream")
RUNBOOKS: Final = Text("runbooks", "Runbooks are at", "/docs/runbooks")


@dataclass(frozen=True, slots=True)
class Board:
    """One dashboard. name: as rules.DASHBOARDS has it. since: how far back it looks at first."""

    name: str
    title: str
    says: str
    rows: tuple[Row, ...]
    variables: tuple[Variable, ...] = ()
    since: str = "now-1h"

    @property
    def uid(self) -> str:
        """What links and alerts call it."""
        return f"ordermesh-{self.name}"

    def numbered(self) -> Iterator[tuple[int, Panel]]:
        """Every panel with its id, in the order in which they are shown."""
        return enumerate((panel for row in self.rows for panel in row.panels), start=1)

    def json(self) -> str:
        """The file that Grafana reads."""
        return json.dumps(self._built(), cls=encoder.JSONEncoder, indent=1, sort_keys=True) + "\n"

    def _built(self) -> models.Dashboard:
        made = (
            dashboard.Dashboard(f"ordermesh: {self.title}")
            .uid(self.uid)
            .description(self.says)
            .tags(["ordermesh"])
            .time(self.since, "now")
            .timezone("browser")
            .refresh("30s")
            .readonly()
            .tooltip(models.DashboardCursorSync.CROSSHAIR)
            .link(
                dashboard.DashboardLink("Dashboards")
                .type(models.DashboardLinkType.DASHBOARDS)
                .tags(["ordermesh"])
                .as_dropdown(True)
                .keep_time(True)
            )
        )
        for variable in (*self.variables, RUNBOOKS):
            made.with_variable(_variable(variable))
        numbers = {panel.title: number for number, panel in self.numbered()}
        top = 0
        for row in self.rows:
            made.with_row(dashboard.Row(row.title).grid_pos(models.GridPos(h=1, w=WIDTH, x=0, y=top)))
            left, top = 0, top + 1
            for panel in row.panels:
                if left + panel.wide > WIDTH:
                    left, top = 0, top + HEIGHT
                place = models.GridPos(h=HEIGHT, w=panel.wide, x=left, y=top)
                made.with_panel(_panel(panel, numbers[panel.title], self.name).grid_pos(place))
                left += panel.wide
            top += HEIGHT
        return made.build()


class _Made(builder.Builder[variants.Dataquery]):
    """A query that needs no builder of its own."""

    def __init__(self, query: variants.Dataquery) -> None:
        self._query = query

    def build(self) -> variants.Dataquery:
        return self._query


def _variable(variable: Variable) -> builder.Builder[models.VariableModel]:
    match variable:
        case Labels():
            query = {
                "query": f"label_values({variable.metric}, {variable.label})",
                "refId": variable.name,
            }
            made = (
                dashboard.QueryVariable(variable.name)
                .label(variable.title)
                .datasource(sources.PROMETHEUS)
                .query(query)
                .refresh(models.VariableRefresh.ON_TIME_RANGE_CHANGED)
                .sort(models.VariableSort.ALPHABETICAL_ASC)
                .multi(variable.many)
                .include_all(variable.many)
            )
            if variable.many:
                made.all_value(".*").current(models.VariableOption(selected=True, text="All", value="$__all"))
            return made
        case Replicas():
            return (
                dashboard.DatasourceVariable(variable.name)
                .label(variable.title)
                .type(sources.POSTGRES_TYPE)
                .regex(f"/^{sources.REPLICA_PREFIX.replace('-', ' ')}/")
            )
        case Text():
            return (
                dashboard.TextBoxVariable(variable.name).label(variable.title).default_value(variable.value)
            )


_Panels = timeseries.Panel | stat.Panel | table.Panel | heatmap.Panel | logs.Panel


def _panel(panel: Panel, number: int, board: str) -> _Panels:
    made = _kind(panel)
    made.title(panel.title).description(_described(panel)).id(number)
    made.unit(panel.unit).no_value("none").interval("15s")
    made.datasource(_source(panel.queries[0]))
    for place, query in enumerate(panel.queries):
        made.with_target(_target(query, chr(ord("A") + place), panel))
    links = [
        dashboard.DashboardLink(f"Runbook: {name}")
        .type(models.DashboardLinkType.LINK)
        .url(f"${{runbooks}}/{board}.md#{name.lower()}")
        .target_blank(True)
        for name in panel.alerts
    ]
    if links:
        made.links(list(links))
    if panel.limit:
        made.thresholds(_thresholds(panel.limit))
    return made


def _described(panel: Panel) -> str:
    reasons = dict.fromkeys(query.empty_when_healthy for query in panel.queries if query.empty_when_healthy)
    return " ".join([panel.says, *(f"Empty while all is well: {reason}" for reason in reasons)])


def _kind(panel: Panel) -> _Panels:
    match panel.kind:
        case "series":
            made = timeseries.Panel().legend(_legend()).tooltip(_tooltip()).fill_opacity(10).span_nulls(True)
            if panel.stacked:
                made.stacking(common.StackingConfig().mode(kinds.StackingMode.NORMAL)).fill_opacity(30)
            if panel.limit:
                made.thresholds_style(
                    common.GraphThresholdsStyleConfig().mode(kinds.GraphThresholdsStyleMode.LINE_AND_AREA)
                )
            return made
        case "stat":
            return (
                stat.Panel()
                .graph_mode(kinds.BigValueGraphMode.AREA)
                .reduce_options(common.ReduceDataOptions().calcs(["lastNotNull"]).values(False))
            )
        case "table":
            shown = table.Panel().align(kinds.FieldTextAlignment.AUTO).inspect(False)
            if panel.traced:
                shown.override_by_name("order_id", [_links(*_OF_ORDER)])
                shown.override_by_name("trace", [_links(_LOGS_OF_TRACE)])
            return shown
        case "heatmap":
            linear = common.ScaleDistributionConfig().type(kinds.ScaleDistribution.LINEAR)
            colors = heatmap.HeatmapColorOptions().mode(HeatmapColorMode.SCHEME).scheme("Oranges").steps(64)
            axis = heatmap.YAxisConfig().unit(panel.unit)
            return heatmap.Panel().scale_distribution(linear).color(colors.exponent(0.5)).y_axis(axis)
        case "logs":
            return logs.Panel().show_time(True).enable_log_details(True).wrap_log_message(True)


_LOGS_OF_TRACE: Final = ("Log lines of its trace", "/d/ordermesh-logs?var-trace=${__data.fields.trace}")
_OF_ORDER: Final = (
    _LOGS_OF_TRACE,
    ("Runbook: OrdersHang", "${runbooks}/recovery.md#ordershang"),
)


def _links(*links: tuple[str, str]) -> models.DynamicConfigValue:
    value = [{"title": title, "url": url, "targetBlank": False} for title, url in links]
    return models.DynamicConfigValue(id_val="links", value=value)


def _legend() -> common.VizLegendOptions:
    return (
        common.VizLegendOptions()
        .display_mode(kinds.LegendDisplayMode.LIST)
        .placement(kinds.LegendPlacement.BOTTOM)
        .show_legend(True)
    )


def _tooltip() -> common.VizTooltipOptions:
    return common.VizTooltipOptions().mode(kinds.TooltipDisplayMode.MULTI).sort(kinds.SortOrder.DESCENDING)


def _thresholds(limit: Limit) -> dashboard.ThresholdsConfig:
    low, high = (_BAD, _GOOD) if limit.below else (_GOOD, _BAD)
    steps = [models.Threshold(value=None, color=low), models.Threshold(value=limit.at, color=high)]
    return dashboard.ThresholdsConfig().mode(models.ThresholdsMode.ABSOLUTE).steps(steps)


def _source(query: Query) -> models.DataSourceRef:
    match query:
        case Prom():
            return sources.PROMETHEUS
        case Sql():
            return sources.REPLICA
        case Elastic():
            return query.source


def _target(query: Query, ref: str, panel: Panel) -> builder.Builder[variants.Dataquery]:
    match query:
        case Prom():
            asked = prometheus.Dataquery().expr(query.expr).ref_id(ref).datasource(sources.PROMETHEUS)
            asked.legend_format(query.legend or "__auto")
            if query.exemplars:
                asked.exemplar(True)
            shape = {"heatmap": PromQueryFormat.HEATMAP, "table": PromQueryFormat.TABLE}
            asked.format(shape.get(panel.kind, PromQueryFormat.TIME_SERIES))
            return asked.instant() if query.now or panel.kind == "table" else asked.range()
        case Sql():
            return _Made(runtime.UnknownDataquery(_sql(query, ref)))
        case Elastic():
            return _Made(_search(query, ref))


def _sql(query: Sql, ref: str) -> dict[str, Any]:
    return {
        "refId": ref,
        "datasource": sources.REPLICA.to_json(),
        "editorMode": "code",
        "format": "table",
        "rawQuery": True,
        "rawSql": statement(query.name),
    }


def _search(query: Elastic, ref: str) -> es.Dataquery:
    time = sources.ORDERS_TIME if query.shows == "orders" else sources.LOGS_TIME
    buckets: list[es.BucketAggregation] = []
    if query.by:
        most = es.ElasticsearchTermsSettings(
            order=es.TermsOrder.DESC, size=TERMS_MAX, min_doc_count="1", order_by="_count"
        )
        buckets.append(es.Terms(field=query.by, id_val="2", settings=most))
    if not query.in_table and query.shows != "logs":
        moments = es.ElasticsearchDateHistogramSettings(interval="auto", min_doc_count="0")
        buckets.append(es.DateHistogram(field=time, id_val="3", settings=moments))
    return es.Dataquery(
        query=query.query,
        time_field=time,
        metrics=[_metric(query)],
        bucket_aggs=buckets,
        ref_id=ref,
        datasource=query.source,
        alias=f"{{{{term {query.by}}}}}" if query.by else "",
    )


def _metric(query: Elastic) -> es.MetricAggregation:
    match query.shows:
        case "orders":
            # While a month is built anew it stands in two indices; an order is counted once.
            return es.UniqueCount(
                field="order_id",
                id_val="1",
                settings=es.ElasticsearchUniqueCountSettings(precision_threshold="3000"),
            )
        case "lines":
            return es.Count(id_val="1")
        case "logs":
            return es.Logs(id_val="1", settings=es.ElasticsearchLogsSettings(limit=LOG_LINES_MAX))
