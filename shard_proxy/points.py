"""The named fault points of shard_proxy: around each step of a move, with what is true when it dies there."""

from __future__ import annotations

from dataclasses import dataclass

from chassis.faults import declare


@dataclass(frozen=True, slots=True)
class Around:
    """The two points around one step."""

    before: str
    after: str


def _step(name: str, before: str, after: str) -> Around:
    return Around(declare(f"vip.{name}.before", before), declare(f"vip.{name}.after", after))


OWN = _step(
    "own",
    "the move is planned and its bucket is in the map; no shard was asked for anything",
    "both buckets are owned; nothing else happened",
)
COPY = _step(
    "copy",
    "no key was copied, or some: a copy of a key is true wherever it is",
    "the keys are copied but for those of the last moment; nothing is frozen",
)
FREEZE = _step(
    "freeze",
    "the move says that a bucket may be frozen, and it is not",
    "the bucket is frozen; the control database says the old epoch, so its successor takes it back",
)
DELTA = _step(
    "delta",
    "the bucket is frozen and its last keys are not copied",
    "the bucket is frozen and every key is copied",
)
FLIP = _step(
    "flip",
    "everything is copied and the map is the old one",
    "the map is the new one and the old bucket is frozen: its successor goes forward",
)
THAW = _step(
    "thaw",
    "the old bucket waits to be opened at its new epoch",
    "the old bucket is open at its new epoch; the move is not marked as done",
)
BACK = _step(
    "back",
    "an attempt failed and the move says that it is taken back",
    "the old bucket is open at its old epoch; the move does not say so yet",
)
