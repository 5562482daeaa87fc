"""A simulated upstream: a system outside, with a durable ledger of what it executed and faults on demand.

Owns one SQLite file per upstream. order_svc and recovery_svc call it as they would call the real thing;
tests and `ordermesh load` compare its ledger with our orders. It must never ask ordermesh anything, and a
fault must never change what the ledger says.
"""
