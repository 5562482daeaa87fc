"""Rules of Prometheus from telemetry/slos.toml and telemetry/alerts.toml.

`rules(time)` gives them with every duration shrunk by a `Time`: not at all for deploy/, much where a test
makes time go faster. Fails with RegistryError, which names the entry.
"""

from __future__ import annotations

import re
import tomllib
from dataclasses import dataclass
from functools import cache
from typing import Any, Final

from telemetry.registry import HERE, RegistryError

SEVERITIES: Final = ("page", "ticket")
DASHBOARDS: Final = (
    *("overview", "services", "orders", "recovery", "shards", "read-side", "archive", "runtime", "logs"),
)
WINDOWS: Final = ("5m", "30m", "1h", "2h", "6h", "1d", "3d")
BURNS: Final = {
    "page": (("5m", "1h", 14.4), ("30m", "6h", 6.0)),
    "ticket": (("2h", "1d", 3.0), ("6h", "3d", 1.0)),
}
"""Short window, long window, and how many times too fast the budget burns in both: Google's SRE workbook."""
RUNBOOKS: Final = "docs/runbooks"
_RUNBOOKS_URL: Final = f'{{{{ or $externalLabels.runbooks "{RUNBOOKS}" }}}}'
_GRAFANA_URL: Final = "{{ $externalLabels.grafana }}"

_UNITS_S: Final = {"s": 1, "m": 60, "h": 3600, "d": 86_400}
_TIME: Final = re.compile(r"%\{(\d+)(s|m|h|d)( in seconds)?\}")
_FIELDS: Final = {"promise", "severity", "for", "expr", "summary", "dashboard", "command"}


@dataclass(frozen=True, slots=True)
class Time:
    """How durations of rules shrink: all by `scale`, and then none is longer than `longest_s`."""

    scale: float = 1.0
    longest_s: float = float("inf")

    def shrunk_s(self, seconds: float) -> float:
        """A duration of the rules, in seconds."""
        return min(seconds * self.scale, self.longest_s)


AS_IT_IS: Final = Time()


@dataclass(frozen=True, slots=True)
class Alert:
    """One alerting rule before its times are filled in. hold: how long it must be true; `for` in the file.

    promise: the one that is broken or in danger, or empty.
    """

    name: str
    severity: str
    hold: str
    expr: str
    summary: str
    dashboard: str
    command: str
    promise: str = ""

    def link(self) -> str:
        """Its panel, alone and large, as a path of Grafana."""
        # Dashboards are made of alerts, so they come later.
        from telemetry import dashboards

        board, panel = dashboards.panel_of(self)
        return f"/d/{board}?viewPanel={panel}"

    def rule(self, time: Time) -> dict[str, Any]:
        """As Prometheus reads it."""
        labels = {"severity": self.severity} | ({"promise": self.promise} if self.promise else {})
        return {
            "alert": self.name,
            "expr": timed(self.expr, time),
            "for": timed(self.hold, time),
            "labels": labels,
            "annotations": {
                "summary": self.summary,
                # Where these are, the server's external labels say; without them it is a path.
                "runbook_url": f"{_RUNBOOKS_URL}/{self.dashboard}.md#{self.name.lower()}",
                "dashboard_url": f"{_GRAFANA_URL}{self.link()}",
                "command": self.command,
            },
        }


CALLS_PER_S_MIN: Final = 0.2
"""A budget is counted as if there were at least so many calls: of one a minute, one that fails is no outage,
and thirty are one.
"""


@dataclass(frozen=True, slots=True)
class Slo:
    """A service level objective. objective: percent. page, ticket: names of its alerts.

    errors, total: rates over the window `%w`.
    """

    name: str
    objective: float
    page: str
    ticket: str
    meaning: str
    errors: str
    total: str

    @property
    def budget(self) -> float:
        """The share of calls that may fail."""
        return round(1 - self.objective / 100, 6)

    @property
    def labels(self) -> dict[str, str]:
        """What sloth's dashboards expect on its series."""
        return {"sloth_id": f"ordermesh-{self.name}", "sloth_service": "ordermesh", "sloth_slo": self.name}

    def recordings(self, time: Time) -> list[dict[str, Any]]:
        """The share of errors over each window."""
        ratio = f"({self.errors}) / clamp_min({self.total}, {CALLS_PER_S_MIN:g})"
        return [
            {
                "record": f"slo:sli_error:ratio_rate{window}",
                "expr": ratio.replace("%w", timed(f"%{{{window}}}", time)),
                "labels": {**self.labels, "sloth_window": window},
            }
            for window in WINDOWS
        ] + [
            {"record": "slo:objective:ratio", "expr": f"vector({1 - self.budget:g})", "labels": self.labels},
            {"record": "slo:error_budget:ratio", "expr": f"vector({self.budget:g})", "labels": self.labels},
        ]

    def alerts(self) -> list[Alert]:
        """One for each severity; both burn rates of it in one."""
        return [
            Alert(
                name=name,
                severity=severity,
                hold="0s",
                expr=" or ".join(self._burns(*burn) for burn in BURNS[severity]),
                summary=f"{{{{ $value | humanizePercentage }}}} are against this objective: {self.meaning}",
                dashboard="overview",
                command="ordermesh doctor",
            )
            for severity, name in (("page", self.page), ("ticket", self.ticket))
        ]

    def _burns(self, short: str, long: str, times: float) -> str:
        limit = f"{times * self.budget:g}"
        return f"({self._ratio(short)} > {limit} and {self._ratio(long)} > {limit})"

    def _ratio(self, window: str) -> str:
        series = f'slo:sli_error:ratio_rate{window}{{sloth_id="{self.labels["sloth_id"]}"}}'
        return f"max without (sloth_window) ({series})"


def timed(text: str, time: Time) -> str:
    """Fill in the times of an expression. Thresholds shrink by the scale alone: ages have no longest."""

    def fill(found: re.Match[str]) -> str:
        seconds = int(found[1]) * _UNITS_S[found[2]]
        if found[3]:
            return f"{seconds * time.scale:g}"
        return found[1] + found[2] if time == AS_IT_IS else f"{round(time.shrunk_s(seconds) * 1000)}ms"

    return _TIME.sub(fill, text)


@cache
def slos() -> tuple[Slo, ...]:
    """Every objective."""
    raw = tomllib.loads((HERE / "slos.toml").read_text(encoding="utf-8"))
    return tuple(Slo(name, **entry) for name, entry in raw.items())


@cache
def alerts() -> tuple[Alert, ...]:
    """Every alert: those of objectives, then the others."""
    raw = tomllib.loads((HERE / "alerts.toml").read_text(encoding="utf-8"))
    return (
        *(alert for slo in slos() for alert in slo.alerts()),
        *(_alert(name, entry) for name, entry in raw.items()),
    )


def _alert(name: str, entry: dict[str, str]) -> Alert:
    if unknown := entry.keys() - _FIELDS:
        raise RegistryError(f"alert {name} has fields that nobody knows: {', '.join(sorted(unknown))}")
    if entry["severity"] not in SEVERITIES or entry["dashboard"] not in DASHBOARDS:
        raise RegistryError(f"alert {name} has no severity, or no dashboard, of ours")
    return Alert(
        name=name,
        hold=entry["for"],
        **{field: value for field, value in entry.items() if field != "for"},
    )


def rules(time: Time = AS_IT_IS) -> dict[str, Any]:
    """The rule file, as Prometheus reads it."""
    return {
        "groups": [
            *({"name": f"slo-{slo.name}", "rules": slo.recordings(time)} for slo in slos()),
            {"name": "alerts", "rules": [alert.rule(time) for alert in alerts()]},
        ]
    }
