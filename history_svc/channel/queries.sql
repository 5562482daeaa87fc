-- Statements about a shard's log of changes: its tail, who reads it, and how far.

-- name: read_tail
-- Changes after a place in (xid, seq) order, and how far the log is complete. The fence is the oldest transaction that
-- still runs: below it nothing can appear any more, at or above it something may. `ceiling` is beyond every
-- transaction that has begun to write; `at` is before the snapshot that both are of, since a statement's transaction
-- begins first. $1, $2: where to go on; $3: no change after it occurred before this instant, so that old days are not
-- touched; $4: rows at most; $5: bytes at which to stop; $6, $7: what each partition has had already, from the first
-- partition $8 on: such rows come without a payload. One row at least, of nulls when there is no change.
WITH head AS MATERIALIZED (
    SELECT i.log_epoch, pg_snapshot_xmin(pg_current_snapshot()) AS fence,
           pg_snapshot_xmax(pg_current_snapshot()) AS ceiling,
           now() + COALESCE((SELECT ahead FROM clock_offset), interval '0') AS at,
           f.log_epoch AS floor_epoch, f.xid AS floor_xid
      FROM shard_identity i
      LEFT JOIN outbox_floor f ON true
), had AS MATERIALIZED (
    SELECT $6::text[]::xid8[] AS xids, $7::bigint[] AS seqs
), changes AS (
    SELECT o.xid, o.seq, o.stream_partition, o.occurred_at, o.event_id, o.order_id, o.created_at, o.user_id,
           o.read_routing, o.version, o.kind, o.schema_ver, o.origin, o.traceparent, o.tracestate,
           CASE WHEN (o.xid, o.seq) <= (((SELECT xids FROM had))[o.stream_partition - $8::int + 1],
                                        ((SELECT seqs FROM had))[o.stream_partition - $8::int + 1])
                THEN NULL ELSE convert_to(o.payload::text, 'UTF8') END AS payload
      FROM outbox o
     WHERE (o.xid, o.seq) > ($1::xid8, $2::bigint)
       AND o.xid < (SELECT fence FROM head)
       AND o.occurred_at >= $3::timestamptz
     ORDER BY o.xid, o.seq
     LIMIT $4::int
), sized AS (
    SELECT c.*, sum(COALESCE(200 + octet_length(c.payload), 0))
                    OVER (ORDER BY c.xid, c.seq ROWS BETWEEN UNBOUNDED PRECEDING AND 1 PRECEDING) AS bytes_before
      FROM changes c
)
SELECT h.*, s.*
  FROM head h
  LEFT JOIN sized s ON COALESCE(s.bytes_before, 0) < $5::bigint
 ORDER BY s.xid, s.seq;

-- name: read_starts
-- How far each stream partition was published and how far it is searchable, and from where on the log is whole.
SELECT i.log_epoch, i.partition_base, i.partition_count, f.log_epoch AS floor_epoch, f.xid AS floor_xid,
       p.stream_partition, c.log_epoch AS cursor_epoch, c.xid AS cursor_xid, c.seq AS cursor_seq,
       w.log_epoch AS watermark_epoch, w.xid AS watermark_xid, w.seq AS watermark_seq
  FROM shard_identity i
  LEFT JOIN outbox_floor f ON true
 CROSS JOIN generate_series(i.partition_base, i.partition_base + i.partition_count - 1) AS p (stream_partition)
  LEFT JOIN relay_cursors c ON c.stream_partition = p.stream_partition
  LEFT JOIN watermarks w ON w.stream_partition = p.stream_partition
 ORDER BY p.stream_partition;

-- name: take_lease
-- Become the one who reads this shard's log, if nobody is: the lock lives as long as the session, the term for ever.
-- No row when somebody else holds the lock.
WITH locked AS MATERIALIZED (SELECT pg_try_advisory_lock(73, 0) AS mine)
INSERT INTO relay_lease (term, holder, taken_at)
SELECT 1, $1, clock() FROM locked WHERE mine
ON CONFLICT (only_row) DO UPDATE
   SET term = relay_lease.term + 1, holder = excluded.holder, taken_at = excluded.taken_at
RETURNING term;

-- name: move_cursors
-- Note how far partitions are published, in the newest term only: whoever takes the next term waits for this statement,
-- or this one writes nothing. Returns what was written; `rewind_*` when somebody asks for what came before.
WITH mine AS MATERIALIZED (
    SELECT term FROM relay_lease WHERE term = $1::bigint FOR SHARE
)
INSERT INTO relay_cursors AS c (stream_partition, term, log_epoch, xid, seq, sent_at)
SELECT a.stream_partition, mine.term, $2::int, a.xid::text::xid8, a.seq, clock()
  FROM unnest($3::int[], $4::bigint[], $5::bigint[]) AS a (stream_partition, xid, seq), mine
 ORDER BY a.stream_partition
ON CONFLICT (stream_partition) DO UPDATE
   SET term = excluded.term, log_epoch = excluded.log_epoch, xid = excluded.xid, seq = excluded.seq,
       sent_at = excluded.sent_at
RETURNING c.stream_partition, c.rewind_xid, c.rewind_seq;

-- name: ask_rewind
-- Ask whoever publishes for everything after a position again. Of two wishes the lower one stays, and who
-- stands in another epoch of the log needs all of this one. Returns how many
-- partitions have a cursor; one without any is published from the beginning anyway.
WITH wished AS (
    SELECT a.stream_partition, CASE WHEN is_current THEN a.xid ELSE 0 END::text::xid8 AS xid,
           CASE WHEN is_current THEN a.seq ELSE 0 END AS seq
      FROM unnest($1::int[], $2::int[], $3::bigint[], $4::bigint[]) AS a (stream_partition, log_epoch, xid, seq)
      JOIN shard_identity i ON true
     CROSS JOIN LATERAL (SELECT a.log_epoch = i.log_epoch AS is_current) AS e
), asked AS (
    UPDATE relay_cursors c
       SET rewind_xid = w.xid, rewind_seq = w.seq
      FROM wished w
     WHERE c.stream_partition = w.stream_partition
       AND (c.rewind_xid IS NULL OR (c.rewind_xid, c.rewind_seq) > (w.xid, w.seq))
    RETURNING 1
)
SELECT count(*) FROM asked;

-- name: take_rewinds
-- Move cursors back to where somebody asked for, in the newest term only, and forget the wish. Returns the partitions
-- that went back; a wish that is not behind its cursor needs nothing.
WITH mine AS MATERIALIZED (
    SELECT term FROM relay_lease WHERE term = $1::bigint FOR SHARE
), wishes AS MATERIALIZED (
    SELECT stream_partition, rewind_xid, rewind_seq, (rewind_xid, rewind_seq) < (xid, seq) AS is_behind
      FROM relay_cursors
     WHERE rewind_xid IS NOT NULL
     ORDER BY stream_partition
       FOR UPDATE
), done AS (
    UPDATE relay_cursors c
       SET rewind_xid = NULL, rewind_seq = NULL, term = mine.term,
           xid = CASE WHEN w.is_behind THEN w.rewind_xid ELSE c.xid END,
           seq = CASE WHEN w.is_behind THEN w.rewind_seq ELSE c.seq END
      FROM wishes w, mine
     WHERE c.stream_partition = w.stream_partition
    RETURNING c.stream_partition, c.log_epoch, c.xid, c.seq, w.is_behind
)
SELECT stream_partition, log_epoch, xid, seq FROM done WHERE is_behind;

-- name: quarantine_change
-- Have lists take an order from this shard, as its change cannot travel.
INSERT INTO quarantine AS q (order_id, created_at, user_id, stream_partition, version, reason, seen_at)
VALUES ($1, $2, $3, $4, $5, $6, clock())
ON CONFLICT (order_id) DO UPDATE
   SET version = excluded.version, reason = excluded.reason, seen_at = excluded.seen_at
 WHERE q.version <= excluded.version;
