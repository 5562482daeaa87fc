-- The role that dashboards ask a shard's replica with: it reads what panels show, briefly, and nothing else.
--
-- Run on the primary of each shard; the replica gets it from there. Give it a password afterwards: \password ordermesh_dashboards
-- It sees no user, no amount, no description and no label of an order.

DO $$
BEGIN
    IF NOT EXISTS (SELECT FROM pg_roles WHERE rolname = 'ordermesh_dashboards') THEN
        CREATE ROLE ordermesh_dashboards LOGIN CONNECTION LIMIT 4;
    END IF;
END $$;
ALTER ROLE ordermesh_dashboards SET statement_timeout = '2s';
ALTER ROLE ordermesh_dashboards SET idle_in_transaction_session_timeout = '5s';
ALTER ROLE ordermesh_dashboards SET default_transaction_read_only = on;

GRANT USAGE ON SCHEMA ordermesh TO ordermesh_dashboards;
GRANT SELECT (order_id, created_at, kind, status, stage, legs, leg, attempt, failure_reason, settled_at, traceparent)
    ON ordermesh.orders TO ordermesh_dashboards;
GRANT SELECT (order_id, created_at, upstream, stage, class, due_at, leased_by, probe_count, silent_count, fault_count)
    ON ordermesh.order_timers TO ordermesh_dashboards;
GRANT SELECT (dead_letter_id, order_id, created_at, reason, severity, opened_at, closed_at, redrive_count)
    ON ordermesh.dead_letters TO ordermesh_dashboards;
GRANT SELECT ON ordermesh.holds, ordermesh.shard_identity TO ordermesh_dashboards;
GRANT SELECT (month, state, reach, quarantined, order_count) ON ordermesh.archive_months TO ordermesh_dashboards;
