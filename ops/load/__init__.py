"""The load generator: orders at a fixed rate, processes killed and upstreams misbehaving meanwhile, and
then the proof.

Owns nothing but its acknowledgement log below the state directory. It talks to the mesh as everybody does,
over gRPC with mTLS or over REST; only its checker reads databases and ledgers, and reads them only. A run
that proves nothing (nothing acknowledged, a kill or fault that never struck) fails like one that found a
violation.
"""

from ops.load.run import Outcome, run

__all__ = ["Outcome", "run"]
