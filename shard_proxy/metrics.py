"""What the proxy counts. The calls themselves are counted by the chassis as `grpc_server_*`."""

from __future__ import annotations

from prometheus_client import Counter, Gauge, Histogram

LANE_CALLS = Counter(
    "ordermesh_proxy_lane_calls_total", "Calls sent to a lane, by how the lane ended them.", ["lane", "code"]
)
LANE_SECONDS = Histogram(
    "ordermesh_proxy_lane_seconds",
    "Time from sending a unary call to a lane until its answer.",
    ["lane"],
    buckets=(0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30),
)
LANE_IN_FLIGHT = Gauge("ordermesh_proxy_lane_in_flight", "Unary calls that hold a slot of a lane.", ["lane"])
LANE_UP = Gauge("ordermesh_proxy_lane_up", "1 while a lane is connected.", ["lane"])
RESENT = Counter(
    "ordermesh_proxy_resent_total",
    "Calls sent again: after a stale route, a frozen bucket, an order elsewhere, or a lost answer.",
    ["lane", "because"],
)
VIP_MOVES = Counter(
    "ordermesh_vip_moves_total",
    "Moves of users to dedicated buckets and back, by how they ended.",
    ["kind", "phase"],
)
VIP_FROZEN_SECONDS = Histogram(
    "ordermesh_vip_frozen_seconds",
    "How long writes to a bucket paused while one of its users was moved.",
    buckets=(0.0025, 0.005, 0.01, 0.015, 0.025, 0.05, 0.1, 0.15, 0.25, 0.5, 1, 2.5),
)
ROUTES_ADOPTED = Counter(
    "ordermesh_proxy_routes_adopted_total", "Owners of buckets that were learnt from a fence."
)
MAP_VERSION = Gauge("ordermesh_proxy_map_version", "Version of the map that calls are routed with.")
MAP_CHECKED = Gauge(
    "ordermesh_proxy_map_checked_timestamp_seconds",
    "When the control database last confirmed or brought the map.",
)
CONTROL_UP = Gauge("ordermesh_proxy_control_up", "1 while the control database answers.")
