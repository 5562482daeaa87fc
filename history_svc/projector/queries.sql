-- Every statement of the projector about watermarks, quarantine and catalog; its log is in history_svc/channel.

-- name: read_progress
-- How far the read model has each stream partition of the shard; `indexed_until`: every change before it is searchable, NULL
-- when not all partitions say so. No row: the shard was never named.
SELECT i.log_epoch, i.partition_base, i.partition_count,
       (SELECT coalesce(json_agg(json_build_array(stream_partition, log_epoch, xid::text, seq)), '[]') FROM watermarks) AS watermarks,
       (SELECT CASE WHEN count(*) = i.partition_count THEN min(source_at) END FROM watermarks WHERE source_at > '-infinity') AS indexed_until
  FROM shard_identity i;

-- name: move_watermarks
-- All that a refresh has proved, or nothing: watermarks go forward, what was refused is noted, what came through is freed.
-- $1-$4 partitions, xids, seqs, instants before which everything is below; $5 their log epochs; $6 catalog version they were written
-- by; $7-$12 refused orders; $13 $14 written orders and their versions; $15 how many orders may be in quarantine.
-- `is_full`: there would be more than that; `is_behind`: the catalog is newer. Then nothing is written. An order that is in
-- quarantine already takes no more room. `indexed_until`: as in read_progress, of all partitions with what was written here.
WITH refused AS MATERIALIZED (
    SELECT * FROM unnest($7::uuid[], $8::timestamptz[], $9::text[], $10::int[], $11::bigint[], $12::text[])
               AS r (order_id, created_at, user_id, stream_partition, version, reason)
), written AS MATERIALIZED (
    SELECT * FROM unnest($13::uuid[], $14::bigint[]) AS w (order_id, version)
), head AS MATERIALIZED (
    SELECT version, version > $6 AS is_ahead FROM projection_catalog
), beside AS MATERIALIZED (
    SELECT count(*) AS orders
      FROM quarantine q
     WHERE NOT EXISTS (SELECT FROM refused r WHERE r.order_id = q.order_id)
       AND NOT EXISTS (SELECT FROM written w WHERE w.order_id = q.order_id AND w.version >= q.version)
), room AS MATERIALIZED (
    SELECT NOT f.is_full AND NOT head.is_ahead AS is_there, f.is_full, head.is_ahead
      FROM head, (SELECT EXISTS (SELECT FROM refused)
                     AND beside.orders + (SELECT count(*) FROM refused) > $15 AS is_full
                    FROM beside) f
), noted AS (
    INSERT INTO quarantine AS q (order_id, created_at, user_id, stream_partition, version, reason, seen_at)
    SELECT r.order_id, r.created_at, r.user_id, r.stream_partition, r.version, r.reason, clock_timestamp()
      FROM refused r, room WHERE room.is_there
    ON CONFLICT (order_id) DO UPDATE SET version = excluded.version, reason = excluded.reason, seen_at = excluded.seen_at
     WHERE q.version <= excluded.version
), freed AS (
    DELETE FROM quarantine q USING written w, room
     WHERE room.is_there AND q.order_id = w.order_id AND q.version <= w.version
), marked AS (
    INSERT INTO watermarks AS m (stream_partition, log_epoch, xid, seq, catalog_version, updated_at, source_at)
    SELECT n.stream_partition, n.log_epoch, n.xid::xid8, n.seq, $6, clock_timestamp(), coalesce(n.source_at, '-infinity')
      FROM unnest($1::int[], $2::text[], $3::bigint[], $4::timestamptz[], $5::int[])
               AS n (stream_partition, xid, seq, source_at, log_epoch), room
     WHERE room.is_there
    ON CONFLICT (stream_partition) DO UPDATE
       SET log_epoch = excluded.log_epoch, xid = excluded.xid, seq = excluded.seq, catalog_version = excluded.catalog_version,
           updated_at = excluded.updated_at, source_at = greatest(m.source_at, excluded.source_at)
     WHERE (m.log_epoch, m.xid, m.seq) < (excluded.log_epoch, excluded.xid, excluded.seq)
       AND m.catalog_version <= excluded.catalog_version
    RETURNING m.stream_partition, m.source_at
), stand AS (
    SELECT stream_partition, source_at FROM marked
    UNION ALL
    SELECT w.stream_partition, w.source_at FROM watermarks w
     WHERE NOT EXISTS (SELECT FROM marked m WHERE m.stream_partition = w.stream_partition)
)
SELECT room.is_full, room.is_ahead AS is_behind, (SELECT count(*) FROM quarantine) AS quarantined,
       (SELECT CASE WHEN count(*) = (SELECT partition_count FROM shard_identity) THEN min(source_at) END
          FROM stand WHERE source_at > '-infinity') AS indexed_until
  FROM room;

-- name: room_in_quarantine
-- How many orders there are in quarantine beside these.
SELECT count(*) FROM quarantine WHERE order_id <> ALL ($1::uuid[]);

-- name: read_catalog
-- The catalog and its version, of one snapshot.
SELECT c.version, (SELECT coalesce(json_agg(json_build_array(month, generation, index_name, cluster_uuid, index_uuid, state)
                                            ORDER BY month, generation), '[]') FROM projection_index) AS indices
  FROM projection_catalog c;

-- name: add_index
-- Note a month's first index, which has every document of the month from the beginning. A month that is known stays as it is.
SELECT plant_index($1, 1, $2, $3, $4);

-- name: doubt_index
-- An index is not the one that was made: nobody reads it until its month was built again. Before another is made in its place.
UPDATE projection_index SET state = 'BUILDING', cluster_uuid = '', index_uuid = ''
 WHERE index_name = $1 AND state <> 'RETIRED' AND (cluster_uuid, index_uuid) = ($2, $3);

-- name: name_index
-- The index that now stands in a doubted one's place.
UPDATE projection_index SET cluster_uuid = $2, index_uuid = $3 WHERE index_name = $1 AND state = 'BUILDING' AND index_uuid = '';
