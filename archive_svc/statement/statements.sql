-- Statements on the shard of their user. Whoever makes one names the fence of its turn, and changes nothing under an older one.

-- name: stale_bucket
-- The first bucket that is not owned here at the epoch that the proxy knows; no row when all are. $1: buckets; $2: their epochs.
SELECT a.bucket, f.epoch, f.owner, f.state, f.left_epoch
  FROM unnest($1::int[], $2::bigint[]) AS a (bucket, epoch)
  LEFT JOIN ordermesh.bucket_fence f ON f.bucket = a.bucket
 WHERE f.state IS DISTINCT FROM 'OWNED' OR f.epoch IS DISTINCT FROM a.epoch
 LIMIT 1;

-- name: re_place
-- Note where the user's orders are by now. $1: id; $2: fence; $3: placements. Whether the turn is still one's own.
UPDATE ordermesh.statements SET placements = $3
 WHERE statement_id = $1 AND fence = $2 AND state IN ('PLANNING', 'READING', 'RENDERING', 'STORING')
RETURNING true;

-- name: archive_bytes_of
-- About how many bytes of the archive a user's statement reads: the row groups that may hold a row of theirs, and the footers.
-- $1: user; $2, $3: period.
SELECT COALESCE(sum((s.facts ->> 'footer_bytes')::bigint + g.size_bytes), 0)::bigint
  FROM ordermesh.archive_months m
  JOIN ordermesh.archive_parts p USING (archive_id)
  JOIN ordermesh.archive_segments s USING (archive_id, part)
  CROSS JOIN LATERAL (
      SELECT COALESCE(sum((each ->> 3)::bigint), 0) AS size_bytes
        FROM jsonb_array_elements(s.facts -> 'groups') AS each
       WHERE (each ->> 0) COLLATE "C" <= $1 AND (each ->> 1) COLLATE "C" >= $1) AS g
 WHERE m.committed_at IS NOT NULL AND m.begins_at < $3 AND m.ends_at > $2 AND s.of_table = 'orders'
   AND p.after_user <= $1 AND p.until_user >= $1;

-- name: amendments_of
-- How many amendments of a user's orders there are, of months that are read from their segments, and when the newest one was made.
-- $1: user; $2, $3: period of the orders.
SELECT count(*) AS amendments, max(a.amended_at) AS newest
  FROM ordermesh.archive_amendments a JOIN ordermesh.archive_months m ON m.begins_at <= a.created_at AND m.ends_at > a.created_at
 WHERE a.user_id = $1 AND a.created_at >= $2 AND a.created_at < $3 AND m.committed_at IS NOT NULL;

-- name: request
-- Begin a statement, or find the one that is meant.
-- $1: its id if it is new; $2: user; $3: request; $4 to $8: days, zone, locale, formats; $9, $10: when the days begin and end;
-- $11: placements; $12: schema of the documents; $13: who asks; $14, $15: how many a day and in 30 days;
-- $16: what stands for the amendments that it would tell, NULL for none; $17: whether it is large.
SELECT verdict, statement, retry_s
  FROM ordermesh.request_statement($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14, $15, $16, $17);

-- name: statement
-- One statement of a user, with its mail. $1: user; $2: id.
SELECT s.*, m.state AS mail
  FROM ordermesh.statements s LEFT JOIN ordermesh.statement_mails m USING (statement_id)
 WHERE s.user_id = $1 AND s.statement_id = $2;

-- name: statements_of
-- A page of a user's statements, the newest first. $1: user; $2, $3: after this one; $4: how many.
SELECT s.*, m.state AS mail
  FROM ordermesh.statements s LEFT JOIN ordermesh.statement_mails m USING (statement_id)
 WHERE s.user_id = $1 AND (s.created_at, s.statement_id) < ($2, $3::uuid)
 ORDER BY s.created_at DESC, s.statement_id DESC
 LIMIT $4;

-- name: cancel
-- End a statement that is not ready; whoever makes it finds its fence gone. $1: user; $2: id.
UPDATE ordermesh.statements
   SET state = 'CANCELLED', fence = fence + 1, holder = '', lease_until = 'epoch', ended_at = clock_timestamp()
 WHERE user_id = $1 AND statement_id = $2 AND state IN ('WAITING', 'PLANNING', 'READING', 'RENDERING', 'STORING');

-- name: claim
-- Take the turn at the oldest statement that nobody makes; no row when there is none.
-- $1: holder; $2: for how long; $3: whether large ones are left to others.
UPDATE ordermesh.statements
   SET state = 'PLANNING', fence = fence + 1, attempts = attempts + 1, holder = $1, lease_until = clock_timestamp() + $2,
       read_months = 0, months = 0, read_orders = 0, archive_bytes = 0, is_clean = false
 WHERE statement_id = (
       SELECT statement_id FROM ordermesh.statements
        WHERE state IN ('WAITING', 'PLANNING', 'READING', 'RENDERING', 'STORING')
          AND lease_until <= clock_timestamp() AND not_before <= clock_timestamp() AND NOT ($3 AND is_large)
        ORDER BY asked_at LIMIT 1 FOR UPDATE SKIP LOCKED)
RETURNING *, NULL AS mail;

-- name: keep
-- Keep the turn. $1: id; $2: fence; $3: for how long. Whether it is still one's own.
UPDATE ordermesh.statements SET lease_until = clock_timestamp() + $3
 WHERE statement_id = $1 AND fence = $2 AND state IN ('PLANNING', 'READING', 'RENDERING', 'STORING')
RETURNING true;

-- name: progress
-- Note where a statement stands. $1: id; $2: fence; $3: state; $4, $5: months read, and in all; $6: orders; $7: bytes; $8: lease.
UPDATE ordermesh.statements
   SET state = $3, read_months = $4, months = $5, read_orders = $6, archive_bytes = $7, lease_until = clock_timestamp() + $8
 WHERE statement_id = $1 AND fence = $2 AND state IN ('PLANNING', 'READING', 'RENDERING', 'STORING')
RETURNING true;

-- name: ready
-- The file is stored: the statement is ready, and a mail is to say so, at once or not at all.
-- $1: id; $2: fence; $3 to $5: key, version and etag; $6: size; $7: SHA-256; $8: orders; $9: totals; $10: note; $11: how long it is
-- kept; $12: how long its mail is tried.
WITH made AS (
    UPDATE ordermesh.statements
       SET state = 'READY', holder = '', lease_until = 'epoch', object_key = $3, object_version = $4, object_etag = $5, size_bytes = $6,
           sha256 = $7, read_orders = $8, totals = $9, pdf_note = $10, ended_at = clock_timestamp(),
           expires_at = clock_timestamp() + $11, is_clean = (fence = 1)
     WHERE statement_id = $1 AND fence = $2 AND state IN ('PLANNING', 'READING', 'RENDERING', 'STORING')
    RETURNING statement_id, ended_at
)
INSERT INTO ordermesh.statement_mails (statement_id, created_at, give_up_at)
SELECT statement_id, ended_at, ended_at + $12 FROM made
RETURNING true;

-- name: put_off
-- Try again later. $1: id; $2: fence; $3: in how long; $4 to $6: code, reason and message of what went wrong.
UPDATE ordermesh.statements
   SET state = 'WAITING', holder = '', lease_until = 'epoch', not_before = clock_timestamp() + $3,
       error_code = $4, error_reason = $5, error_message = $6
 WHERE statement_id = $1 AND fence = $2 AND state IN ('PLANNING', 'READING', 'RENDERING', 'STORING')
RETURNING true;

-- name: give_back
-- Let the next worker begin at once; this turn does not count. $1: id; $2: fence.
UPDATE ordermesh.statements
   SET state = 'WAITING', holder = '', lease_until = 'epoch', attempts = greatest(attempts - 1, 0)
 WHERE statement_id = $1 AND fence = $2 AND state IN ('PLANNING', 'READING', 'RENDERING', 'STORING')
RETURNING true;

-- name: leave
-- Leave a statement that is larger than it seemed to those who make such; this turn does not count. $1: id; $2: fence.
UPDATE ordermesh.statements
   SET state = 'WAITING', is_large = true, holder = '', lease_until = 'epoch', attempts = greatest(attempts - 1, 0)
 WHERE statement_id = $1 AND fence = $2 AND state IN ('PLANNING', 'READING', 'RENDERING', 'STORING')
RETURNING true;

-- name: fail
-- Give a statement up. $1: id; $2: fence; $3 to $5: code, reason and message.
UPDATE ordermesh.statements
   SET state = 'FAILED', holder = '', lease_until = 'epoch', ended_at = clock_timestamp(),
       error_code = $3, error_reason = $4, error_message = $5
 WHERE statement_id = $1 AND fence = $2 AND state IN ('PLANNING', 'READING', 'RENDERING', 'STORING')
RETURNING true;

-- name: expire
-- Let statements go whose time is over; their files are taken away after that. How many. $1: at most so many.
WITH gone AS (
    UPDATE ordermesh.statements SET state = 'EXPIRED', is_clean = false
     WHERE statement_id IN (SELECT statement_id FROM ordermesh.statements
                             WHERE state = 'READY' AND expires_at <= clock_timestamp()
                             ORDER BY expires_at LIMIT $1 FOR UPDATE SKIP LOCKED)
    RETURNING 1
)
SELECT count(*) FROM gone;

-- name: unclean
-- Ended statements of which objects may be left, once nobody who lost their turn can store one any more; not those that wait since
-- some could not go. $1: after how long; $2: at most so many.
SELECT statement_id, fence, CASE WHEN state = 'READY' THEN object_key ELSE '' END AS stays, clean_failures AS failures
  FROM ordermesh.statements
 WHERE NOT is_clean AND clean_from <= clock_timestamp()
   AND (expires_at <= clock_timestamp() OR ended_at <= clock_timestamp() - $1::interval)
 ORDER BY ended_at LIMIT $2;

-- name: not_cleaned
-- Let a statement wait of which an object could not go, so that it keeps no younger one. $1: id; $2: for how long.
UPDATE ordermesh.statements SET clean_from = clock_timestamp() + $2, clean_failures = clean_failures + 1 WHERE statement_id = $1;

-- name: cleaned
-- Note that no object is left but the one that the row names. $1: id; $2: fence; $3: the key of that one, empty for none.
UPDATE ordermesh.statements SET is_clean = true, clean_from = 'epoch', clean_failures = 0
 WHERE statement_id = $1 AND fence = $2 AND ended_at IS NOT NULL AND CASE WHEN state = 'READY' THEN object_key ELSE '' END = $3;

-- name: counts
-- How many statements are where.
SELECT state, count(*) AS statements FROM ordermesh.statements
 WHERE state IN ('WAITING', 'PLANNING', 'READING', 'RENDERING', 'STORING') GROUP BY 1;

-- name: made_until
-- Since when the oldest statement waits that is not over, or is being made; now, when there is none.
SELECT coalesce(min(asked_at), clock_timestamp()) FROM ordermesh.statements
 WHERE state IN ('WAITING', 'PLANNING', 'READING', 'RENDERING', 'STORING');
