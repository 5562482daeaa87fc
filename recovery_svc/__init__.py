"""recovery_svc: finds out what became of orders that hang, and tells order_svc.

Owns nothing stored: it claims due orders of every shard through shard_proxy, probes their upstreams and
reports what it heard. Called by operators, through shard_proxy. It must never write SQL, execute a leg or
decide an order's fate: backoff, budget and parking are `transition()` in order_svc.
"""
