"""What the gateway counts; names as in the telemetry registry. No label ever holds a user, an order or a raw
path.
"""

from __future__ import annotations

from prometheus_client import Counter, Gauge, Histogram

HANDLED = Counter("http_server_handled_total", "Requests answered.", ["route", "method", "status"])
SECONDS = Histogram(
    "http_server_handling_seconds",
    "Time from the first byte of a request to the last of its answer; streams are not in it.",
    ["route", "method"],
    buckets=(0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30),
)
STREAMS = Gauge("ordermesh_gateway_streams", "Event streams that are open.")
IN_FLIGHT = Gauge("ordermesh_gateway_requests_in_flight", "Requests that are being answered.")
CONNECTIONS = Gauge("ordermesh_gateway_connections", "Connections that are open.")
CONNECTIONS_REFUSED = Counter(
    "ordermesh_gateway_connections_refused_total", "Connections refused.", ["cause"]
)
RECEIPT_TIMEOUTS = Counter(
    "ordermesh_gateway_receipt_timeouts_total", "Requests that did not arrive in time."
)
RATE_LIMITED = Counter("ordermesh_gateway_rate_limited_total", "Requests refused by a rate.", ["policy"])
METHODS = frozenset({"GET", "POST", "PUT", "PATCH", "DELETE", "HEAD", "OPTIONS"})
"""Other methods are counted as `other`: clients may send any word."""
