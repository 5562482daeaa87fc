"""What the log of a run says against what the shards hold: nothing acknowledged is lost, doubled or
changed. Pure but for the reading.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ops.audit.findings import Broken, Finding, Findings
from ops.audit.shards import fetch
from ops.load.kills import label
from ops.load.log import Entry, Kind

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence

    from ops.load.faults import Struck
    from ops.load.freezes import Frozen
    from ops.load.kills import Killed
    from ops.load.moves import Moved
    from ops.load.plan import Plan
    from ops.load.tallies import Tally

CHECKS = {
    "l1_acknowledged": "Every acknowledged order exists exactly once, on exactly one shard.",
    "l2_content": "An acknowledged order has the user, request, amount and currency that were asked for.",
    "l3_unknown": "A request without acknowledgement made at most one order; a refused one made none.",
    "l4_asked": "Every order of this run was asked for.",
    "l5_settled": "Every order is SUCCESS, FAILED or parked.",
    "l6_same": "The same request sent again gives the same order.",
    "l7_proof": "The run proves something: orders were acknowledged, each kill and freeze happened, each "
    "fault struck, somebody was moved where that was asked for, every arrival is accounted for.",
}
"""What is checked of a run, besides the audit."""
_FIND = """
SELECT order_id::text, user_id, request_id::text, amount_minor, currency_code, status, stage
  FROM orders
 WHERE created_at >= $1 AND description = $2"""


@dataclass(frozen=True, slots=True)
class Found:
    """One order of the run, as a shard holds it."""

    shard: str
    order_id: str
    user_id: str
    request_id: str
    amount_minor: int
    currency_code: str
    status: str
    stage: str


async def find(dsns: Mapping[str, str], description: str, since: object) -> list[Found]:
    """Every order of a run on every shard, marked by its description. since: an instant before its first.

    Raises: StoreUnreadable.
    """
    found = []
    for shard, dsn in dsns.items():
        found += [Found(shard, **row) for row in await fetch(shard, dsn, _FIND, since, description)]
    return found


def compare(entries: Sequence[Entry], found: Sequence[Found]) -> list[Finding]:
    """Hold the log against the shards: l1 to l6."""
    findings = Findings({check: says for check, says in CHECKS.items() if check != "l7_proof"})
    by_id = _grouped(found, "order_id")
    by_request = _grouped(found, "request_id")
    acknowledged = [entry for entry in entries if entry.kind is Kind.OK]
    for entry in acknowledged:
        findings.add("l1_acknowledged", *_once(entry, by_id, by_request))
        findings.add("l2_content", *_as_asked(entry, by_id.get(entry.order_id, [])))
    for entry in entries:
        findings.add("l3_unknown", *_unknown(entry, by_request.get(entry.request_id, [])))
    asked = {entry.request_id for entry in entries}
    findings.add(
        "l4_asked",
        *(Broken(one.shard, one.order_id, "nobody asked") for one in found if one.request_id not in asked),
    )
    findings.add(
        "l5_settled",
        *(Broken(one.shard, one.order_id, one.stage) for one in found if one.stage not in ("DONE", "PARKED")),
    )
    findings.add("l6_same", *_same(entries, {entry.request_id: entry.order_id for entry in acknowledged}))
    return findings.all()


def prove(
    plan: Plan,
    tally: Tally,
    kills: Sequence[Killed],
    struck: Sequence[Struck],
    moves: Sequence[Moved] = (),
    freezes: Sequence[Frozen] = (),
) -> list[Finding]:
    """Whether the run did what it was told to do: l7. A check of nothing finds nothing."""
    findings = Findings({"l7_proof": CHECKS["l7_proof"]})
    facts = []
    if tally.acknowledged == 0:
        facts.append(("run", "nothing was acknowledged"))
    ended = tally.acknowledged + tally.unknown + tally.refused + tally.shed
    if ended != tally.arrived:
        facts.append(("run", f"{tally.arrived} arrived, {ended} are accounted for"))
    killed = _names(kills)
    facts += [
        (f"--kill {kill.service}", "killed nothing") for kill in plan.kills if kill.service not in killed
    ]
    frozen = _names(freezes)
    facts += [
        (f"--freeze {freeze.name}", "froze nothing") for freeze in plan.freezes if freeze.name not in frozen
    ]
    strikes: Counter[str] = Counter()
    for each in struck:
        strikes[each.fault] += each.strikes
    facts += [
        (f"--upstream-fault {fault.label}", "never struck")
        for fault in plan.faults
        if not strikes[fault.label]
    ]
    if plan.vip_moves_every_s and not any(each.said == "DONE" for each in moves):
        facts.append(("--vip-moves", "moved nobody"))
    findings.add("l7_proof", *(Broken("load", what, fact) for what, fact in facts))
    return findings.all()


def _names(struck: Iterable[Killed | Frozen]) -> set[str]:
    """Every name that a process which was struck goes by."""
    return {name for each in struck for name in (each.service, label(each.service, each.shard))}


def _once(
    entry: Entry, by_id: Mapping[str, Sequence[Found]], by_request: Mapping[str, Sequence[Found]]
) -> Iterator[Broken]:
    here = by_id.get(entry.order_id, [])
    if len(here) != 1:
        shards = ", ".join(one.shard for one in here) or "no shard"
        yield Broken("log", entry.order_id, f"acknowledged over {entry.transport}, is on {shards}")
    for other in by_request.get(entry.request_id, []):
        if other.order_id != entry.order_id:
            yield Broken(other.shard, other.order_id, f"a second order for the request of {entry.order_id}")


def _as_asked(entry: Entry, here: Sequence[Found]) -> Iterator[Broken]:
    if entry.said:
        yield Broken("log", entry.order_id, f"the acknowledgement says {entry.said}")
    asked = (entry.user_id, entry.request_id, entry.amount_minor, entry.currency_code)
    for one in here:
        if (one.user_id, one.request_id, one.amount_minor, one.currency_code) != asked:
            kept = f"{one.user_id} {one.amount_minor} {one.currency_code}"
            yield Broken(one.shard, one.order_id, f"kept as {kept}")


def _unknown(entry: Entry, made: Sequence[Found]) -> Iterator[Broken]:
    if entry.kind is Kind.INFO and len(made) > 1:
        yield Broken("log", entry.request_id, f"made {len(made)} orders")
    if entry.kind is Kind.FAIL and made:
        yield Broken(made[0].shard, made[0].order_id, f"was refused with {entry.why}")


def _same(entries: Iterable[Entry], first: Mapping[str, str]) -> Iterator[Broken]:
    for entry in entries:
        if entry.kind is Kind.REPLAY and entry.order_id != first.get(entry.request_id):
            again = entry.order_id or f"was refused with {entry.why}"
            yield Broken("log", first.get(entry.request_id, entry.request_id), f"sent again: {again}")


def _grouped(found: Iterable[Found], by: str) -> dict[str, list[Found]]:
    groups: dict[str, list[Found]] = {}
    for one in found:
        groups.setdefault(getattr(one, by), []).append(one)
    return groups
