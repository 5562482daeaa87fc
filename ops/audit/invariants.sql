-- What must hold on every shard, always. Each statement returns what breaks it: no row is the good answer.
--
-- Run by ops.audit.shards in one read-only snapshot per shard, so that orders in motion break nothing. The number in a name is that
-- of the invariant, the line below it what the invariant says. Columns: id (an order, or what the name says), fact (what is wrong).

-- name: i1_timer
-- A timer exists exactly while an order is not done, knows its stage, and points at it.
SELECT COALESCE(o.order_id, t.order_id)::text AS id,
       format('stage %s, timer %s', COALESCE(o.stage, 'no order'), COALESCE(t.stage, 'missing')) AS fact
  FROM orders o
  FULL JOIN order_timers t USING (order_id)
 WHERE o.order_id IS NULL
    OR (o.stage <> 'DONE') <> (t.order_id IS NOT NULL)
    OR t.stage <> o.stage
    OR t.created_at <> o.created_at;

-- name: i2_status
-- The status agrees with the stage: settled exactly when DONE, with a time and a basis.
SELECT order_id::text AS id, format('stage %s, status %s, basis %s', stage, status, COALESCE(basis, 'none')) AS fact
  FROM orders
 WHERE (stage = 'DONE') <> (status IN ('SUCCESS', 'FAILED'))
    OR (stage = 'DONE') <> (settled_at IS NOT NULL)
    OR (stage = 'DONE') <> (basis IS NOT NULL);

-- name: i3_versions
-- Journal versions are 1..n without holes, and the order stands at version n with the journal's last status and stage.
WITH journal AS (
    SELECT order_id, min(created_at) AS created_at, count(*) AS entries, min(version) AS low, max(version) AS high,
           (array_agg(to_status ORDER BY version DESC))[1] AS status, (array_agg(to_stage ORDER BY version DESC))[1] AS stage
      FROM order_journal
     GROUP BY order_id
)
SELECT COALESCE(o.order_id, j.order_id)::text AS id,
       format('version %s %s/%s, journal %s entries %s..%s to %s/%s', o.version, o.status, o.stage, COALESCE(j.entries, 0), j.low, j.high,
              j.status, j.stage) AS fact
  FROM orders o
  FULL JOIN journal j USING (order_id)
 WHERE (o.order_id IS NULL OR j.order_id IS NULL
        OR j.low <> 1 OR j.entries <> j.high OR o.version <> j.high
        OR (o.status, o.stage) <> (j.status, j.stage))
   -- The tables of an archived month go one after the other; what is in them was proven.
   AND NOT ((o.order_id IS NULL OR j.order_id IS NULL)
            AND EXISTS (SELECT FROM archive_months m WHERE m.committed_at IS NOT NULL AND m.begins_at <= COALESCE(o.created_at, j.created_at)
                                                       AND m.ends_at > COALESCE(o.created_at, j.created_at)));

-- name: i3_chain
-- Each journal entry begins where the one before it ended.
SELECT order_id::text AS id, format('version %s begins at %s/%s after %s/%s', version, from_status, from_stage, before_status, before_stage) AS fact
  FROM (SELECT order_id, version, from_status, from_stage,
               lag(to_status) OVER journal AS before_status, lag(to_stage) OVER journal AS before_stage
          FROM order_journal
        WINDOW journal AS (PARTITION BY order_id ORDER BY version)) entries
 WHERE version > 1
   AND (from_status, from_stage) IS DISTINCT FROM (before_status, before_stage);

-- name: i4_events
-- An event happens to an order once.
SELECT order_id::text AS id, format('event %s, %s times', event_id, count(*)) AS fact
  FROM order_journal
 GROUP BY order_id, event_id
HAVING count(*) > 1;

-- name: i5_success
-- SUCCESS is never left.
SELECT order_id::text AS id, format('version %s goes from SUCCESS to %s', version, to_status) AS fact
  FROM order_journal
 WHERE from_status = 'SUCCESS'
   AND to_status <> 'SUCCESS';

-- name: i6_proof
-- A settled order has a journal entry that proves its status, with evidence: no order fails by timeout.
SELECT o.order_id::text AS id, format('%s by %s without proof', o.status, o.basis) AS fact
  FROM orders o
 WHERE o.status <> 'PENDING'
   AND NOT EXISTS (
        SELECT FROM order_journal j
         WHERE j.order_id = o.order_id AND j.created_at = o.created_at
           AND j.to_status = o.status
           AND j.evidence <> '{}'
           AND j.proof = ANY (CASE o.status WHEN 'SUCCESS' THEN ARRAY['UPSTREAM_SUCCEEDED', 'OPERATOR']
                                            ELSE ARRAY['UPSTREAM_FAILED', 'NOT_FOUND_FINAL', 'OPERATOR'] END));

-- name: i7_keys
-- A request made one order: while a key lives no second order has its user and request, and every key points at its order here, if any.
SELECT order_id::text AS id, format('user %s has order %s with the same request %s', user_id, later, request_id) AS fact
  FROM (SELECT order_id, user_id, request_id, settled_at,
               lead(order_id) OVER same AS later, lead(created_at) OVER same AS later_at
          FROM orders
        WINDOW same AS (PARTITION BY user_id, request_id ORDER BY created_at, order_id)) twins
 WHERE later IS NOT NULL
   AND (settled_at IS NULL OR later_at < settled_at + interval '71 hours 59 minutes')
UNION ALL
SELECT k.order_id::text, format('key %s of user %s points at %s', k.request_id, k.user_id,
                                CASE WHEN o.order_id IS NULL THEN 'no order' ELSE 'another order' END)
  FROM idempotency_keys k
  LEFT JOIN orders o ON o.order_id = k.order_id AND o.created_at = k.created_at
 WHERE (o.user_id, o.request_id, o.bucket) IS DISTINCT FROM (k.user_id, k.request_id, ordermesh.id_bucket(k.order_id))
   AND (o.order_id IS NOT NULL
        OR k.bucket = ordermesh.id_bucket(k.order_id)
           AND NOT EXISTS (SELECT FROM archive_months m
                            WHERE m.committed_at IS NOT NULL AND m.begins_at <= k.created_at AND m.ends_at > k.created_at));

-- name: i7_expiry
-- The key of an order lives until 72 hours after it settled, and has no end before.
SELECT o.order_id::text AS id,
       format('%s, key %s', o.stage, CASE WHEN k.order_id IS NULL THEN 'missing' ELSE format('expires at %s', k.expires_at) END) AS fact
  FROM orders o
  LEFT JOIN idempotency_keys k ON k.user_id = o.user_id AND k.request_id = o.request_id AND k.order_id = o.order_id
 WHERE (k.order_id IS NULL AND (o.settled_at IS NULL OR o.settled_at > ordermesh.clock() - interval '72 hours'))
    OR (o.stage <> 'DONE' AND k.expires_at IS NOT NULL)
    OR k.expires_at < o.settled_at + interval '72 hours';

-- name: i8_ids
-- An order's id carries its bucket and its time, and all its rows carry the same; a key that was copied has the bucket it went to.
SELECT order_id::text AS id, 'bucket or time of ' || room AS fact
  FROM (SELECT order_id, bucket, created_at, 'orders' AS room FROM orders
        UNION ALL SELECT order_id, bucket, created_at, 'order_journal' FROM order_journal
        UNION ALL SELECT order_id, bucket, created_at, 'outbox' FROM outbox
        UNION ALL SELECT order_id, bucket, created_at, 'order_timers' FROM order_timers
        UNION ALL SELECT order_id, ordermesh.id_bucket(order_id), created_at, 'idempotency_keys' FROM idempotency_keys
        UNION ALL SELECT order_id, bucket, created_at, 'dead_letters' FROM dead_letters) rows
 WHERE ordermesh.id_bucket(order_id) <> bucket
    OR ordermesh.id_time(order_id) <> created_at;

-- name: i9_fence
-- Every order lives in a bucket that this shard owns, if only for reading just now, and none was written at an epoch that the fence has not reached.
SELECT o.order_id::text AS id,
       format('bucket %s is %s epoch %s here, the order has epoch %s', o.bucket, COALESCE(f.state, 'unknown'), f.epoch, o.route_epoch) AS fact
  FROM orders o
  LEFT JOIN bucket_fence f USING (bucket)
 WHERE f.state IS NULL OR f.state NOT IN ('OWNED', 'FROZEN_W')
    OR o.route_epoch > f.epoch;

-- name: i10_outbox
-- The outbox holds every version of an order once, for as long as it keeps a day.
SELECT order_id::text AS id, format('version %s, %s times', version, count(*)) AS fact
  FROM outbox
 GROUP BY order_id, version
HAVING count(*) > 1
UNION ALL
SELECT j.order_id::text, format('version %s is missing', j.version)
  FROM order_journal j
 WHERE j.at > ordermesh.clock() - interval '2 days'
   AND NOT EXISTS (SELECT FROM outbox x WHERE x.order_id = j.order_id AND x.version = j.version);

-- name: i11_cases
-- A parked order has exactly one open case, an open case has an order that is parked or settled, a closed one says who, why and how.
SELECT o.order_id::text AS id, format('parked with %s open cases', count(d.dead_letter_id)) AS fact
  FROM orders o
  LEFT JOIN dead_letters d ON d.order_id = o.order_id AND d.closed_at IS NULL
 WHERE o.stage = 'PARKED'
 GROUP BY o.order_id
HAVING count(d.dead_letter_id) <> 1
UNION ALL
SELECT d.order_id::text, format('case %s is open at stage %s', d.dead_letter_id, COALESCE(o.stage, 'no order'))
  FROM dead_letters d
  LEFT JOIN orders o ON o.order_id = d.order_id AND o.created_at = d.created_at
 WHERE d.closed_at IS NULL
   AND COALESCE(o.stage, '') NOT IN ('PARKED', 'DONE')
UNION ALL
SELECT order_id::text, format('case %s was closed without actor, reason or outcome', dead_letter_id)
  FROM dead_letters
 WHERE closed_at IS NOT NULL
   AND (COALESCE(actor, '') = '' OR COALESCE(close_reason, '') = '' OR outcome IS NULL);

-- name: i12_overdue
-- No timer is overdue by more than a minute, unless a hold explains it.
SELECT t.order_id::text AS id, format('%s timer of %s, due %s', t.class, t.upstream, t.due_at) AS fact
  FROM order_timers t
 WHERE t.due_at < ordermesh.clock() - interval '60 seconds'
   AND NOT EXISTS (
        SELECT FROM holds h
         WHERE h.lifted_at IS NULL
           AND h.scope IN ('all', 'upstream:' || t.upstream)
           AND (h.until_at IS NULL OR h.until_at > ordermesh.clock() - interval '60 seconds'));

-- name: i13_attempts
-- Submissions of a leg are numbered 1..n, and none begins before the one before it was proven absent or is safe to repeat (READY).
SELECT order_id::text AS id, format('leg %s: %s submissions numbered %s..%s', leg, count(*), min(attempt), max(attempt)) AS fact
  FROM order_journal
 WHERE kind IN ('OPENED', 'SUBMITTED')
 GROUP BY order_id, leg
HAVING min(attempt) <> 1 OR max(attempt) <> count(*) OR count(DISTINCT attempt) <> count(*)
UNION ALL
SELECT order_id::text, format('leg %s attempt %s was submitted from %s', leg, attempt, from_stage)
  FROM order_journal
 WHERE kind = 'SUBMITTED'
   AND from_stage IS DISTINCT FROM 'READY';

-- name: i14_sessions
-- No session sits idle in a transaction, where it would hold locks and old rows.
SELECT pid::text AS id, format('%s, idle in transaction since %s', application_name, xact_start) AS fact
  FROM pg_stat_activity
 WHERE datname = current_database()
   AND state LIKE 'idle in transaction%'
   AND application_name <> 'ordermesh-audit'
   AND xact_start < clock_timestamp() - interval '15 seconds';
