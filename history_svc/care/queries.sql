-- Every statement of the care for a shard's part of the projection. Orders are walked by their ids, which begin with their time.

-- name: open_operation
-- Note what is to be done, or find it: one of a kind and month is open at a time, and a repeated request changes nothing.
WITH made AS (
    INSERT INTO projection_operations AS o (operation_id, kind, month, repairs, actor, reason, created_at, updated_at)
    SELECT $1, $2, $3, $4, $5, $6, clock(), clock()
     WHERE NOT EXISTS (SELECT FROM projection_operations WHERE operation_id = $1)
    ON CONFLICT (kind, month) WHERE state = 'OPEN' DO UPDATE SET repairs = o.repairs OR excluded.repairs
    RETURNING o.*
)
SELECT * FROM made
UNION ALL
SELECT * FROM projection_operations WHERE operation_id = $1 AND NOT EXISTS (SELECT FROM made);

-- name: next_operation
-- What is carried on next; of the months the newest first, as most pages show it.
SELECT * FROM projection_operations
 WHERE state = 'OPEN' AND not_before <= clock()
 ORDER BY array_position(ARRAY['RESET', 'RETRY', 'REBUILD', 'VERIFY'], kind), month DESC, created_at
 LIMIT 1;

-- name: keep_operation
-- Where an operation stands, or how it ended; in the newest term only, and only while it is open and nobody asked for more than
-- was done. Returns whether it was kept.
WITH kept AS (
    UPDATE projection_operations
       SET state = $3, phase = $4, generation = $5, index_name = $6, index_uuid = $7, catalog_version = $8, copied_to = $9,
           orders = $10, orders_expected = $11, missing = $12, stale = $13, ahead = $14, extra = $15, refused = $16,
           repaired = $17, passes = $18, note = $19, failures = 0, updated_at = clock(),
           ended_at = CASE WHEN $3 <> 'OPEN' THEN clock() END
     WHERE operation_id = $1 AND state = 'OPEN' AND repairs = $20 AND EXISTS (SELECT FROM relay_lease WHERE term = $2)
    RETURNING 1
)
SELECT EXISTS (SELECT FROM kept);

-- name: defer_operation
-- A step failed: the next try is later, ever more so, up to $5; others go on meanwhile.
UPDATE projection_operations
   SET failures = failures + 1, note = $3, updated_at = clock(),
       not_before = clock() + least($5::interval, $4::interval * 2 ^ least(failures, 10))
 WHERE operation_id = $1 AND state = 'OPEN' AND EXISTS (SELECT FROM relay_lease WHERE term = $2);

-- name: list_given_up
-- Months with a generation that nobody builds any more, beside an older one that serves.
SELECT DISTINCT b.month
  FROM projection_index b
  JOIN projection_index s ON s.month = b.month AND s.state = 'SERVING' AND s.generation < b.generation
 WHERE b.state = 'BUILDING'
   AND NOT EXISTS (SELECT FROM projection_operations o WHERE o.kind = 'REBUILD' AND o.month = b.month AND o.state = 'OPEN');

-- name: give_up_building
-- A month's generations that nobody builds any more are not written either.
UPDATE projection_index b SET state = 'RETIRED', retired_at = clock()
 WHERE b.month = $1 AND b.state = 'BUILDING'
   AND EXISTS (SELECT FROM projection_index s WHERE s.month = b.month AND s.state = 'SERVING' AND s.generation < b.generation)
   AND NOT EXISTS (SELECT FROM projection_operations o WHERE o.kind = 'REBUILD' AND o.month = b.month AND o.state = 'OPEN');

-- name: cancel_operation
-- End an operation that is open; returns it however it is.
WITH cancelled AS (
    UPDATE projection_operations SET state = 'CANCELLED', note = $2, updated_at = clock(), ended_at = clock()
     WHERE operation_id = $1 AND state = 'OPEN'
    RETURNING *
)
SELECT * FROM cancelled
UNION ALL
SELECT * FROM projection_operations WHERE operation_id = $1 AND NOT EXISTS (SELECT FROM cancelled);

-- name: list_operations
-- The newest operations, those that are open first.
SELECT * FROM projection_operations ORDER BY (state = 'OPEN') DESC, created_at DESC, operation_id LIMIT $1;

-- name: read_status
-- How a shard's part of the projection is, in one row.
SELECT i.partition_count,
       (SELECT count(*) FROM quarantine) AS quarantined,
       (SELECT min(source_at) FROM watermarks WHERE source_at > '-infinity') AS indexed_until,
       (SELECT count(*) FROM watermarks) AS partitions_indexed,
       (SELECT coalesce(json_agg(json_build_array(month, generation, index_name, cluster_uuid, index_uuid, state)
                                 ORDER BY month, generation), '[]') FROM projection_index) AS catalog,
       (SELECT version FROM projection_catalog) AS catalog_version,
       nullif(archive_floor(), '-infinity') AS archived_to, clock() AS at
  FROM shard_identity i;

-- name: plan_index
-- The generation in which a month is to be built.
SELECT generation, index_name FROM plan_index($1, $2, $3);

-- name: serve_index
-- Let readers have a month from this index.
SELECT serve_index($1, $2, $3);

-- name: reset_projection
-- Begin the shard's part anew; how many months have to be built.
SELECT reset_projection($1, $2);

-- name: read_knowledge
-- Whether whoever moves a watermark knows the catalog at this version.
SELECT count(w.stream_partition) = i.partition_count AND bool_and(w.catalog_version >= $1) AS is_known
  FROM shard_identity i LEFT JOIN watermarks w ON true
 GROUP BY i.partition_count;

-- name: read_fence
-- Everything that any earlier statement has seen was written by a transaction below this one.
SELECT pg_snapshot_xmax(pg_current_snapshot())::text;

-- name: is_past
-- Whether every change of transactions below $1 is searchable, or in quarantine.
SELECT count(w.stream_partition) = i.partition_count
       AND bool_and((w.log_epoch, w.xid, w.seq) >= (i.log_epoch, $1::text::xid8, 0)) AS is_past
  FROM shard_identity i LEFT JOIN watermarks w ON true
 GROUP BY i.partition_count;

-- name: count_orders
-- How many orders a month has, at most $5 of them.
SELECT count(*) FROM (SELECT FROM orders WHERE created_at >= $1 AND created_at < $2 AND order_id >= $3 AND order_id < $4 LIMIT $5) o;

-- name: read_orders
-- Orders of a span of time that this shard owns, by id, after one of them.
SELECT o.order_id, o.created_at, o.user_id, o.version, i.partition_base + o.bucket % i.partition_count AS stream_partition,
       convert_to(to_jsonb(o)::text, 'UTF8') AS payload
  FROM orders o, shard_identity i
 WHERE o.created_at >= $1 AND o.created_at < $2
   AND o.order_id > $3 AND o.order_id < $4
   AND o.bucket IN (SELECT bucket FROM bucket_fence WHERE state NOT IN ('MOVED', 'INCOMING'))
 ORDER BY o.order_id
 LIMIT $5;

-- name: read_orders_of
-- Some orders as they are now.
SELECT o.order_id, o.created_at, o.user_id, o.version, i.partition_base + o.bucket % i.partition_count AS stream_partition,
       convert_to(to_jsonb(o)::text, 'UTF8') AS payload
  FROM shard_identity i, unnest($1::uuid[], $2::timestamptz[]) AS a (order_id, created_at)
  JOIN orders o ON o.order_id = a.order_id AND o.created_at = a.created_at
 WHERE o.bucket IN (SELECT bucket FROM bucket_fence WHERE state NOT IN ('MOVED', 'INCOMING'));

-- name: add_up_day
-- A span of time summed up by stream partition, as the read model does.
SELECT i.partition_base + o.bucket % i.partition_count AS stream_partition, count(*) AS orders, sum(o.version)::bigint AS versions,
       sum(h32(o.order_id, o.version))::bigint AS hashes
  FROM orders o, shard_identity i
 WHERE o.created_at >= $1 AND o.created_at < $2
   AND o.order_id >= $3 AND o.order_id < $4
   AND o.bucket IN (SELECT bucket FROM bucket_fence WHERE state NOT IN ('MOVED', 'INCOMING'))
 GROUP BY 1;

-- name: read_versions
-- Orders of one stream partition in a span of time with their versions, by id, after one of them.
SELECT o.order_id::text AS order_id, o.version
  FROM orders o, shard_identity i
 WHERE o.created_at >= $1 AND o.created_at < $2
   AND o.order_id > $3 AND o.order_id < $4
   AND i.partition_base + o.bucket % i.partition_count = $5
   AND o.bucket IN (SELECT bucket FROM bucket_fence WHERE state NOT IN ('MOVED', 'INCOMING'))
 ORDER BY o.order_id
 LIMIT $6;

-- name: read_quarantined
-- Which of some orders are in quarantine.
SELECT order_id::text AS order_id FROM quarantine WHERE order_id = ANY ($1::uuid[]);

-- name: list_quarantine
-- Orders in quarantine by id, after one of them.
SELECT order_id, created_at, version FROM quarantine WHERE order_id > $1 ORDER BY order_id LIMIT $2;

-- name: note_refused
-- Have lists take orders from this shard, all of them or, when more than $7 would be in quarantine, none. Returns how many
-- would be.
WITH refused AS MATERIALIZED (
    SELECT * FROM unnest($1::uuid[], $2::timestamptz[], $3::text[], $4::int[], $5::bigint[], $6::text[])
               AS r (order_id, created_at, user_id, stream_partition, version, reason)
), room AS MATERIALIZED (
    SELECT (SELECT count(*) FROM refused)
         + (SELECT count(*) FROM quarantine q WHERE NOT EXISTS (SELECT FROM refused r WHERE r.order_id = q.order_id)) AS orders
), noted AS (
    INSERT INTO quarantine AS q (order_id, created_at, user_id, stream_partition, version, reason, seen_at)
    SELECT r.order_id, r.created_at, r.user_id, r.stream_partition, r.version, r.reason, clock_timestamp()
      FROM refused r, room WHERE room.orders <= $7
    ON CONFLICT (order_id) DO UPDATE SET version = excluded.version, reason = excluded.reason, seen_at = excluded.seen_at
     WHERE q.version <= excluded.version
)
SELECT orders FROM room;

-- name: free_written
-- Orders whose document is searchable in this version leave quarantine.
DELETE FROM quarantine q USING unnest($1::uuid[], $2::bigint[]) AS w (order_id, version)
 WHERE q.order_id = w.order_id AND q.version <= w.version;

-- name: read_needs
-- What the shard's part of the projection lacks: whether changes were dropped that its watermarks never passed, months that are
-- not served although they had an index, and served months that nobody compared for so long. Archived months lack nothing.
SELECT EXISTS (SELECT FROM generate_series(i.partition_base, i.partition_base + i.partition_count - 1) AS p
                 LEFT JOIN watermarks w ON w.stream_partition = p
                WHERE CASE WHEN w.stream_partition IS NULL THEN f.log_epoch IS NOT NULL
                           ELSE w.log_epoch <> i.log_epoch OR (w.log_epoch, w.xid) < (f.log_epoch, f.xid) END) AS is_lost,
       (SELECT count(DISTINCT month) FROM projection_index
         WHERE month NOT IN (SELECT month FROM projection_index WHERE state = 'SERVING') AND NOT is_archived(month))
           AS months_unserved,
       (SELECT coalesce(array_agg(DISTINCT month), '{}') FROM projection_index
         WHERE month NOT IN (SELECT month FROM projection_index WHERE state = 'SERVING') AND NOT is_archived(month)
           AND month NOT IN (SELECT month FROM projection_operations
                              WHERE kind = 'REBUILD' AND (state = 'OPEN' OR (state <> 'SUCCEEDED' AND ended_at > clock() - $1::interval))))
           AS unserved,
       (SELECT coalesce(array_agg(DISTINCT month), '{}') FROM projection_index
         WHERE $2::interval > '0' AND state = 'SERVING' AND created_at < clock() - $2::interval AND NOT is_archived(month)
           AND month NOT IN (SELECT month FROM projection_operations
                              WHERE kind IN ('REBUILD', 'VERIFY') AND (state = 'OPEN' OR ended_at > clock() - $2::interval)))
           AS unverified,
       (SELECT count(*) FROM projection_operations WHERE state = 'OPEN') AS open
  FROM shard_identity i
  LEFT JOIN outbox_floor f ON true;

-- name: may_rebuild
-- Whether a month is neither built nor was given up within $2.
SELECT NOT EXISTS (SELECT FROM projection_operations
                    WHERE kind = 'REBUILD' AND month = $1
                      AND (state = 'OPEN' OR (state <> 'SUCCEEDED' AND ended_at > clock() - $2::interval)));

-- name: plant_index
-- A shard that has nothing of a month begins with the generation that the others serve.
SELECT plant_index($1, $2, $3, $4, $5);

-- name: retire_indices
-- Generations of a month below the one that all shards serve are neither written nor read any more.
UPDATE projection_index SET state = 'RETIRED', retired_at = clock()
 WHERE month = $1 AND generation < $2 AND state <> 'RETIRED';

-- name: is_archived
-- Whether no list shows a month any more, as it is archived.
SELECT is_archived($1);

-- name: list_left
-- Which of some months need no index here: archived, or never had a table. The latter are not in the catalog for long.
SELECT m.month, is_archived(m.month) AS is_archived
  FROM unnest($1::date[]) AS m (month)
 WHERE is_archived(m.month) OR leaf_of('orders', m.month::timestamp AT TIME ZONE 'UTC') IS NULL;

-- name: retire_archived
-- No index of an archived month is read or written any more.
UPDATE projection_index SET state = 'RETIRED', retired_at = clock() WHERE month = $1 AND state <> 'RETIRED' AND is_archived(month);

-- name: forget_month
-- A month that has no table here, and never had one, is none of this shard's.
DELETE FROM projection_index
 WHERE month = $1 AND NOT is_archived(month) AND leaf_of('orders', month::timestamp AT TIME ZONE 'UTC') IS NULL;

-- name: list_retired
-- Names of indices that have been retired for so long; those that are gone are so for ever.
SELECT index_name FROM projection_index WHERE state = 'RETIRED' AND retired_at < clock() - $1::interval;

-- name: forget_index
-- A retired index that is gone, unless it was the last one of its month.
DELETE FROM projection_index i
 WHERE i.index_name = $1 AND i.state = 'RETIRED'
   AND EXISTS (SELECT FROM projection_index o WHERE o.month = i.month AND o.generation <> i.generation)
RETURNING true;

-- name: leave_index
-- The last index of a month is gone, and its row stays: should the month come back from the archive, no index serves it, and
-- nobody takes it for a month without orders.
UPDATE projection_index SET retired_at = 'infinity' WHERE index_name = $1 AND state = 'RETIRED';

-- name: forget_operations
-- Operations that ended long ago; the newest of each kind and month stays.
DELETE FROM projection_operations o
 WHERE state <> 'OPEN' AND ended_at < clock() - interval '90 days'
   AND EXISTS (SELECT FROM projection_operations n
                WHERE n.kind = o.kind AND n.month IS NOT DISTINCT FROM o.month AND n.created_at > o.created_at);
