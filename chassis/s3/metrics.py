"""What is counted of the calls of S3."""

from prometheus_client import Counter, Histogram

CALLS = Counter("ordermesh_object_calls_total", "Calls of S3 by how they ended.", ["call", "outcome"])
RETRIES = Counter("ordermesh_object_retries_total", "Tries of S3 that had to be repeated.", ["call", "cause"])
BYTES = Counter("ordermesh_object_bytes_total", "Bytes of bodies that S3 took or gave.", ["direction"])
SECONDS = Histogram(
    "ordermesh_object_call_seconds",
    "How long calls of S3 took, with all their tries.",
    ["call"],
    buckets=(0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120),
)
