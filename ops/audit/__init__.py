"""The audit: invariants that hold on every shard and between shards, map and upstreams' ledgers, read and
never written.

Called by `ordermesh audit`, by the load generator's checker and by tests. Each shard is read in one
snapshot and ledgers are read after it, so an audit under load reports no order that is merely in motion. It
fails with OpsError when a store cannot be read: a check that was not made is never reported as passed.
"""

from ops.audit.findings import Broken, Finding, Findings
from ops.audit.run import run

__all__ = ["Broken", "Finding", "Findings", "run"]
