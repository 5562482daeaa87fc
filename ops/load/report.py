"""How a run looks: tables for people, one object for programs. Pure."""

from __future__ import annotations

from collections import Counter
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from ops.audit import report
from ops.load.kills import label

if TYPE_CHECKING:
    from ops.load.run import Outcome

Row = tuple[str, ...]


def latencies(outcome: Outcome) -> list[Row]:
    """Milliseconds from due to acknowledged, by transport."""
    return [
        (
            name,
            str(one.count),
            f"{one.p50_ms:.1f}",
            f"{one.p95_ms:.1f}",
            f"{one.p99_ms:.1f}",
            f"{one.max_ms:.1f}",
        )
        for name, one in outcome.tally.figures().items()
    ]


LATENCY_COLUMNS = ("acknowledged over", "orders", "p50 ms", "p95 ms", "p99 ms", "max ms")


def counts(outcome: Outcome) -> list[Row]:
    """What became of the orders, and of the generator."""
    tally = outcome.tally
    return [
        ("arrived", str(tally.arrived)),
        ("acknowledged", str(tally.acknowledged)),
        ("unknown (gave up)", str(tally.unknown)),
        ("refused for good", str(tally.refused)),
        ("shed by the generator", str(tally.shed)),
        ("retries", str(tally.retries)),
        ("sent again on purpose", str(tally.replayed)),
        *((f"tries that failed: {why}", str(count)) for why, count in sorted(tally.failures.items())),
        ("generator behind by at most", f"{1000 * tally.late_s_max:.1f} ms"),
        ("generator CPU", f"{outcome.cpu_s:g} s of {outcome.load_s:g} s"),
    ]


def nemesis(outcome: Outcome) -> list[Row]:
    """Kills, faults and moves, and how often each happened."""
    kills = Counter(label(kill.service, kill.shard) for kill in outcome.kills)
    killed: list[Row] = [("SIGKILL", name, str(count)) for name, count in sorted(kills.items())]
    moved = Counter(f"{each.kind.lower()}: {each.said}" for each in outcome.moves)
    return [
        *killed,
        *(("SIGSTOP", name, f"{count} ({for_s:.0f} s)") for name, count, for_s in _freezes(outcome)),
        *(("fault", f"{each.upstream} {each.fault}", str(each.strikes)) for each in outcome.faults),
        *(("vip move", what, str(count)) for what, count in sorted(moved.items())),
        *(("vip move", f"frozen, {name}", f"{ms:.1f} ms") for name, ms in frozen(outcome).items()),
    ]


def _freezes(outcome: Outcome) -> list[tuple[str, int, float]]:
    """How often each process stood still, and for how long in all."""
    lasted: dict[str, list[float]] = {}
    for each in outcome.freezes:
        lasted.setdefault(label(each.service, each.shard), []).append(each.for_s)
    return [(name, len(found), sum(found)) for name, found in sorted(lasted.items())]


def frozen(outcome: Outcome) -> dict[str, float]:
    """How long buckets were frozen, where whoever froze them saw the end; in milliseconds."""
    ms = sorted(each.frozen_ms for each in outcome.moves if each.frozen_ms is not None)
    if not ms:
        return {}
    return {"p50": ms[len(ms) // 2], "p99": ms[min(len(ms) - 1, len(ms) * 99 // 100)], "max": ms[-1]}


def as_json(outcome: Outcome) -> dict[str, Any]:
    """Everything, as one object."""
    tally = asdict(outcome.tally)
    del tally["latencies_s"]
    plan = asdict(outcome.plan)
    return {
        "run_id": outcome.run_id,
        "plan": plan,
        "counts": tally,
        "latencies": {name: asdict(one) for name, one in outcome.tally.figures().items()},
        "load_s": outcome.load_s,
        "generator_cpu_s": outcome.cpu_s,
        "kills": [asdict(kill) for kill in outcome.kills],
        "freezes": [asdict(each) for each in outcome.freezes],
        "faults": [asdict(each) for each in outcome.faults],
        "vip_moves": [asdict(each) for each in outcome.moves],
        "frozen_ms": frozen(outcome),
        "quiet": {**asdict(outcome.quiet), "reached": outcome.quiet.reached},
        "walks": outcome.walked.as_json() if outcome.walked is not None else None,
        "void": outcome.void,
        "checks": report.as_json(outcome.findings),
        "violations": outcome.violations,
        "log": str(outcome.log),
    }
