"""The named fault points of order_svc, each with what is true on disk when the process dies there."""

from __future__ import annotations

from dataclasses import dataclass

from chassis.faults import declare


@dataclass(frozen=True, slots=True)
class Commit:
    """The two points around one statement that writes."""

    before: str
    after: str


def _commit(name: str, before: str, after: str) -> Commit:
    return Commit(declare(f"{name}.before_commit", before), declare(f"{name}.after_commit", after))


CREATE = _commit(
    "create",
    "nothing is written; the caller knows nothing and sends again",
    "the order is written and its call was not made; its timer wakes recovery",
)
BEGIN = _commit(
    "begin",
    "the order is READY; its timer is due, or leased for a while and then claimed again",
    "the submission is journaled and its call was not made; its timer wakes recovery",
)
SUBMIT_BEFORE_CALL = declare("submit.before_call", "the submission is journaled; the upstream knows nothing")
SUBMIT_AFTER_CALL = declare("submit.after_call", "the upstream answered; nobody knows but this process")
SETTLE = _commit(
    "settle",
    "the upstream answered and nothing of it is written; its timer wakes recovery",
    "the verdict is written; whoever waits has not been told",
)
CLAIM_AFTER_COMMIT = declare(
    "claim.after_commit", "timers are leased and nobody has them; the leases run out"
)
REPORT = _commit(
    "report",
    "the finding is not written; the reporter sends it again or its lease runs out",
    "the finding is journaled; a repeat of the report changes nothing",
)
OWN = _commit(
    "own_bucket",
    "the map may name a bucket that its shard does not own yet; no order is there",
    "the bucket is owned and nobody was told; a repeat changes nothing",
)
FREEZE = _commit(
    "freeze_bucket",
    "the bucket is open and a mover wants it frozen",
    "the bucket is frozen until the mover or its successor says how it goes on",
)
THAW = _commit(
    "thaw_bucket",
    "the bucket is frozen, and the control database says how it goes on",
    "the bucket is open and nobody was told; a repeat changes nothing",
)
IMPORT = _commit(
    "import_keys",
    "none of these keys is copied; the mover begins again",
    "the keys are copied; a repeat changes nothing",
)
REDRIVE = _commit(
    "redrive",
    "the case is open",
    "the case is closed and the order is due for a probe; a repeat changes nothing",
)
UPDATE = _commit(
    "update",
    "the order has its old labels; a repeat gives it the new ones",
    "the order has its new labels and nobody was told; a repeat changes nothing",
)
RESOLVE = _commit(
    "resolve", "the case is open", "the case is closed and the order is settled; a repeat changes nothing"
)
