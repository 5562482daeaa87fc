-- Legal holds on one shard.

-- name: put
-- Keep a user or a month; the hold, also of an earlier call. $1: id; $2: user; $3: month, one of them NULL; $4: actor; $5: reason.
WITH made AS (
    INSERT INTO ordermesh.archive_legal_holds (hold_id, user_id, month, actor, reason, created_at)
    VALUES ($1, $2, $3, $4, $5, clock_timestamp()) ON CONFLICT DO NOTHING RETURNING *)
SELECT * FROM made UNION ALL
SELECT * FROM ordermesh.archive_legal_holds WHERE lifted_at IS NULL AND (user_id = $2 OR month = $3) LIMIT 1;

-- name: lift
-- Let a user or a month go again. $1: user; $2: month, one of them NULL; $3: actor; $4: reason. No row when nothing kept it.
UPDATE ordermesh.archive_legal_holds SET lifted_at = clock_timestamp(), lifted_by = $3, lift_reason = $4
 WHERE lifted_at IS NULL AND (user_id = $1 OR month = $2) RETURNING *;

-- name: listed
-- All, those that still keep something first. $1: at most so many.
SELECT * FROM ordermesh.archive_legal_holds ORDER BY lifted_at IS NOT NULL, created_at DESC, hold_id LIMIT $1;
