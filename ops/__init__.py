"""The operator's side of ordermesh: the `ordermesh` command and the local stack it runs.

Owns the state directory of a local stack (Postgres servers, certificates, ports, `endpoints.json`). Called by
people, tests and benchmarks; reaches orders only through the same RPCs as everybody, and never writes one by
SQL.
"""

import os

# We only fork to exec at once; gRPC's fork handlers would warn about it on the terminal each time.
os.environ.setdefault("GRPC_ENABLE_FORK_SUPPORT", "0")
