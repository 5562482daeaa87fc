-- Walks over a shard's objects in S3. Every change names the fence of the lease under which it is made.

-- name: want_sweep
-- $1: id; $2: whether it deletes; $3: actor; $4: reason. The walk, also of an earlier call.
WITH made AS (
    INSERT INTO ordermesh.archive_sweeps (sweep_id, deletes, actor, reason, created_at)
    VALUES ($1, $2, $3, $4, clock_timestamp()) ON CONFLICT (sweep_id) DO NOTHING RETURNING *)
SELECT * FROM made UNION ALL SELECT * FROM ordermesh.archive_sweeps WHERE sweep_id = $1 LIMIT 1;

-- name: begin_sweep
-- Begin a walk by itself, when none was begun for long. $1: fence; $2: id; $3: whether it deletes; $4: actor; $5: for how long.
WITH held AS (SELECT FROM ordermesh.archive_lease WHERE fence = $1 FOR SHARE)
INSERT INTO ordermesh.archive_sweeps (sweep_id, deletes, actor, reason, created_at)
SELECT $2, $3, $4, 'it is time', clock_timestamp() FROM held
 WHERE NOT EXISTS (SELECT FROM ordermesh.archive_sweeps WHERE created_at > clock_timestamp() - $5::interval)
ON CONFLICT (sweep_id) DO NOTHING;

-- name: due_sweep
-- The oldest walk that has not ended.
SELECT * FROM ordermesh.archive_sweeps WHERE ended_at IS NULL ORDER BY created_at, sweep_id LIMIT 1;

-- name: known_months
-- What the shard knows of months: those that hang on its tables, were ever asked for, or are below a legal hold.
WITH here AS (SELECT (begins_at AT TIME ZONE 'UTC')::date AS month FROM ordermesh.months_here()),
held AS (SELECT month FROM ordermesh.archive_legal_holds WHERE month IS NOT NULL AND lifted_at IS NULL)
SELECT to_char(month, 'YYYY-MM') AS month, coalesce(m.manifest_key, '') AS manifest_key,
       coalesce(m.edition, 0) AS edition, m.month IS NOT NULL AS is_asked,
       h.month IS NOT NULL AS is_here, l.month IS NOT NULL AS is_held
  FROM here h FULL JOIN ordermesh.archive_months m USING (month) FULL JOIN held l USING (month);

-- name: not_catalogued
-- Those of these objects that nothing here names. $1: keys; $2: the statements whose files they are, NULL for others.
SELECT key FROM unnest($1::text[], $2::uuid[]) AS k (key, statement_id) WHERE NOT ordermesh.is_catalogued(key, statement_id);

-- name: not_in_segments
-- Those of these objects that are the segment of no month, with the erasure that left one behind and did not delete it yet. $1: keys.
SELECT k.key, r.erasure_id
  FROM unnest($1::text[]) AS k (key) LEFT JOIN ordermesh.archive_replaced r ON r.key = k.key AND r.deleted_at IS NULL
 WHERE NOT EXISTS (SELECT FROM ordermesh.archive_segments s WHERE s.key = k.key);

-- name: note_strays
-- Note strays that nothing names this very moment; their keys. $1: fence; $2: walk; $3 to $7: keys, kinds, statements, sizes, times.
WITH held AS (SELECT FROM ordermesh.archive_lease WHERE fence = $1 FOR SHARE)
INSERT INTO ordermesh.archive_strays AS s (key, kind, size_bytes, stored_at, sweep_id, found_at)
SELECT key, kind, size_bytes, stored_at, $2, clock_timestamp()
  FROM held, unnest($3::text[], $4::text[], $5::uuid[], $6::bigint[], $7::timestamptz[])
             AS k (key, kind, statement_id, size_bytes, stored_at)
 WHERE NOT ordermesh.is_catalogued(key, statement_id)
ON CONFLICT (key) DO UPDATE
   SET size_bytes = excluded.size_bytes, stored_at = excluded.stored_at, sweep_id = $2, deleted_at = NULL
RETURNING key;

-- name: stray_deleted
-- Note that a stray is gone. $1: fence; $2: walk; $3: key.
WITH held AS (SELECT FROM ordermesh.archive_lease WHERE fence = $1 FOR SHARE)
UPDATE ordermesh.archive_strays SET deleted_at = clock_timestamp() FROM held WHERE key = $3 AND sweep_id = $2 RETURNING true;

-- name: go_on
-- Note how far a walk is. $1: fence; $2: walk; $3: number of the prefix; $4: last key; $5: objects seen; $6: deleted.
WITH held AS (SELECT FROM ordermesh.archive_lease WHERE fence = $1 FOR SHARE)
UPDATE ordermesh.archive_sweeps
   SET place = $3, after_key = $4, seen_count = seen_count + $5, deleted_count = deleted_count + $6
  FROM held WHERE sweep_id = $2 AND ended_at IS NULL RETURNING true;

-- name: end_sweep
-- Note that a walk is over; strays that it did not meet are none any more, unless it was refused. $1: fence; $2: walk; $3: refusal.
WITH held AS (SELECT FROM ordermesh.archive_lease WHERE fence = $1 FOR SHARE),
ended AS (UPDATE ordermesh.archive_sweeps SET ended_at = clock_timestamp(), refusal = left($3, 512)
            FROM held WHERE sweep_id = $2 AND ended_at IS NULL RETURNING sweep_id),
none AS (DELETE FROM ordermesh.archive_strays s USING ended
          WHERE $3 = '' AND s.deleted_at IS NULL AND s.sweep_id <> ended.sweep_id)
SELECT true FROM ended;

-- name: stray_totals
-- How many strays there are and how large, by the last walk; when it ended, and why it called nothing one.
SELECT count(s.key) AS strays, coalesce(sum(s.size_bytes), 0)::bigint AS stray_bytes, w.ended_at, w.refusal
  FROM (SELECT) AS one
  LEFT JOIN ordermesh.archive_strays s ON s.deleted_at IS NULL
  LEFT JOIN LATERAL (SELECT ended_at, refusal FROM ordermesh.archive_sweeps WHERE ended_at IS NOT NULL
                      ORDER BY created_at DESC LIMIT 1) AS w ON true
 GROUP BY w.ended_at, w.refusal;

-- name: strays_of
-- The oldest strays that a walk met. $1: walk; $2: at most so many.
SELECT key, kind, size_bytes, stored_at, deleted_at FROM ordermesh.archive_strays WHERE sweep_id = $1 ORDER BY stored_at, key LIMIT $2;
