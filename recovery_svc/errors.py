"""What goes wrong when recovery calls somebody."""

from __future__ import annotations

import grpc

from chassis import rpc
from chassis.rpc.status import DETAILS_KEY


class CallFailed(rpc.RelayedStatus):
    """A call into the mesh failed. Loops look at the code; a handler passes the status on as it came."""

    def __init__(self, failed: grpc.aio.AioRpcError) -> None:
        trailers = tuple(
            (key, value) for key, value in failed.trailing_metadata() or () if key == DETAILS_KEY
        )
        super().__init__(failed.code(), failed.details() or "", trailers)
        self.error = rpc.error_of(failed)


class ReportNotTaken(Exception):
    """order_svc did not take a finding; the lease runs out and the order is claimed again."""
