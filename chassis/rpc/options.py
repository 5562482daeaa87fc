"""grpcio channel arguments, each with its reason. grpcio never reports an argument it does not know, so
behaviour is tested.
"""

from __future__ import annotations

import random

MIB = 1024 * 1024
METADATA_BYTES_MAX = 8192
REQUEST_BYTES_MAX = MIB
RESPONSE_BYTES_MAX = 4 * MIB
HANDSHAKE_MS = 5_000
_IDLE_MS = 15 * 60_000
_AGE_MS = 30 * 60_000

Options = list[tuple[str, int | str]]

_KEEPALIVE: Options = [
    # A stopped peer is noticed after 14 s instead of 69 s; all three are needed.
    ("grpc.keepalive_time_ms", 10_000),
    ("grpc.keepalive_timeout_ms", 5_000),
    ("grpc.http2.ping_timeout_ms", 5_000),
    ("grpc.keepalive_permit_without_calls", 1),
    ("grpc.http2.max_pings_without_data", 0),
]
_METADATA: Options = [
    # Soft and hard limit equal: between them calls are refused at random.
    ("grpc.max_metadata_size", METADATA_BYTES_MAX),
    ("grpc.absolute_max_metadata_size", METADATA_BYTES_MAX),
]


def server_options(*, streams_max: int = 256, connections_max: int = 500) -> Options:
    """Arguments of a listener. streams_max: calls at once on one connection. connections_max: connections
    at once.
    """
    age = int(_AGE_MS * random.uniform(0.9, 1.1))
    return [
        *_KEEPALIVE,
        *_METADATA,
        ("grpc.max_receive_message_length", REQUEST_BYTES_MAX),
        ("grpc.max_send_message_length", RESPONSE_BYTES_MAX),
        # Unlimited by default: one client that opens and resets streams took a whole core.
        ("grpc.max_concurrent_streams", streams_max),
        ("grpc.server_handshake_timeout_ms", HANDSHAKE_MS),
        ("grpc.http2.min_ping_interval_without_data_ms", 5_000),
        ("grpc.http2.max_ping_strikes", 2),
        ("grpc.max_connection_idle_ms", _IDLE_MS),
        ("grpc.max_connection_age_ms", age),
        ("grpc.max_connection_age_grace_ms", 30_000),
        ("grpc.max_allowed_incoming_connections", connections_max),
        # On by default, and then a second server silently shares the port.
        ("grpc.so_reuseport", 0),
    ]


def channel_options(server_name: str | None = None) -> Options:
    """Arguments of a channel. server_name: the name in the server's certificate."""
    options: Options = [
        *_KEEPALIVE,
        *_METADATA,
        ("grpc.max_receive_message_length", RESPONSE_BYTES_MAX),
        ("grpc.max_send_message_length", RESPONSE_BYTES_MAX),
        # An http_proxy in the environment must not carry calls of the mesh away.
        ("grpc.enable_http_proxy", 0),
        # Retries are made in one layer, by us.
        ("grpc.enable_retries", 0),
        # A process that was killed is back within 2 s; do not wait longer than that to try again.
        ("grpc.initial_reconnect_backoff_ms", 100),
        ("grpc.max_reconnect_backoff_ms", 1_000),
        # Whatever its name says: how long one try may take. As long as a server waits for it, since with less
        # than a starved server needs each try is cut off, costs it another handshake, and none succeeds.
        ("grpc.min_reconnect_backoff_ms", HANDSHAKE_MS),
        ("grpc.use_local_subchannel_pool", 1),
    ]
    if server_name is not None:
        options.append(("grpc.ssl_target_name_override", server_name))
    return options
