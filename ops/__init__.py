"""The operator's side of ordermesh: the `ordermesh` command and the local stack it runs.

Owns the state directory of a local stack (Postgres servers, certificates, ports, `endpoints.json`). Called by
people, tests and benchmarks; reaches orders only through the same RPCs as everybody, and never writes one by
SQL.
"""
