"""How changes get from a shard's outbox to the projector: one port with two implementations.

`outbox` reads the outbox itself and needs nothing else; `kafka` takes from a topic what the relay published.
tests/contract holds both to the port.
"""
