"""Shards and their neighbours: lanes, pools, replicas, the map, and users who take too much."""

from __future__ import annotations

from telemetry.dashboards.board import SHARD, Board, Panel, Replicas, Row, Sql
from telemetry.dashboards.expressions import agreed, gauge, quantiles, rate, spread
from telemetry.dashboards.watching import watch

BOARD = Board(
    name="shards",
    title="Shards and VIP users",
    says="Whether each shard is reached, how full it is, and whether a user disturbs the others.",
    variables=(SHARD, Replicas()),
    rows=(
        Row(
            "Lanes",
            (
                watch(
                    "ShardAway",
                    "Lanes that are connected",
                    "1 for each lane that the proxies reach; users of one at 0 get UNAVAILABLE.",
                ),
                Panel(
                    "series",
                    "Calls by lane",
                    "Calls sent to each lane. One that gets far more than the others is hot.",
                    (rate("ordermesh_proxy_lane_calls_total", "lane"),),
                    unit="reqps",
                ),
                Panel(
                    "series",
                    "Calls by lane and code",
                    "How lanes ended calls, without those that went well.",
                    (
                        rate(
                            "ordermesh_proxy_lane_calls_total",
                            "lane",
                            "code",
                            where='code!="OK"',
                            seen=True,
                            empty_when_healthy="lanes end all calls well.",
                        ),
                    ),
                    unit="reqps",
                ),
                Panel(
                    "series",
                    "Time of a lane's answer",
                    "Half of the calls, and 99 of 100, are faster.",
                    quantiles("ordermesh_proxy_lane_seconds", "lane"),
                    unit="s",
                ),
                Panel(
                    "series",
                    "Slots of lanes in use",
                    "Calls that a lane is working on. A flat top means that it takes no more.",
                    (gauge("ordermesh_proxy_lane_in_flight", "lane"),),
                ),
                Panel(
                    "series",
                    "Calls sent again",
                    "After a stale route, a frozen bucket, an order elsewhere, or a lost answer.",
                    (rate("ordermesh_proxy_resent_total", "because"),),
                    unit="reqps",
                ),
            ),
        ),
        Row(
            "Noisy neighbours and VIP users",
            (
                watch(
                    "OneUserTakesTooMuch",
                    "Calls refused because one user takes too much",
                    "By the proxies and by the gateway's rates; the others are served as ever.",
                    unit="reqps",
                    legend="refused",
                ),
                watch(
                    "CallsAreShed",
                    "Calls shed at the entrance",
                    "Refused because too much was going on, here or in a shard, whoever called.",
                    unit="reqps",
                ),
                Panel(
                    "series",
                    "Refusals by where",
                    "Users with too many calls under way, and requests over a rate.",
                    (
                        rate("ordermesh_proxy_user_refused_total", legend="too many under way"),
                        rate("ordermesh_gateway_rate_limited_total", "policy"),
                    ),
                    unit="reqps",
                ),
                Panel(
                    "series",
                    "Moves of users",
                    "Users who got dedicated buckets, or went back, by how the move ended.",
                    (rate("ordermesh_vip_moves_total", "kind", "phase"),),
                    unit="ops",
                ),
                Panel(
                    "heatmap",
                    "How long a move pauses writes",
                    "Writes to the bucket of a user who moves wait that long; nobody else waits.",
                    (spread("ordermesh_vip_frozen_seconds"),),
                    unit="s",
                ),
                Panel(
                    "series",
                    "Orders that are not done, by shard",
                    "A shard with far more than the others is behind.",
                    (agreed("ordermesh_orders_pending", "shard", where='shard=~"$shard"'),),
                ),
                Panel(
                    "series",
                    "Changes of orders by shard",
                    "How busy each shard writes.",
                    (rate("ordermesh_order_changes_total", "instance"),),
                    unit="ops",
                ),
            ),
        ),
        Row(
            "Pools of connections",
            (
                watch(
                    "ShardIsFull",
                    "Statements that found no place",
                    "Refused because pool and queue are full.",
                    unit="ops",
                ),
                watch(
                    "ConnectionsWait",
                    "Wait for a connection",
                    "99 of 100 statements wait less.",
                    unit="s",
                ),
                Panel(
                    "series",
                    "Connections in use",
                    "Busy ones of each pool, all processes together.",
                    (gauge("ordermesh_pg_connections", "pool", "state"),),
                ),
                Panel(
                    "series",
                    "Time of a statement",
                    "How long a connection is held: half, and 99 of 100, are shorter.",
                    quantiles("ordermesh_pg_held_seconds", "pool"),
                    unit="s",
                ),
                Panel(
                    "series",
                    "Failures of databases",
                    "Uses of a connection that failed, by why.",
                    (rate("ordermesh_pg_failures_total", "pool", "reason"),),
                    unit="ops",
                ),
            ),
        ),
        Row(
            "Replicas",
            (
                watch(
                    "ReplicaLags",
                    "Lag of the replicas",
                    "How far each replica is behind its primary.",
                    unit="s",
                ),
                watch(
                    "ReplicaAway",
                    "Replicas that can be looked at",
                    "1 while the gauges of a shard's orders can be had.",
                ),
                Panel(
                    "series",
                    "Pages from replicas",
                    "What became of asking a replica: used, or why the primary was asked.",
                    (rate("ordermesh_history_replica_answers_total", "outcome"),),
                    unit="reqps",
                ),
                Panel(
                    "table",
                    "This replica's own word",
                    "What the chosen replica says of itself. One that receives nothing shows the past.",
                    (Sql("replica_place"),),
                    wide=16,
                ),
                Panel(
                    "series",
                    "Gauges that say too little",
                    "1 while a shard has more orders or cases than a look counts.",
                    (gauge("ordermesh_lookback_is_capped", "shard", where='shard=~"$shard"', of="max"),),
                ),
            ),
        ),
        Row(
            "The map",
            (
                watch(
                    "ControlDatabaseAway",
                    "Control database",
                    "1 while it answers the proxies. Without it calls go by the last map.",
                    legend="answers",
                ),
                watch(
                    "MapsDiffer",
                    "Versions of the map apart",
                    "By how many versions the proxies' maps differ.",
                    legend="apart",
                    more=(gauge("ordermesh_proxy_map_version", "instance", legend="{{instance}}'s version"),),
                ),
                Panel(
                    "series",
                    "Age of the map, and owners learnt",
                    "Since when the map was not confirmed; owners of buckets that a shard told instead.",
                    (
                        gauge(
                            "time() - ordermesh_proxy_map_checked_timestamp_seconds",
                            "instance",
                            legend="{{instance}}'s age",
                            of="max",
                        ),
                        rate("ordermesh_proxy_routes_adopted_total", legend="owners learnt a second"),
                    ),
                    unit="s",
                ),
            ),
        ),
    ),
)
