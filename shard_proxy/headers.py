"""Metadata on its way through: what of a caller's reaches a lane, what of a lane's reaches the caller. Pure.

Headers of the mesh are only believed from the mesh: copies that come in from outside are dropped here.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from chassis.auth import SUBJECT_HEADER

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from shard_proxy.domain import Placement

USER_HEADER = "x-ordermesh-user"
BUCKET_HEADER = "x-ordermesh-bucket"
EPOCH_HEADER = "x-ordermesh-epoch"
PLACEMENT_HEADER = "x-ordermesh-placement"
REPLAY_HEADER = "x-ordermesh-replay"
SHARD_TRAILER = "x-ordermesh-shard"
ROUTE_TRAILER = "x-ordermesh-route"

_INTERNAL = "x-ordermesh-"
# traceparent, tracestate: the channel adds those of our own span, which is a child of the caller's.
_HOP_BY_HOP = frozenset(
    {"te", "user-agent", "content-type", "host", "authorization", "traceparent", "tracestate"}
)
_TRANSPORT = ("grpc-", ":")

Metadata = tuple[tuple[str, str | bytes], ...]


def passed_on(metadata: Iterable[tuple[str, str | bytes]]) -> Metadata:
    """What of a caller's metadata a lane may see."""
    return tuple(
        (key, value)
        for key, value in metadata
        if key not in _HOP_BY_HOP and not key.startswith((_INTERNAL, *_TRANSPORT))
    )


def for_lane(
    placement: Placement, subject_token: str, placements: Sequence[Placement] = (), replay: str = ""
) -> Metadata:
    """What the proxy tells a lane about a call. replay: the order that the request is known to have made."""
    said: list[tuple[str, str | bytes]] = [(SUBJECT_HEADER, subject_token)]
    if placement.bucket is not None:
        said.append((BUCKET_HEADER, str(placement.bucket)))
        said.append((EPOCH_HEADER, str(placement.epoch)))
    if replay:
        said.append((REPLAY_HEADER, replay))
    if placements:
        entries = (f"{each.bucket}:{each.shard}:{each.epoch}" for each in placements)
        said.append((PLACEMENT_HEADER, ",".join(entries)))
    return tuple(said)


def route_trailer(placement: Placement, map_version: int) -> str:
    """Which decision a call was routed by, for people and logs."""
    bucket = "-" if placement.bucket is None else placement.bucket
    epoch = "-" if placement.epoch is None else placement.epoch
    return f"b={bucket} e={epoch} v={map_version} r={placement.why}"


def initial_of(metadata: Iterable[tuple[str, str | bytes]] | None) -> Metadata:
    """A lane's initial metadata without what the transport makes itself."""
    return tuple(
        (key, value)
        for key, value in metadata or ()
        if key not in _HOP_BY_HOP and not key.startswith(_TRANSPORT)
    )


def trailers_of(metadata: Iterable[tuple[str, str | bytes]] | None) -> Metadata:
    """A lane's trailers as they are; status details go through byte by byte."""
    return tuple((key, value) for key, value in metadata or ())
