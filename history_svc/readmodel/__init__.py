"""The read model: documents of orders in one index per month, behind one port with two implementations.

`port` says what every implementation does; tests/contract holds both to it. Nothing outside of this package
knows which one is there.
"""
