-- Every statement of history_svc's readers. All of them read.

-- name: page_of_shard
-- One shard's part of a page, all of one snapshot: whether it may speak at all, how far the read model has the user's streams,
-- recent rows, and the current rows of the orders that changed after that, with those of archived months where their tables are
-- still there, and where the archive ends. The first row is of part `meta`, always; it has
-- `stale` set when a bucket is not owned here at the epoch the proxy knows: then there is no list, not a short one.
-- $1 buckets, $2 their epochs, $3 user, $4 not before, $5 $6 before, $7 recent rows are not older than this, $8 how many of
-- them, $9 whether changes are wanted, $10 how many changed orders, $11 how many changes are looked at, $12 catalog version known.
-- Buckets that were moved away may still have rows here; only the buckets that were asked for count. That test hides in a CASE,
-- because the planner takes it for selective, although a user's bucket says nothing new, and would sort all of a user's orders.
WITH asked AS MATERIALIZED (
    SELECT bucket, epoch FROM unnest($1::int[], $2::bigint[]) AS a (bucket, epoch)
), stale AS MATERIALIZED (
    SELECT json_build_object('bucket', a.bucket, 'epoch', f.epoch, 'owner', f.owner, 'state', f.state,
                             'left_epoch', f.left_epoch) AS stale
      FROM asked a
      LEFT JOIN bucket_fence f ON f.bucket = a.bucket
     WHERE f.state IS DISTINCT FROM 'OWNED' OR f.epoch IS DISTINCT FROM a.epoch
     LIMIT 1
), marks AS MATERIALIZED (
    SELECT s.stream_partition, w.log_epoch, w.xid, w.seq, w.source_at
      FROM (SELECT DISTINCT i.partition_base + a.bucket % i.partition_count AS stream_partition FROM asked a, shard_identity i) s
      LEFT JOIN watermarks w ON w.stream_partition = s.stream_partition
), low AS MATERIALIZED (
    SELECT xid, seq FROM marks WHERE xid IS NOT NULL ORDER BY xid, seq LIMIT 1
), changes AS MATERIALIZED (
    SELECT x.order_id, x.created_at
      FROM outbox x
     -- The user stands in the comparison too, so that only the index by user fits; in no order, as that would invite the other.
     WHERE $9 AND x.user_id = $3 AND (x.user_id, x.xid, x.seq) > ($3, (SELECT xid FROM low), (SELECT seq FROM low))
       AND EXISTS (SELECT FROM marks m WHERE m.stream_partition = x.stream_partition AND (x.xid, x.seq) > (m.xid, m.seq))
     LIMIT $11
), changed AS MATERIALIZED (
    SELECT DISTINCT c.order_id, c.created_at
      FROM (SELECT order_id, created_at FROM changes
            UNION ALL
            SELECT order_id, created_at FROM quarantine WHERE $9 AND user_id = $3) c
     WHERE c.created_at < $7 AND c.created_at >= $4 AND (c.created_at, c.order_id) < ($5, $6::uuid)
     ORDER BY c.created_at DESC, c.order_id DESC
     LIMIT $10
), recent AS (
    SELECT order_id, created_at, user_id, version, status, stage, kind, legs, leg, attempt, amount_minor,
           currency_code, description, labels, upstream_ref, failure_reason, basis, request_id, updated_at,
           settled_at, traceparent
      FROM orders
     WHERE user_id = $3
       AND created_at >= greatest($4, $7)
       AND created_at <= $5
       AND (created_at, order_id) < ($5, $6::uuid)
       AND CASE WHEN bucket = ANY ($1::int[]) THEN true ELSE false END
     ORDER BY created_at DESC, order_id DESC
     LIMIT $8
)
SELECT 'meta' AS part,
       json_build_object(
           'stale', (SELECT stale FROM stale),
           'identity', (SELECT json_build_object('log_epoch', log_epoch, 'base', partition_base, 'count', partition_count)
                          FROM shard_identity),
           'marks', (SELECT json_agg(json_build_array(stream_partition, log_epoch, xid::text, seq,
                                                      extract(epoch FROM nullif(source_at, '-infinity')))) FROM marks),
           'floor', (SELECT json_build_array(log_epoch, xid::text) FROM outbox_floor),
           'archived_to', extract(epoch FROM nullif(ordermesh.archive_floor(), '-infinity')),
           'catalog_version', (SELECT version FROM projection_catalog),
           'catalog', CASE WHEN (SELECT version FROM projection_catalog) <> $12 THEN
               (SELECT coalesce(json_agg(json_build_array(month, generation, index_name, cluster_uuid, index_uuid, state)
                                         ORDER BY month, generation), '[]') FROM projection_index) END,
           'changes', (SELECT count(*) FROM changes),
           'changed', (SELECT count(*) FROM changed),
           'changed_to', (SELECT json_build_array(extract(epoch FROM created_at)::numeric * 1000000, order_id)
                            FROM changed ORDER BY created_at, order_id LIMIT 1),
           'xmin', pg_snapshot_xmin(pg_current_snapshot())::text,
           'lag_s', CASE WHEN pg_is_in_recovery() THEN
               extract(epoch FROM clock_timestamp() - pg_last_xact_replay_timestamp()) ELSE 0 END,
           'at', extract(epoch FROM clock_timestamp())) AS meta,
       NULL::uuid AS order_id, NULL::timestamptz AS created_at, NULL::text AS user_id, NULL::bigint AS version, NULL::text AS status,
       NULL::text AS stage, NULL::text AS kind, NULL::text[] AS legs, NULL::int AS leg, NULL::int AS attempt,
       NULL::bigint AS amount_minor, NULL::text AS currency_code, NULL::text AS description, NULL::jsonb AS labels,
       NULL::text AS upstream_ref, NULL::text AS failure_reason, NULL::text AS basis, NULL::uuid AS request_id,
       NULL::timestamptz AS updated_at, NULL::timestamptz AS settled_at, NULL::text AS traceparent
UNION ALL
SELECT 'recent', NULL, r.* FROM recent r WHERE NOT EXISTS (SELECT FROM stale)
UNION ALL
SELECT 'changed', NULL, o.*
  FROM changed c
  CROSS JOIN LATERAL (
    SELECT order_id, created_at, user_id, version, status, stage, kind, legs, leg, attempt, amount_minor,
           currency_code, description, labels, upstream_ref, failure_reason, basis, request_id, updated_at,
           settled_at, traceparent
      FROM orders o
     WHERE o.order_id = c.order_id AND o.created_at = c.created_at
       AND CASE WHEN o.bucket = ANY ($1::int[]) THEN true ELSE false END
     LIMIT 1) o
 WHERE NOT EXISTS (SELECT FROM stale);

-- name: marks_of_shard
-- How far the read model has a shard, what stands in its catalog, and where its archive ends; for searches over all users. One row.
SELECT (SELECT min(source_at) FROM watermarks) AS source_at,
       (SELECT count(*) FROM watermarks) = (SELECT partition_count FROM shard_identity) AS is_whole,
       nullif(ordermesh.archive_floor(), '-infinity') AS archived_to,
       (SELECT partition_base FROM shard_identity) AS partition_base, (SELECT partition_count FROM shard_identity) AS partition_count,
       (SELECT coalesce(json_agg(json_build_array(month, generation, index_name, cluster_uuid, index_uuid, state)
                                 ORDER BY month, generation), '[]') FROM projection_index) AS catalog;

-- name: quarantine_of_user
-- Orders of a user that the read model refused, with its reasons; newest first.
SELECT order_id, version, reason FROM quarantine WHERE user_id = $1 ORDER BY created_at DESC, order_id DESC LIMIT $2;
