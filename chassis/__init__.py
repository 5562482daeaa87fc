"""The kernel every service is bolted to: settings, errors, ids, clock, rpc, Postgres, identity, telemetry,
supervision, faults.

Owned by nobody's business: the chassis knows no service and no order. What two services need in the same
way stands here; what only one needs stands in that service.
"""
