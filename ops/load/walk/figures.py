"""What the walks of a run came to, and whether they prove anything. Pure."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

from ops.audit.findings import Finding, Findings
from ops.load.tallies import Latencies, percentile
from ops.load.walk.judge import KINDS

if TYPE_CHECKING:
    from collections.abc import Iterable

    from ops.load.walk.judge import Page, Verdict

MERGED_SHARE_MIN: Final = 0.5
OVERLAY_SHARE_MIN: Final = 0.05
"""A run in which fewer pages cross the seam, or fewer show a change that the read model lacks, says nothing
about either.
"""


@dataclass(slots=True)
class Walked:
    """Counts of a run. finished: walks that came to the end of their list; unanswered: those that did not."""

    finished: int = 0
    unanswered: int = 0
    pages: int = 0
    rows: int = 0
    retries: int = 0
    overlaid: int = 0
    """Pages with at least one change that the read model did not have."""
    with_unreachable: int = 0
    relabelled: int = 0
    resolved: int = 0
    to_compare: int = 0
    compared: int = 0
    """Users whose whole history was to be compared with the shards when all was quiet, and was."""
    served_by: Counter[str] = field(default_factory=Counter)
    asked: Counter[str] = field(default_factory=Counter)
    failures: Counter[str] = field(default_factory=Counter)
    lags_s: list[float] = field(default_factory=list)
    took_s: list[float] = field(default_factory=list)
    _findings: Findings = field(default_factory=lambda: Findings(KINDS), init=False)

    def page(self, page: Page, took_s: float, freshness: str, transport: str) -> None:
        """Count a page that came."""
        self.pages += 1
        self.rows += len(page.rows)
        self.overlaid += page.overlay > 0
        self.with_unreachable += bool(page.unreachable)
        self.served_by[page.served_by] += 1
        self.asked[f"{transport} {freshness}"] += 1
        self.took_s.append(took_s)
        if page.lag_s is not None:
            self.lags_s.append(page.lag_s)

    def find(self, verdicts: Iterable[Verdict]) -> None:
        """Count what was wrong."""
        for verdict in verdicts:
            self._findings.add(verdict.kind, verdict.broken)

    def findings(self) -> list[Finding]:
        """Every check of the walks, and what broke it."""
        return self._findings.all()

    def why_void(self) -> str:
        """Why the walks prove nothing; empty when they prove something."""
        if not self.finished:
            return "no walk came to the end of its list"
        if self.compared < self.to_compare:
            return f"{self.compared} of {self.to_compare} histories could be compared with the shards"
        for count, least, what in (
            (self.served_by["MERGED"], MERGED_SHARE_MIN, "merged"),
            (self.overlaid, OVERLAY_SHARE_MIN, "overlaid"),
        ):
            if count < least * self.pages:
                return f"{count} of {self.pages} pages were {what}, which is less than {least:.0%}"
        return ""

    def as_json(self) -> dict[str, Any]:
        """Everything, as one object."""
        lags = sorted(self.lags_s)
        return {
            "finished": self.finished,
            "unanswered": self.unanswered,
            "pages": self.pages,
            "rows": self.rows,
            "retries": self.retries,
            "served_by": dict(self.served_by),
            "merged_share": _share(self.served_by["MERGED"], self.pages),
            "overlay_share": _share(self.overlaid, self.pages),
            "with_unreachable": self.with_unreachable,
            "asked": dict(self.asked),
            "lag_s": {
                "p50": percentile(lags, 0.5),
                "p99": percentile(lags, 0.99),
                "max": percentile(lags, 1.0),
            },
            "page_ms": {
                name: getattr(Latencies.of(self.took_s), name) for name in ("p50_ms", "p99_ms", "max_ms")
            },
            "failures": dict(self.failures),
            "relabelled": self.relabelled,
            "resolved": self.resolved,
            "to_compare": self.to_compare,
            "compared": self.compared,
        }


def rows(walked: Walked) -> list[tuple[str, str]]:
    """The counts as a table for people."""
    said = walked.as_json()
    lag, took = said["lag_s"], said["page_ms"]
    return [
        ("walked to the end", str(walked.finished)),
        ("unanswered", str(walked.unanswered)),
        ("pages, rows", f"{walked.pages}, {walked.rows}"),
        *(
            (f"served by {name}", f"{count} ({_share(count, walked.pages):.1%})")
            for name, count in walked.served_by.most_common()
        ),
        ("with an overlay", f"{walked.overlaid} ({said['overlay_share']:.1%})"),
        ("without a store that was away", str(walked.with_unreachable)),
        *((f"asked for over {how}", str(count)) for how, count in sorted(walked.asked.items())),
        ("read model behind, p50, p99, max", " ".join(f"{lag[at]:.2f} s" for at in ("p50", "p99", "max"))),
        ("page took, p50, p99, max", " ".join(f"{took[f'{at}_ms']:.0f} ms" for at in ("p50", "p99", "max"))),
        ("pages asked for again", str(walked.retries)),
        *((f"tries that failed: {why}", str(count)) for why, count in sorted(walked.failures.items())),
        ("labels changed meanwhile", str(walked.relabelled)),
        ("dead letters resolved meanwhile", str(walked.resolved)),
        ("histories compared with the shards", f"{walked.compared} of {walked.to_compare}"),
    ]


def told(walked: Walked) -> str:
    """How far the walks are, in half a line."""
    wrong = sum(finding.count for finding in walked.findings())
    return (
        f"{walked.finished} walks, {walked.unanswered} unanswered, {walked.pages} pages, "
        f"{_share(walked.served_by['MERGED'], walked.pages):.0%} merged, "
        f"{_share(walked.overlaid, walked.pages):.0%} overlaid, {wrong} wrong"
    )


def _share(count: int, of: int) -> float:
    return round(count / of, 4) if of else 0.0
