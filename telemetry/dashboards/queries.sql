-- Statements of panels, on a shard's read replica: each reads a bounded number of rows of the last hours by an index. What is overdue is
-- so as of the instant that the replica shows, as the gauges have it: on one that stands still nothing grows older.

-- name: hanging_orders
-- Orders that should have been looked at by now, the most overdue first, with what is known of them.
WITH shown AS (
    SELECT CASE WHEN NOT pg_is_in_recovery() THEN clock_timestamp()
                WHEN pg_last_wal_receive_lsn() = pg_last_wal_replay_lsn() AND EXISTS (SELECT FROM pg_stat_wal_receiver)
                THEN clock_timestamp()
                ELSE coalesce(pg_last_xact_replay_timestamp(), clock_timestamp()) END AS at
), overdue AS (
    (SELECT order_id, created_at, upstream, stage, due_at, leased_by, probe_count, silent_count, fault_count
       FROM ordermesh.order_timers WHERE class = 'PROBE' AND due_at < (SELECT at FROM shown) ORDER BY due_at LIMIT 50)
    UNION ALL
    (SELECT order_id, created_at, upstream, stage, due_at, leased_by, probe_count, silent_count, fault_count
       FROM ordermesh.order_timers WHERE class = 'SUBMIT' AND due_at < (SELECT at FROM shown) ORDER BY due_at LIMIT 50)
)
SELECT d.order_id,
       d.upstream,
       d.stage,
       round(extract(epoch FROM (SELECT at FROM shown) - d.due_at))::bigint AS overdue_seconds,
       round(extract(epoch FROM (SELECT at FROM shown) - d.created_at))::bigint AS age_seconds,
       d.probe_count AS answers,
       d.silent_count AS no_answer,
       d.fault_count AS our_fault,
       d.leased_by AS worked_on_by,
       split_part(o.traceparent, '-', 2) AS trace
  FROM overdue d LEFT JOIN ordermesh.orders o USING (order_id, created_at)
 ORDER BY d.due_at
 LIMIT 50

-- name: waiting_orders
-- What orders that are not done wait for: how many of the ten thousand oldest, by upstream and stage.
WITH shown AS (
    SELECT CASE WHEN NOT pg_is_in_recovery() THEN clock_timestamp()
                WHEN pg_last_wal_receive_lsn() = pg_last_wal_replay_lsn() AND EXISTS (SELECT FROM pg_stat_wal_receiver)
                THEN clock_timestamp()
                ELSE coalesce(pg_last_xact_replay_timestamp(), clock_timestamp()) END AS at
), waiting AS (
    SELECT upstream, stage, created_at, due_at FROM ordermesh.order_timers ORDER BY order_id LIMIT 10000
)
SELECT upstream,
       stage,
       count(*) AS orders,
       round(extract(epoch FROM (SELECT at FROM shown) - min(created_at)))::bigint AS oldest_seconds,
       greatest(round(extract(epoch FROM (SELECT at FROM shown) - min(due_at)))::bigint, 0) AS overdue_seconds
  FROM waiting
 GROUP BY upstream, stage
 ORDER BY orders DESC
 LIMIT 50

-- name: newest_orders
-- The newest orders of the last hour; an id begins with its time, so the key finds them.
SELECT order_id,
       created_at,
       kind,
       status,
       stage,
       attempt,
       round((extract(epoch FROM settled_at - created_at) * 1000)::numeric)::bigint AS settled_in_ms,
       split_part(traceparent, '-', 2) AS trace
  FROM ordermesh.orders
 WHERE created_at > clock_timestamp() - interval '1 hour'
   AND order_id > (lpad(to_hex((extract(epoch FROM clock_timestamp() - interval '1 hour') * 1000)::bigint), 12, '0')
                   || '00000000000000000000')::uuid
 ORDER BY order_id DESC
 LIMIT 50

-- name: newest_failures
-- Why orders of the last six hours failed: of the newest five thousand, by reason and upstream of the leg.
WITH newest AS (
    SELECT order_id, created_at, status, failure_reason, legs[leg + 1] AS upstream, traceparent
      FROM ordermesh.orders
     WHERE created_at > clock_timestamp() - interval '6 hours'
       AND order_id > (lpad(to_hex((extract(epoch FROM clock_timestamp() - interval '6 hours') * 1000)::bigint), 12, '0')
                       || '00000000000000000000')::uuid
     ORDER BY order_id DESC
     LIMIT 5000
)
SELECT failure_reason AS reason,
       upstream,
       count(*) AS orders,
       max(created_at) AS newest,
       (array_agg(order_id ORDER BY order_id DESC))[1] AS order_id,
       (array_agg(split_part(traceparent, '-', 2) ORDER BY order_id DESC))[1] AS trace
  FROM newest
 WHERE status = 'FAILED'
 GROUP BY failure_reason, upstream
 ORDER BY orders DESC
 LIMIT 20

-- name: open_cases
-- The oldest cases that wait for a person.
WITH shown AS (
    SELECT CASE WHEN NOT pg_is_in_recovery() THEN clock_timestamp()
                WHEN pg_last_wal_receive_lsn() = pg_last_wal_replay_lsn() AND EXISTS (SELECT FROM pg_stat_wal_receiver)
                THEN clock_timestamp()
                ELSE coalesce(pg_last_xact_replay_timestamp(), clock_timestamp()) END AS at
)
SELECT d.order_id,
       d.reason,
       d.severity,
       d.opened_at,
       round(extract(epoch FROM (SELECT at FROM shown) - d.opened_at))::bigint AS open_seconds,
       d.redrive_count AS redriven,
       split_part(o.traceparent, '-', 2) AS trace
  FROM ordermesh.dead_letters d LEFT JOIN ordermesh.orders o USING (order_id, created_at)
 WHERE d.closed_at IS NULL
 ORDER BY d.opened_at, d.dead_letter_id
 LIMIT 50

-- name: holds_in_force
-- What keeps recovery away from orders, who said so and why.
SELECT scope, reason, actor, created_at, until_at
  FROM ordermesh.holds
 WHERE lifted_at IS NULL AND (until_at IS NULL OR until_at > clock_timestamp())
 ORDER BY created_at
 LIMIT 50

-- name: replica_place
-- Whether this replica still receives, how far it is behind its primary, and the newest order it has.
-- One that receives nothing is behind by all that was committed since its last change, whether or not it has replayed all it received.
SELECT i.shard,
       pg_is_in_recovery() AS is_replica,
       EXISTS (SELECT FROM pg_stat_wal_receiver) AS receives,
       CASE WHEN pg_last_wal_receive_lsn() = pg_last_wal_replay_lsn() AND EXISTS (SELECT FROM pg_stat_wal_receiver) THEN 0
            ELSE round(extract(epoch FROM clock_timestamp() - pg_last_xact_replay_timestamp())::numeric, 1) END AS behind_seconds,
       (SELECT created_at FROM ordermesh.order_timers ORDER BY order_id DESC LIMIT 1) AS newest_waiting_order
  FROM ordermesh.shard_identity i
 LIMIT 1

-- name: archived_months
-- Where the newest months stand that were asked to be archived.
SELECT month, state, reach, quarantined AS set_aside_because, order_count AS orders
  FROM ordermesh.archive_months
 ORDER BY month DESC
 LIMIT 60
