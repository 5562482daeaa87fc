"""order_svc: the only writer of orders; one process serves one shard.

Owns orders, timers, journal, idempotency keys, dead letters and outbox of its shard. Called through
shard_proxy by everybody; calls upstreams and nobody else. Never reads another database than its own, and
never says FAILED without proof.
"""
