-- Every statement of order_svc. One statement is one round trip and one transaction; each asks the shard's clock once.
-- Several orders are looked up by LATERAL with LIMIT 1: a plain join was planned as a hash join over all months.

-- name: create_order
-- Write an order with its key, timer, journal entry and event. No row: the key is taken, read it with `find_key`; or the id is too old.
-- The submission counts from the shard's instant, not from the id's time: all later instants of the timer are the shard's.
-- The transaction has its id before the clock is read: who waits for the end of transactions that began before an instant sees it.
WITH moment AS MATERIALIZED (
    SELECT pg_current_xact_id() AS xid, ordermesh.clock() AS at
), key AS (
    INSERT INTO idempotency_keys AS k (user_id, request_id, order_id, created_at, bucket, route_epoch, fingerprint)
    SELECT $1::text, $2::uuid, $3::uuid, $4::timestamptz, $5::int, $6::bigint, $7::bytea
      FROM moment m
     WHERE $4 > m.at - ordermesh.arrives_within()
    ON CONFLICT (user_id, request_id) DO UPDATE
       SET order_id = excluded.order_id, created_at = excluded.created_at, bucket = excluded.bucket,
           route_epoch = excluded.route_epoch, fingerprint = excluded.fingerprint, expires_at = NULL
     WHERE k.expires_at < (SELECT at FROM moment)
    RETURNING k.*
), o AS (
    INSERT INTO orders (order_id, created_at, user_id, bucket, route_epoch, read_routing, version, status, stage, kind, legs, leg,
                        attempt, amount_minor, currency_code, currency_exp, description, labels, request_id, updated_at, traceparent)
    SELECT k.order_id, k.created_at, k.user_id, k.bucket, k.route_epoch, $8, 1, 'PENDING', 'SUBMITTING', $9, $10::text[], 0,
           1, $11, $12, $13, $14, $15::jsonb, k.request_id, m.at, $16
      FROM key k, moment m
    RETURNING *
), t AS (
    INSERT INTO order_timers (order_id, created_at, user_id, bucket, route_epoch, upstream, stage, class, due_at,
                              first_sent_at, last_sent_at)
    SELECT o.order_id, o.created_at, o.user_id, o.bucket, o.route_epoch, o.legs[1], o.stage, 'PROBE', m.at + $17::interval,
           m.at, m.at + $18::interval
      FROM o, moment m
    RETURNING first_sent_at, last_sent_at
), j AS (
    INSERT INTO order_journal (order_id, created_at, user_id, bucket, route_epoch, version, event_id, kind, to_status, to_stage, leg,
                               attempt, actor, evidence, traceparent, at)
    SELECT o.order_id, o.created_at, o.user_id, o.bucket, o.route_epoch, 1, $19, 'OPENED', o.status, o.stage, o.leg,
           o.attempt, $20, $21::jsonb, $16, m.at
      FROM o, moment m
), x AS (
    INSERT INTO outbox (event_id, order_id, created_at, user_id, bucket, route_epoch, stream_partition, read_routing, version, kind,
                        occurred_at, payload, traceparent, tracestate)
    SELECT $19, o.order_id, o.created_at, o.user_id, o.bucket, o.route_epoch,
           i.partition_base + o.bucket % i.partition_count, o.read_routing, 1, 'OPENED', m.at, to_jsonb(o), $16, $22
      FROM o, moment m, shard_identity i
)
SELECT o.*, t.first_sent_at, t.last_sent_at, m.xid, i.shard, i.log_epoch FROM o, t, moment m, shard_identity i;

-- name: find_key
-- The order that a request made, if the key lives, with the fence of the bucket the request was routed to. Always one row.
SELECT f.state AS fence_state, f.epoch AS fence_epoch, f.owner AS fence_owner, f.left_epoch AS fence_left_epoch, k.fingerprint,
       k.order_id AS key_order_id,
       pg_snapshot_xmax(pg_current_snapshot()) AS xid, i.shard, i.log_epoch, o.*
  FROM (SELECT $3::int AS asked) a
  LEFT JOIN bucket_fence f ON f.bucket = a.asked
  LEFT JOIN shard_identity i ON true
  LEFT JOIN idempotency_keys k ON k.user_id = $1 AND k.request_id = $2
        AND (k.expires_at IS NULL OR k.expires_at >= ordermesh.clock())
  LEFT JOIN orders o ON o.order_id = k.order_id AND o.created_at = k.created_at;

-- name: get_order
-- One order with the fence of its bucket. Always one row; the order's columns are NULL when there is none.
SELECT f.state AS fence_state, f.epoch AS fence_epoch, f.owner AS fence_owner, f.left_epoch AS fence_left_epoch,
       ordermesh.is_archived($2) AS is_archived, o.*
  FROM (SELECT $3::int AS asked) a
  LEFT JOIN bucket_fence f ON f.bucket = a.asked
  LEFT JOIN orders o ON o.order_id = $1 AND o.created_at = $2;

-- name: get_orders
-- Some orders with the fences of their buckets: one row per id asked for, in no order. None of an archived month.
SELECT a.id AS asked_id, a.asked, f.state AS fence_state, f.epoch AS fence_epoch, f.owner AS fence_owner, f.left_epoch AS fence_left_epoch, o.*
  FROM unnest($1::uuid[], $2::timestamptz[], $3::int[]) AS a (id, at, asked)
  LEFT JOIN bucket_fence f ON f.bucket = a.asked
  LEFT JOIN LATERAL (SELECT * FROM orders o WHERE o.order_id = a.id AND o.created_at = a.at LIMIT 1) o
    ON NOT ordermesh.is_archived(a.at);

-- name: see_order
-- What a rule decides on: order, timer, open case, the shard's clock, and whether the event happened already. Always one row.
SELECT f.state AS fence_state, f.epoch AS fence_epoch, f.owner AS fence_owner, f.left_epoch AS fence_left_epoch, ordermesh.clock() AS seen_at,
       t.probe_count, t.silent_count, t.fault_count, t.malformed_count, t.not_found_count, t.first_not_found_at, t.first_answer_at,
       t.accepted_at, t.first_sent_at, t.last_sent_at,
       d.dead_letter_id, d.reason AS case_reason, d.severity, d.redrive_count,
       EXISTS (SELECT FROM order_journal j WHERE j.order_id = $1 AND j.created_at = $2 AND j.event_id = $4) AS happened,
       pg_snapshot_xmax(pg_current_snapshot()) AS xid, i.shard, i.log_epoch,
       ordermesh.is_archived($2) AS is_archived, o.*
  FROM (SELECT $3::int AS asked) a
  LEFT JOIN bucket_fence f ON f.bucket = a.asked
  LEFT JOIN shard_identity i ON true
  LEFT JOIN orders o ON o.order_id = $1 AND o.created_at = $2
  LEFT JOIN order_timers t ON t.order_id = o.order_id
  LEFT JOIN dead_letters d ON d.order_id = o.order_id AND d.closed_at IS NULL;

-- name: apply_change
-- Compare-and-swap one order and write all that follows: journal, timer, case, key, event. No row: somebody was first.
WITH moment AS MATERIALIZED (
    SELECT ordermesh.clock() AS at
), o AS (
    UPDATE orders
       SET version = version + 1, status = $4, stage = $5, leg = $6, attempt = $7, upstream_ref = $8, failure_reason = $9,
           basis = $10, updated_at = m.at, route_epoch = NULL,
           settled_at = CASE WHEN $5 <> 'DONE' THEN NULL WHEN status = $4 THEN settled_at ELSE m.at END,
           labels = COALESCE($40::jsonb, labels)
      FROM moment m
     WHERE order_id = $1 AND created_at = $2 AND version = $3
    RETURNING orders.*
), j AS (
    INSERT INTO order_journal (order_id, created_at, user_id, bucket, route_epoch, version, event_id, kind, from_status, to_status,
                               from_stage, to_stage, leg, attempt, actor, proof, evidence, traceparent, at)
    SELECT o.order_id, o.created_at, o.user_id, o.bucket, o.route_epoch, o.version, $11, $12, $13, o.status,
           $14, o.stage, $15, $16, $17, $18, $19::jsonb, $20, m.at
      FROM o, moment m
), t AS (
    INSERT INTO order_timers AS t (order_id, created_at, user_id, bucket, route_epoch, upstream, stage, class, due_at,
                                   probe_count, silent_count, fault_count, malformed_count, not_found_count,
                                   first_not_found_at, first_answer_at, accepted_at, first_sent_at, last_sent_at)
    SELECT o.order_id, o.created_at, o.user_id, o.bucket, o.route_epoch, o.legs[o.leg + 1], o.stage, $21, m.at + $22::interval,
           $23, $24, $25, $26, $27, $28, $29, $30, $31, $32
      FROM o, moment m
     WHERE $22 IS NOT NULL
    ON CONFLICT (order_id) DO UPDATE
       SET upstream = excluded.upstream, stage = excluded.stage, class = excluded.class, due_at = excluded.due_at,
           probe_count = excluded.probe_count, silent_count = excluded.silent_count, fault_count = excluded.fault_count,
           malformed_count = excluded.malformed_count, not_found_count = excluded.not_found_count,
           first_not_found_at = excluded.first_not_found_at, first_answer_at = excluded.first_answer_at,
           accepted_at = excluded.accepted_at, first_sent_at = excluded.first_sent_at, last_sent_at = excluded.last_sent_at,
           lease_token = NULL, leased_by = NULL, lease_until = NULL, unfinished_count = 0, route_epoch = NULL
), td AS (
    DELETE FROM order_timers t USING o WHERE t.order_id = o.order_id AND o.stage = 'DONE'
), opened AS (
    INSERT INTO dead_letters AS d (dead_letter_id, order_id, created_at, user_id, bucket, route_epoch, reason, severity, evidence,
                                   opened_at, opened_version, redrive_count)
    SELECT $33, o.order_id, o.created_at, o.user_id, o.bucket, o.route_epoch, $34, $35, $36::jsonb, m.at, o.version,
           (SELECT count(*) FROM dead_letters e WHERE e.order_id = o.order_id AND e.outcome = 'REDRIVEN')
      FROM o, moment m
     WHERE $33::uuid IS NOT NULL
    ON CONFLICT (order_id) WHERE closed_at IS NULL DO UPDATE
       SET reason = excluded.reason, severity = excluded.severity, evidence = excluded.evidence, route_epoch = NULL
), closed AS (
    UPDATE dead_letters d
       SET closed_at = m.at, outcome = $37, actor = $38, close_reason = $39, close_event_id = $11, route_epoch = NULL,
           redrive_count = d.redrive_count + ($37::text = 'REDRIVEN')::int
      FROM o, moment m
     WHERE d.order_id = o.order_id AND d.closed_at IS NULL AND $37::text IS NOT NULL
), key AS (
    -- A key outlives its order's settling by 72 h; reopening makes it live again.
    UPDATE idempotency_keys k
       SET expires_at = CASE WHEN o.stage = 'DONE' THEN m.at + interval '72 hours' END, route_epoch = NULL
      FROM o, moment m
     WHERE k.user_id = o.user_id AND k.request_id = o.request_id AND k.order_id = o.order_id
       AND (o.stage = 'DONE') <> ($14 = 'DONE')
), x AS (
    INSERT INTO outbox (event_id, order_id, created_at, user_id, bucket, route_epoch, stream_partition, read_routing, version, kind,
                        occurred_at, payload, traceparent, tracestate)
    SELECT $11, o.order_id, o.created_at, o.user_id, o.bucket, o.route_epoch,
           i.partition_base + o.bucket % i.partition_count, o.read_routing, o.version, $12, m.at, to_jsonb(o), $20, $41
      FROM o, moment m, shard_identity i
)
SELECT o.*, pg_current_xact_id() AS xid, i.shard, i.log_epoch FROM o, shard_identity i;

-- name: rewait
-- Move a timer whose lease is still ours, and end the lease. No row: the lease was lost, and whoever has the order now decides.
UPDATE order_timers
   SET due_at = ordermesh.clock() + $3::interval, silent_count = silent_count + $4, fault_count = fault_count + $5,
       lease_token = NULL, leased_by = NULL, lease_until = NULL, unfinished_count = 0, route_epoch = NULL
 WHERE order_id = $1 AND lease_token = $2
RETURNING order_id;

-- name: give_back
-- End a lease that nobody worked under; what is counted stays as it is. No row: the lease was lost.
UPDATE order_timers
   SET due_at = ordermesh.clock() + $3::interval, lease_token = NULL, leased_by = NULL, lease_until = NULL, route_epoch = NULL
 WHERE order_id = $1 AND lease_token = $2
RETURNING order_id;

-- name: claim_due
-- Lease what is due, the most overdue first, of buckets we own and that no hold covers. Timers whose last claim was lost are
-- suspects: they are handed out few at a time, so that one that kills processes takes few others along.
-- Each upstream is read by itself, so the backlog of one that is held, or not asked for, is not read at all.
-- The fence is asked per timer, not joined: joined, the planner sorted all timers before it took a few.
WITH RECURSIVE moment AS MATERIALIZED (
    SELECT ordermesh.clock() AS at
), held AS MATERIALIZED (
    SELECT array_agg(scope) AS scopes FROM holds
     WHERE lifted_at IS NULL AND (until_at IS NULL OR until_at > (SELECT at FROM moment))
), waiting AS (
    -- The upstreams there are timers for, from the index one by one.
    (SELECT t.upstream FROM order_timers t
      WHERE t.class = $1 AND t.lease_token IS NULL AND $6::text IS NULL ORDER BY t.upstream LIMIT 1)
    UNION ALL
    SELECT (SELECT t.upstream FROM order_timers t
             WHERE t.class = $1 AND t.lease_token IS NULL AND t.upstream > w.upstream ORDER BY t.upstream LIMIT 1)
      FROM waiting w WHERE w.upstream IS NOT NULL
), asked AS MATERIALIZED (
    SELECT u.upstream FROM (SELECT upstream FROM waiting UNION ALL SELECT $6) u
     WHERE u.upstream IS NOT NULL AND (ARRAY['all', 'upstream:' || u.upstream] && (SELECT scopes FROM held)) IS NOT TRUE
), fresh AS MATERIALIZED (
    SELECT f.order_id FROM asked a CROSS JOIN LATERAL (
        SELECT t.order_id, t.due_at FROM order_timers t
         WHERE t.class = $1 AND t.upstream = a.upstream AND t.due_at <= (SELECT at FROM moment) AND t.lease_token IS NULL
           AND (SELECT f.state FROM bucket_fence f WHERE f.bucket = t.bucket) = 'OWNED'
         ORDER BY t.due_at LIMIT $2
           FOR UPDATE OF t SKIP LOCKED) f
     ORDER BY f.due_at LIMIT $2
), suspect AS MATERIALIZED (
    SELECT t.order_id FROM order_timers t
     WHERE t.class = $1 AND t.due_at <= (SELECT at FROM moment) AND t.lease_token IS NOT NULL
       AND ($6::text IS NULL OR t.upstream = $6)
       AND (ARRAY['all', 'upstream:' || t.upstream] && (SELECT scopes FROM held)) IS NOT TRUE
       AND (SELECT f.state FROM bucket_fence f WHERE f.bucket = t.bucket) = 'OWNED'
     ORDER BY t.due_at LIMIT $3
       FOR UPDATE OF t SKIP LOCKED
), picked AS MATERIALIZED (
    (TABLE suspect UNION ALL TABLE fresh) LIMIT $2
), leased AS (
    UPDATE order_timers t
       SET unfinished_count = t.unfinished_count + (t.lease_token IS NOT NULL)::int, claim_count = t.claim_count + 1,
           lease_token = gen_random_uuid(), leased_by = $5, lease_until = m.at + $4::interval, due_at = m.at + $4::interval,
           route_epoch = NULL
      FROM picked p, moment m
     WHERE t.order_id = p.order_id
    RETURNING t.order_id, t.created_at, t.lease_token, t.lease_until, t.unfinished_count
)
SELECT l.lease_token, l.lease_until, l.unfinished_count, o.*
  FROM leased l
 CROSS JOIN LATERAL (SELECT * FROM orders o WHERE o.order_id = l.order_id AND o.created_at = l.created_at LIMIT 1) o;

-- name: list_unserved
-- Orders that are READY for other upstreams than those given, and past their time for so long, the most overdue first.
SELECT t.order_id FROM order_timers t
 WHERE t.class = 'SUBMIT' AND t.due_at <= (SELECT ordermesh.clock() - $2::interval) AND t.upstream <> ALL ($1::text[])
   AND NOT EXISTS (SELECT FROM holds h
                    WHERE h.scope IN ('all', 'upstream:' || t.upstream) AND h.lifted_at IS NULL
                      AND (h.until_at IS NULL OR h.until_at > (SELECT ordermesh.clock())))
   AND (SELECT f.state FROM bucket_fence f WHERE f.bucket = t.bucket) = 'OWNED'
 ORDER BY t.due_at LIMIT $3;

-- name: claim_one
-- Lease one order for a probe, due or not and held or not, unless somebody else has it. No row: it is not to be had.
WITH moment AS MATERIALIZED (
    SELECT ordermesh.clock() AS at
), leased AS (
    UPDATE order_timers t
       SET unfinished_count = t.unfinished_count + (t.lease_token IS NOT NULL)::int, claim_count = t.claim_count + 1,
           lease_token = gen_random_uuid(), leased_by = $2, lease_until = m.at + $3::interval, due_at = m.at + $3::interval,
           route_epoch = NULL
      FROM moment m
     WHERE t.order_id = $1 AND t.class = 'PROBE' AND (t.lease_until IS NULL OR t.lease_until <= m.at)
    RETURNING t.order_id, t.created_at, t.lease_token, t.lease_until, t.unfinished_count
)
SELECT l.lease_token, l.lease_until, l.unfinished_count, o.*
  FROM leased l
 CROSS JOIN LATERAL (SELECT * FROM orders o WHERE o.order_id = l.order_id AND o.created_at = l.created_at LIMIT 1) o;

-- name: list_due
-- Orders that wait, the most overdue first, after a position. Of each class the first page is read from the index and merged.
WITH moment AS MATERIALIZED (
    SELECT ordermesh.clock() AS at
), held AS MATERIALIZED (
    SELECT scope, reason FROM holds WHERE lifted_at IS NULL AND (until_at IS NULL OR until_at > (SELECT at FROM moment))
), page AS MATERIALIZED (
    (SELECT * FROM order_timers
      WHERE class = 'PROBE' AND (due_at, order_id) > ($1, $2::uuid) AND (NOT $3 OR due_at <= (SELECT at FROM moment))
      ORDER BY due_at, order_id LIMIT $4)
    UNION ALL
    (SELECT * FROM order_timers
      WHERE class = 'SUBMIT' AND (due_at, order_id) > ($1, $2::uuid) AND (NOT $3 OR due_at <= (SELECT at FROM moment))
      ORDER BY due_at, order_id LIMIT $4)
    ORDER BY due_at, order_id LIMIT $4
)
SELECT p.due_at, p.class, p.probe_count, p.silent_count, p.claim_count,
       (SELECT h.reason FROM held h WHERE h.scope = 'all' OR h.scope = 'upstream:' || p.upstream ORDER BY h.scope LIMIT 1) AS hold_reason,
       o.*
  FROM page p
 CROSS JOIN LATERAL (SELECT * FROM orders o WHERE o.order_id = p.order_id AND o.created_at = p.created_at LIMIT 1) o
 ORDER BY p.due_at, p.order_id;

-- name: get_event
-- What one event wrote into the journal of an order.
SELECT kind, evidence FROM order_journal WHERE order_id = $1 AND created_at = $2 AND event_id = $3;

-- name: list_events
-- A page of the journal after a version, with the fence of the order's bucket. No entry: one row with NULL version.
SELECT f.state AS fence_state, f.epoch AS fence_epoch, f.owner AS fence_owner, f.left_epoch AS fence_left_epoch,
       ordermesh.is_archived($2) AS is_archived, j.*
  FROM (SELECT $3::int AS asked) a
  LEFT JOIN bucket_fence f ON f.bucket = a.asked
  LEFT JOIN LATERAL (
      SELECT * FROM order_journal WHERE order_id = $1 AND created_at = $2 AND version > $4 ORDER BY version LIMIT $5) j ON true
 ORDER BY j.version;

-- name: list_dead_letters
-- Cases, the oldest first, after a position. $3: also closed ones.
SELECT * FROM dead_letters
 WHERE (opened_at, dead_letter_id) > ($1, $2::uuid) AND ($3 OR closed_at IS NULL)
 ORDER BY opened_at, dead_letter_id LIMIT $4;

-- name: get_dead_letter
-- The open case of an order, else the last closed one, with the fence of the order's bucket. Always one row.
SELECT f.state AS fence_state, f.epoch AS fence_epoch, f.owner AS fence_owner, f.left_epoch AS fence_left_epoch, d.*
  FROM (SELECT $2::int AS asked) a
  LEFT JOIN bucket_fence f ON f.bucket = a.asked
  LEFT JOIN LATERAL (
      SELECT * FROM dead_letters WHERE order_id = $1 ORDER BY closed_at IS NULL DESC, opened_at DESC, opened_version DESC LIMIT 1
  ) d ON true;

-- name: get_closed_case
-- The case that an event closed.
SELECT * FROM dead_letters WHERE order_id = $1 AND close_event_id = $2;

-- name: put_hold
-- Put a hold in place of one of the same scope. A repeat with the same id changes nothing.
WITH moment AS MATERIALIZED (
    SELECT ordermesh.clock() AS at
), again AS MATERIALIZED (
    SELECT * FROM holds WHERE hold_id = $1
), replaced AS (
    UPDATE holds SET lifted_at = m.at, lifted_by = $4, lift_reason = 'replaced'
      FROM moment m
     WHERE scope = $2 AND lifted_at IS NULL AND NOT EXISTS (SELECT FROM again)
    RETURNING 1
), put AS (
    INSERT INTO holds (hold_id, scope, reason, actor, until_at, created_at)
    SELECT $1, $2, $3, $4, $5, m.at FROM moment m
     WHERE NOT EXISTS (SELECT FROM again) AND (SELECT count(*) FROM replaced) >= 0
    RETURNING *
)
SELECT * FROM put UNION ALL SELECT * FROM again;

-- name: lift_hold
-- End the hold of a scope. A repeat with the same request returns what the first one lifted. No row: there was none.
WITH again AS MATERIALIZED (
    SELECT * FROM holds WHERE lift_request_id = $1
), lifted AS (
    UPDATE holds SET lifted_at = ordermesh.clock(), lifted_by = $3, lift_reason = $4, lift_request_id = $1
     WHERE scope = $2 AND lifted_at IS NULL AND NOT EXISTS (SELECT FROM again)
    RETURNING *
)
SELECT * FROM lifted UNION ALL SELECT * FROM again;

-- name: list_holds
-- Holds in force.
SELECT * FROM holds WHERE lifted_at IS NULL AND (until_at IS NULL OR until_at > ordermesh.clock()) ORDER BY scope;

-- name: count_waiting
-- Orders that wait, by stage; how many are past their time, and the longest.
WITH moment AS MATERIALIZED (
    SELECT ordermesh.clock() AS at
)
SELECT t.stage, count(*) AS waiting, count(*) FILTER (WHERE t.due_at < m.at) AS overdue,
       max(m.at - t.due_at) FILTER (WHERE t.due_at < m.at) AS oldest
  FROM order_timers t, moment m GROUP BY t.stage;

-- name: count_cases
-- Open cases.
SELECT count(*) FROM dead_letters WHERE closed_at IS NULL;

-- name: read_clocks
-- The machine's clock and the shard's; they differ only in tests.
SELECT clock_timestamp() AS machine, ordermesh.clock() AS shard;

-- name: identity
-- Who this database says it is.
SELECT shard, log_epoch FROM shard_identity;

-- name: tables_without_room
-- The partitioned tables without a partition for this moment: their rows would be refused.
SELECT parent.relname AS name
  FROM pg_class AS parent
 WHERE parent.relkind = 'p' AND parent.relnamespace = 'ordermesh'::regnamespace
   AND NOT EXISTS (
       SELECT FROM pg_inherits AS link
         JOIN pg_class AS child ON child.oid = link.inhrelid
        CROSS JOIN regexp_match(pg_get_expr(child.relpartbound, child.oid), 'FROM \(''([^'']+)''\) TO \(''([^'']+)''\)') AS bound
        WHERE link.inhparent = parent.oid AND NOT link.inhdetachpending
          AND ordermesh.clock() >= bound[1]::timestamptz AND ordermesh.clock() < bound[2]::timestamptz)
 ORDER BY 1;

-- name: reap_keys
-- Delete some keys that expired; returns how many. Those of buckets that moved away go with their bucket.
WITH gone AS MATERIALIZED (
    SELECT k.user_id, k.request_id FROM idempotency_keys k JOIN bucket_fence f ON f.bucket = k.bucket AND f.state = 'OWNED'
     WHERE k.expires_at < (SELECT ordermesh.clock())
     LIMIT $1
       FOR UPDATE OF k SKIP LOCKED
), deleted AS (
    DELETE FROM idempotency_keys k USING gone g WHERE k.user_id = g.user_id AND k.request_id = g.request_id RETURNING 1
)
SELECT count(*) FROM deleted;
