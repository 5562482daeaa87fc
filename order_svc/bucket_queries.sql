-- What a shard does so that a user can leave a bucket. Each statement may be repeated.

-- name: own_bucket
-- Make this shard the owner of a bucket it has never seen, and return its fence.
INSERT INTO bucket_fence (bucket, epoch, state, owner)
SELECT $1, 1, 'OWNED', shard FROM shard_identity
ON CONFLICT (bucket) DO UPDATE SET bucket = excluded.bucket
RETURNING bucket, epoch, state, owner, move_token;

-- name: freeze_bucket
-- Stop writes to a bucket and return its fence, whoever froze it. All NULL for a bucket that was never here.
SELECT bucket, epoch, state, owner, move_token FROM ordermesh.freeze_bucket($1, $2, $3);

-- name: thaw_bucket
-- Let writes to a bucket go on and return its fence, as it is. All NULL for a bucket that was never here.
SELECT bucket, epoch, state, owner, move_token FROM ordermesh.thaw_bucket($1, $2, $3);

-- name: export_keys
-- A page of the keys of a user that live, with the shard's time; one row of NULLs when there is none. A copy outlives its key by
-- 30 days, since nobody would tell it when a late word reopens the order; a copy of a copy does not add to that.
WITH moment AS MATERIALIZED (
    SELECT ordermesh.clock() AS at
)
SELECT m.at, k.request_id, k.order_id, k.fingerprint, k.expires_at
  FROM moment m
  LEFT JOIN LATERAL (
      SELECT request_id, order_id, fingerprint,
             expires_at + CASE WHEN bucket = ordermesh.id_bucket(order_id) THEN interval '30 days' ELSE interval '0' END AS expires_at
        FROM idempotency_keys
       WHERE user_id = $1 AND request_id > $2::uuid AND created_at >= $3
         AND (expires_at IS NULL OR expires_at >= (SELECT at FROM moment))
       ORDER BY request_id LIMIT $4) k ON true
 ORDER BY k.request_id;

-- name: import_keys
-- Write keys of a user; one row for each that is new. The key of an order that is here lives as long as that says; of two orders of one
-- request, which are more than 72 hours apart, the later one counts.
INSERT INTO idempotency_keys AS k (user_id, request_id, order_id, created_at, bucket, route_epoch, fingerprint, expires_at)
SELECT $1, a.request_id, a.order_id, ordermesh.id_time(a.order_id), COALESCE(o.bucket, $2), NULL, a.fingerprint,
       CASE WHEN o.order_id IS NULL THEN a.expires_at WHEN o.stage = 'DONE' THEN o.settled_at + interval '72 hours' END
  FROM unnest($3::uuid[], $4::uuid[], $5::bytea[], $6::timestamptz[]) AS a (request_id, order_id, fingerprint, expires_at)
  LEFT JOIN LATERAL (
      SELECT order_id, bucket, stage, settled_at FROM orders
       WHERE order_id = a.order_id AND created_at = ordermesh.id_time(a.order_id) LIMIT 1) o ON true
ON CONFLICT (user_id, request_id) DO UPDATE
   SET order_id = excluded.order_id, created_at = excluded.created_at, bucket = excluded.bucket, route_epoch = NULL,
       fingerprint = excluded.fingerprint, expires_at = excluded.expires_at
 WHERE k.created_at < excluded.created_at
RETURNING 1;
