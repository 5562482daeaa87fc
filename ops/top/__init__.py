"""A live screen of a running stack: rates, lags, orders that hang, and why things wait.

Nothing here changes anything. Numbers come from each process's own metrics, so it works without Prometheus;
the reasons come from recovery's holds and from the shards' sessions.
"""
