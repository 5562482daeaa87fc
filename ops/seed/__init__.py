"""Back-dated histories: orders of months ago, as the domain's own functions make them, written by COPY.

Called by `ordermesh seed`, by tests and by benchmarks. Everything that is drawn comes from the seed, so the
same plan makes the same orders, and a second run adds nothing. What is written satisfies the audit; it has no
outbox events, so each month that gets rows is marked in the shard's catalog, in the same transaction, as one
that the read model must not serve until it is rebuilt. Never meant for a production database.
"""

from ops.seed.plan import Plan, PlanRefused
from ops.seed.run import Outcome, run

__all__ = ["Outcome", "Plan", "PlanRefused", "run"]
