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

-- name: plan_index
-- No index of the month has everything any more: readers take it from here until it is built, in an index that nobody began.
SELECT FROM plan_index($1, true, true);

-- name: months_there
-- The months that the shard has partitions of.
SELECT DISTINCT date_trunc('month', begins_at AT TIME ZONE 'UTC')::date AS month FROM months_here();

-- name: archived_months
-- The months that are archived, or on their way.
SELECT month FROM archive_months WHERE state NOT IN ('THAWED', 'RESTORED');

-- name: hold_fence
-- Nobody moves a bucket until the transaction ends; rows that no trigger sees are written below this lock only.
LOCK TABLE bucket_fence IN SHARE MODE;

-- name: make_aside
-- A partition of a month, aside: no trigger, no index, nobody who reads it. $-free, since it is DDL.
CREATE TABLE ordermesh.{table}_{suffix} (
    LIKE ordermesh.{table} INCLUDING DEFAULTS INCLUDING CONSTRAINTS,
    CONSTRAINT {table}_{suffix}_range CHECK (created_at >= '{begins}' AND created_at < '{ends}')) WITH (fillfactor = 85);

-- name: attach
-- Let it be a partition, with the indexes and triggers of all others; its range is proven by its constraint.
ALTER TABLE ordermesh.{table} ATTACH PARTITION ordermesh.{table}_{suffix} FOR VALUES FROM ('{begins}') TO ('{ends}');
