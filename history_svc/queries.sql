-- Every statement of history_svc. All of them read.

-- name: page_of_shard
-- One shard's part of a page, in any order, and whether it may speak at all: the fence of each bucket is read in
-- the same statement, so in one snapshot. Always at least one row. `stale` is set when a bucket is not owned here
-- at the epoch the proxy knows: then there is no list, not a short one. Buckets that were moved away may still
-- have rows here; only the buckets that were asked for count. That test hides in a CASE, because the planner takes
-- it for selective, although a user's bucket says nothing new, and would sort all of a user's orders.
WITH asked AS (
    SELECT bucket, epoch FROM unnest($1::int[], $2::bigint[]) AS a (bucket, epoch)
), stale AS MATERIALIZED (
    SELECT json_build_object('bucket', a.bucket, 'epoch', f.epoch, 'owner', f.owner, 'state', f.state,
                             'left_epoch', f.left_epoch) AS stale
      FROM asked a
      LEFT JOIN bucket_fence f ON f.bucket = a.bucket
     WHERE f.state IS DISTINCT FROM 'OWNED' OR f.epoch IS DISTINCT FROM a.epoch
     LIMIT 1
), page AS (
    SELECT order_id, created_at, user_id, version, status, stage, kind, legs, leg, attempt, amount_minor,
           currency_code, description, labels, upstream_ref, failure_reason, basis, request_id, updated_at,
           settled_at, traceparent
      FROM orders
     WHERE user_id = $3
       AND created_at >= $4
       AND created_at <= $5
       AND (created_at, order_id) < ($5, $6::uuid)
       AND CASE WHEN bucket = ANY ($1::int[]) THEN $7::text IS NULL OR status = $7 ELSE false END
     ORDER BY created_at DESC, order_id DESC
     LIMIT $8
)
SELECT s.stale, p.*
  FROM (SELECT (SELECT stale FROM stale) AS stale) s
  LEFT JOIN page p ON s.stale IS NULL;
