"""Where dashboards ask: Prometheus, the read replica of each shard, and Elasticsearch.

How Grafana learns of them; addresses and passwords come from its environment. Dashboards know data sources by
their uid alone.
"""

from __future__ import annotations

from typing import Any, Final

from grafana_foundation_sdk.models.dashboard import DataSourceRef

SHARDS: Final = ("s1", "s2", "v1")
"""Those of the local stack; who has others writes one block for each."""
REPLICA_PREFIX: Final = "ordermesh-replica-"
POSTGRES_TYPE: Final = "grafana-postgresql-datasource"
ORDERS_TIME: Final = "created_at"
LOGS_TIME: Final = "@timestamp"

PROMETHEUS: Final = DataSourceRef(type_val="prometheus", uid="ordermesh-prometheus")
REPLICA: Final = DataSourceRef(type_val=POSTGRES_TYPE, uid="${replica}")
"""The replica that is chosen on the dashboard."""
ORDERS: Final = DataSourceRef(type_val="elasticsearch", uid="ordermesh-orders")
LOGS: Final = DataSourceRef(type_val="elasticsearch", uid="ordermesh-logs")


def provisioned() -> dict[str, Any]:
    """The file of data sources, as Grafana reads it at start."""
    return {
        "apiVersion": 1,
        "prune": True,
        "datasources": [
            _prometheus(),
            *(_replica(shard) for shard in SHARDS),
            _elasticsearch("ordermesh-orders", "orders-v*", ORDERS_TIME, {}),
            _elasticsearch(
                "ordermesh-logs",
                "logs-ordermesh*",
                LOGS_TIME,
                {"logMessageField": "message", "logLevelField": "log.level"},
            ),
        ],
    }


def provider() -> dict[str, Any]:
    """The file that says where Grafana finds the dashboards."""
    return {
        "apiVersion": 1,
        "providers": [
            {
                "name": "ordermesh",
                "folder": "ordermesh",
                "type": "file",
                "allowUiUpdates": False,
                "updateIntervalSeconds": 60,
                "options": {"path": "/etc/grafana/dashboards"},
            }
        ],
    }


def _prometheus() -> dict[str, Any]:
    return {
        "name": "ordermesh metrics",
        "uid": "ordermesh-prometheus",
        "type": "prometheus",
        "access": "proxy",
        "isDefault": True,
        "url": "$ORDERMESH_PROMETHEUS_URL",
        "jsonData": {
            "httpMethod": "POST",
            "timeInterval": "15s",
            # Twice, since Grafana puts its environment's values where there is one dollar.
            "exemplarTraceIdDestinations": [
                {
                    "name": "trace_id",
                    "url": "/d/ordermesh-logs?var-trace=$${__value.raw}",
                    "urlDisplayLabel": "Its log lines",
                }
            ],
        },
    }


def _replica(shard: str) -> dict[str, Any]:
    """One replica. Its role ends a statement after two seconds and may do nothing but read: role.sql."""
    return {
        "name": f"ordermesh replica {shard}",
        "uid": f"{REPLICA_PREFIX}{shard}",
        "type": POSTGRES_TYPE,
        "access": "proxy",
        "url": f"$ORDERMESH_REPLICA_{shard.upper()}",
        "user": "ordermesh_dashboards",
        "secureJsonData": {"password": "$ORDERMESH_DASHBOARDS_PASSWORD"},
        "jsonData": {
            "database": shard,
            "sslmode": "$ORDERMESH_REPLICA_SSLMODE",
            "maxOpenConns": 2,
            "maxIdleConns": 1,
            "connMaxLifetime": 300,
            "timescaledb": False,
        },
    }


def _elasticsearch(uid: str, index: str, time: str, more: dict[str, str]) -> dict[str, Any]:
    return {
        "name": uid.replace("-", " "),
        "uid": uid,
        "type": "elasticsearch",
        "access": "proxy",
        "url": "$ORDERMESH_ELASTICSEARCH_URL",
        "jsonData": {
            "index": index,
            "timeField": time,
            "maxConcurrentShardRequests": 2,
            "includeFrozen": False,
            **more,
        },
    }
