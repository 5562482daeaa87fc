-- Moves of users to dedicated buckets and back. Whoever changes a move says the token of its lease and the phase it comes from.

-- name: find_move
-- One move, as it stands.
SELECT * FROM vip_moves WHERE move_id = $1;

-- name: move_situation
-- What there is to know about a user who is to be moved, all of one version of the map. Always one row.
SELECT h.version,
       (SELECT buckets FROM vip_users WHERE user_id = $1) AS vip_buckets,
       (SELECT coalesce(array_agg(bucket ORDER BY since DESC), '{}')
          FROM (SELECT bucket, since FROM user_bucket WHERE user_id = $1
                UNION ALL SELECT new_bucket, created_at FROM vip_moves WHERE user_id = $1 AND phase = 'ABORTED') AS had
         WHERE bucket >= 4096) AS dedicated,
       (SELECT coalesce(json_object_agg(shard, vip), '{}') FROM shards WHERE state = 'ACTIVE') AS shards,
       (SELECT coalesce(json_agg(json_build_array(bucket, shard)), '[]') FROM buckets WHERE bucket >= 4096) AS owners,
       (SELECT coalesce(array_agg(b), '{}') FROM vip_moves m, unnest(ARRAY[m.old_bucket, m.new_bucket]) AS b
         WHERE m.phase NOT IN ('DONE', 'ABORTED')) AS busy_buckets,
       (SELECT coalesce(array_agg(m.user_id), '{}') FROM vip_moves m WHERE m.phase NOT IN ('DONE', 'ABORTED')) AS busy_users
  FROM map_head h;

-- name: owner_of
-- The shard that owns a bucket.
SELECT shard FROM buckets WHERE bucket = $1;

-- name: plan_move
-- Record a move that was decided on one version of the map. No row: the map is another one by now.
SELECT * FROM ordermesh.plan_vip_move($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11);

-- name: claim_move
-- Take over the oldest move whose lease ran out, other than some. No row: there is none.
UPDATE vip_moves
   SET holder = $1, token = greatest(token + 1, ordermesh.move_token()), lease_until = clock_timestamp() + $2::interval
 WHERE move_id = (
        SELECT move_id FROM vip_moves
         WHERE phase NOT IN ('DONE', 'ABORTED') AND lease_until < clock_timestamp() AND move_id <> ALL ($3::uuid[])
         ORDER BY created_at LIMIT 1 FOR UPDATE SKIP LOCKED)
RETURNING *;

-- name: advance_move
-- Bring a move from one phase to another and renew its lease; another attempt is another mover to the fences. No row: somebody else has the lease, or the move is elsewhere.
UPDATE vip_moves
   SET phase = $4, attempt = $5, token = CASE WHEN $5 > attempt THEN greatest(token + 1, ordermesh.move_token()) ELSE token END, failure = $6, keys_copied = keys_copied + $7, frozen_ms = coalesce($8, frozen_ms),
       lease_until = clock_timestamp() + $9::interval, updated_at = clock_timestamp()
 WHERE move_id = $1 AND token = $2 AND phase = $3
RETURNING *;

-- name: flip_move
-- Change the map: the point of no return. False: this move was not ready for it, or somebody else drives it.
SELECT ordermesh.flip_vip_move($1, $2);

-- name: list_moves
-- Moves, the newest first, of one user or of all, below a position.
SELECT * FROM vip_moves
 WHERE ($1 = '' OR user_id = $1) AND (created_at, move_id) < ($2, $3::uuid)
 ORDER BY created_at DESC, move_id DESC LIMIT $4;
