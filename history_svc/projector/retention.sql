-- What makes the outbox short again: its days, how far they were read, and how they go.

-- name: list_days
-- The days of the outbox that are over, the oldest first, and what decides about them: how large the outbox is, since
-- when its floor stands, and how far it was read by everybody who reads it. A day that is not attached was about to
-- go when something broke. $1: how long ago a day must have ended to be old; $2: whether published means read.
WITH head AS (
    SELECT i.log_epoch, i.partition_base, i.partition_count, clock() AS at,
           f.xid AS floor_xid, f.log_epoch AS floor_epoch, f.raised_at
      FROM shard_identity i
      LEFT JOIN outbox_floor f ON true
), readers AS (
    SELECT p.stream_partition, w.log_epoch, w.xid FROM head h
     CROSS JOIN generate_series(h.partition_base, h.partition_base + h.partition_count - 1) AS p (stream_partition)
      LEFT JOIN watermarks w ON w.stream_partition = p.stream_partition
    UNION ALL
    SELECT p.stream_partition, c.log_epoch, c.xid FROM head h
     CROSS JOIN generate_series(h.partition_base, h.partition_base + h.partition_count - 1) AS p (stream_partition)
      LEFT JOIN relay_cursors c ON c.stream_partition = p.stream_partition
     WHERE $2::boolean
), read AS (
    SELECT bool_and(r.log_epoch IS NOT DISTINCT FROM h.log_epoch) AS is_current, min(r.xid) AS xid
      FROM readers r, head h
), days AS (
    SELECT c.oid, c.relname AS name, to_date(substring(c.relname FROM 8), 'YYYY_MM_DD') AS day,
           COALESCE(NOT n.inhdetachpending, false) AS is_attached, n.inhparent IS NOT NULL AS is_known
      FROM pg_class c
      LEFT JOIN pg_inherits n ON n.inhrelid = c.oid
     WHERE c.relnamespace = 'ordermesh'::regnamespace AND c.relkind = 'r'
       AND c.relname ~ '^outbox_\d{4}_\d{2}_\d{2}$'
)
SELECT d.name, d.is_attached, d.is_known, d.day + 1 <= (h.at - $1::interval) AT TIME ZONE 'UTC' AS is_old,
       pg_total_relation_size(d.oid) AS size_bytes,
       (SELECT sum(pg_total_relation_size(oid)) FROM days)::bigint AS outbox_bytes,
       h.log_epoch, COALESCE(h.floor_epoch = h.log_epoch, false) AS floor_is_current, h.floor_xid,
       h.at - h.raised_at AS floor_age, CASE WHEN r.is_current THEN r.xid END AS read_xid
  FROM days d, head h, read r
 WHERE d.day + 1 <= h.at AT TIME ZONE 'UTC'
 ORDER BY d.day;

-- name: last_of_day
-- The last transaction that wrote into a day of the outbox, or null; a few steps in the day's index.
SELECT max(xid) FROM ordermesh.{day};

-- name: raise_floor
-- Say that the log may be gone below a transaction; it never falls within an epoch. One who reads below it needs a
-- rebuild.
INSERT INTO outbox_floor AS f (log_epoch, xid, raised_at) VALUES ($1, $2::xid8, clock())
ON CONFLICT (only_row) DO UPDATE
   SET log_epoch = excluded.log_epoch, xid = excluded.xid, raised_at = excluded.raised_at
 WHERE (f.log_epoch, f.xid) < (excluded.log_epoch, excluded.xid);

-- name: detach_day
-- Take a day out of the outbox; writers and readers go on. It waits for those who have begun, outside of any
-- transaction; when that takes too long, the day is left half detached and `resume_detach` goes on:
ALTER TABLE ordermesh.outbox DETACH PARTITION ordermesh.{day} CONCURRENTLY;

-- name: resume_detach
-- Go on where detaching was broken off:
ALTER TABLE ordermesh.outbox DETACH PARTITION ordermesh.{day} FINALIZE;

-- name: drop_day
-- Remove a day that is no part of the outbox any more:
DROP TABLE ordermesh.{day};
