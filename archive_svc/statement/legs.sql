-- What a statement reads of one shard: in one snapshot, below a lock that keeps its months attached. All of them read.

-- name: keep_attached
-- Taken before the snapshot, of the months' tables, too: a month that is detached later waits for us at the primary. A replica ends
-- our session instead, at the latest; should a month have come and gone meanwhile, `left` says so.
LOCK TABLE ordermesh.orders IN ACCESS SHARE MODE;

-- name: archived
-- The months that are read from their segments, the oldest first. $1: since; $2: until.
SELECT month, archive_id FROM ordermesh.archive_months
 WHERE committed_at IS NOT NULL AND ends_at > $1 AND begins_at < $2 ORDER BY month;

-- name: copies
-- The copies of months that are not in quarantine, the oldest first: which readers read, and which nobody does since the month came back.
SELECT month, archive_id, committed_at IS NOT NULL AS is_read FROM ordermesh.archive_months
 WHERE quarantined = '' AND (committed_at IS NOT NULL OR state IN ('RESTORED', 'WANTED')) ORDER BY month;

-- name: segments
-- The segments of a month that may hold orders of a user, in the order of their keys; those that are missing are told without a key.
-- $1: archive_id; $2: user; $3: since; $4: until.
SELECT p.part, p.order_count, s.key, s.version_id, s.etag, s.size_bytes, s.sha256, s.facts
  FROM ordermesh.archive_parts p
  LEFT JOIN ordermesh.archive_segments s ON s.archive_id = p.archive_id AND s.part = p.part AND s.of_table = 'orders'
 WHERE p.archive_id = $1 AND (p.until_user, p.until_created_at) >= ($2::text COLLATE "C", $3::timestamptz)
   AND (p.after_user, p.after_created_at) < ($2::text COLLATE "C", $4::timestamptz)
 ORDER BY p.part;

-- name: amendments
-- What was found out about a user's orders after they had been archived, the oldest first. $1: user; $2: since; $3: until.
SELECT order_id::text AS order_id, note, changes, (extract(epoch FROM amended_at) * 1000000)::bigint AS amended_us
  FROM ordermesh.archive_amendments
 WHERE user_id = $1 AND created_at >= $2 AND created_at < $3 ORDER BY amended_at, amendment_id;

-- name: gone
-- Whether no segment of this key is catalogued any more. $1: key.
SELECT NOT EXISTS (SELECT FROM ordermesh.archive_segments WHERE key = $1);

-- name: amended_now
-- When an amendment is made.
SELECT clock_timestamp();

-- name: amend
-- Note an amendment of an order of a month that is read from its segments; nothing when it is none by now, was noted before, or its
-- user was erased since it was made.
-- $1: amendment; $2: order; $3: user; $4: created_at; $5: note; $6: changes; $7: actor; $8: reason; $9: when it was made.
INSERT INTO ordermesh.archive_amendments (amendment_id, order_id, user_id, created_at, note, changes, actor, reason, amended_at)
SELECT $1, $2, $3, $4::timestamptz, $5, $6, $7, $8, $9::timestamptz FROM ordermesh.archive_months m
 WHERE m.begins_at <= $4 AND m.ends_at > $4 AND m.committed_at IS NOT NULL
   AND NOT EXISTS (SELECT FROM ordermesh.archive_erasures e WHERE e.user_id = $3 AND coalesce(e.ended_at, 'infinity') > $9)
ON CONFLICT (amendment_id) DO NOTHING;

-- name: amended
-- The order that an amendment is of. $1: amendment.
SELECT order_id FROM ordermesh.archive_amendments WHERE amendment_id = $1;

-- name: hot
-- A user's orders of a piece that the tables hold. Buckets that were moved away may still have rows here; that test hides in a CASE,
-- because the planner takes it for selective, and would sort all of a user's orders. {columns}: as `rows` says.
-- $1: user; $2: since; $3: until; $4: buckets.
SELECT {columns} FROM ordermesh.orders AS o
 WHERE o.user_id = $1 AND o.created_at >= $2 AND o.created_at < $3
   AND CASE WHEN o.bucket = ANY ($4::int[]) THEN true ELSE false END
 ORDER BY o.created_at, o.order_id;

-- name: left
-- At a replica, where nobody waits for us: which of these months left the tables, or began to, by now; asked in a later snapshot than
-- the rows were read in. $1: months.
SELECT month FROM ordermesh.archive_months
 WHERE pg_is_in_recovery() AND month = ANY ($1::date[]) AND state IN ('DETACHING', 'GRACE', 'DROPPED', 'RESTORING') ORDER BY month LIMIT 1;
