"""gRPC as every service uses it: serving through a gate, calling through bounded channels, typed errors on
both ends.
"""

from chassis.rpc.about import order_in, say_about
from chassis.rpc.call import Call
from chassis.rpc.channel import Channel
from chassis.rpc.ended import SERVER_FAULTS
from chassis.rpc.gate import Gate, ascii_metadata, prepare, serve_call
from chassis.rpc.methods import BadContract, Method, Retry, RouteBy, default_timeout_s, load_stubs, methods_of
from chassis.rpc.server import Mount, PortTaken, RunningServer, serve
from chassis.rpc.status import RelayedStatus, RemoteError, error_of, parse, to_status

__all__ = [
    "SERVER_FAULTS",
    "BadContract",
    "Call",
    "Channel",
    "Gate",
    "Method",
    "Mount",
    "PortTaken",
    "RelayedStatus",
    "RemoteError",
    "Retry",
    "RouteBy",
    "RunningServer",
    "ascii_metadata",
    "default_timeout_s",
    "error_of",
    "load_stubs",
    "methods_of",
    "order_in",
    "parse",
    "prepare",
    "say_about",
    "serve",
    "serve_call",
    "to_status",
]
