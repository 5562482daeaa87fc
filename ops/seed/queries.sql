-- The statements of seeding a shard, besides COPY.

-- name: owned_buckets
-- The buckets whose orders may be written here, with the epochs that their rows carry.
SELECT bucket, epoch FROM bucket_fence WHERE state = 'OWNED';

-- name: an_order_of
-- The request of one of a user's orders.
SELECT request_id FROM orders WHERE user_id = $1 LIMIT 1;

-- name: has_month
-- Whether one of some users has an order between two instants.
SELECT EXISTS (SELECT FROM unnest($1::text[]) AS u (user_id)
                CROSS JOIN LATERAL (SELECT FROM orders o
                                     WHERE o.user_id = u.user_id AND o.created_at >= $2 AND o.created_at < $3 LIMIT 1) o);

-- name: alone
-- Two processes that make partitions would make the same ones; the lock of ensure_partitions().
SELECT pg_advisory_xact_lock(72, 0);

-- name: ensure_month
-- The partitions of the month of an instant.
SELECT ordermesh.ensure_month($1);

-- name: hold_catalog
-- Whoever changes the catalog holds its head first.
SELECT FROM projection_catalog FOR UPDATE;

-- name: stop_serving
-- No index of the month has everything; what is written goes on being written.
UPDATE projection_index SET state = 'BUILDING' WHERE month = $1 AND state = 'SERVING';

-- name: generation_to_plan
-- The generation that the month has to be built in; NULL when it is planned already and nobody began.
SELECT CASE WHEN newest.state = 'BUILDING' AND newest.index_uuid = '' THEN NULL ELSE COALESCE(newest.generation, 0) + 1 END
  FROM (SELECT) one
  LEFT JOIN LATERAL (SELECT * FROM projection_index WHERE month = $1 ORDER BY generation DESC LIMIT 1) newest ON true;

-- name: plan_index
-- Make the month known to readers as one that is not to be read from the read model.
INSERT INTO projection_index (month, generation, index_name, cluster_uuid, index_uuid, state, catalog_version, created_at)
SELECT $1, $2, $3, '', '', 'BUILDING', version, ordermesh.clock() FROM projection_catalog;
