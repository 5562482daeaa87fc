"""The local stack: every server and service of ordermesh as supervised processes on this machine.

One module used by `ordermesh dev`, `ordermesh demo`, the tests and the benchmarks. It owns its state
directory; others find everything through `endpoints.json` there and never through fixed ports.
"""
