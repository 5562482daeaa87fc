-- Mails about statements that are ready. Whoever sends one names the fence of its try.

-- name: claim
-- Take the mail that is due for longest, for one try; no row when there is none. $1: how long a try may take.
UPDATE ordermesh.statement_mails m
   SET attempts = m.attempts + 1, fence = m.fence + 1, lease_until = clock_timestamp() + $1
  FROM ordermesh.statements s
 WHERE s.statement_id = m.statement_id AND m.statement_id = (
       SELECT statement_id FROM ordermesh.statement_mails
        WHERE state = 'WAITING' AND not_before <= clock_timestamp() AND lease_until <= clock_timestamp()
        ORDER BY not_before LIMIT 1 FOR UPDATE SKIP LOCKED)
RETURNING m.statement_id, m.fence, m.attempts, m.give_up_at <= clock_timestamp() AS is_last, s.user_id, s.locale, s.first_day,
          s.last_day, m.created_at AS ready_at, s.expires_at AS kept_until;

-- name: sent
-- A mail server took it. $1: statement; $2: fence. Whether that was still to be said.
UPDATE ordermesh.statement_mails SET state = 'SENT', note = '', ended_at = clock_timestamp()
 WHERE statement_id = $1 AND fence = $2 AND state = 'WAITING'
RETURNING true;

-- name: dead
-- It will not be sent: a dead letter. $1: statement; $2: fence; $3: why.
UPDATE ordermesh.statement_mails SET state = 'DEAD', note = $3, ended_at = clock_timestamp()
 WHERE statement_id = $1 AND fence = $2 AND state = 'WAITING'
RETURNING true;

-- name: put_off
-- Try again later. $1: statement; $2: fence; $3: in how long; $4: why.
UPDATE ordermesh.statement_mails SET not_before = clock_timestamp() + $3, lease_until = 'epoch', note = $4
 WHERE statement_id = $1 AND fence = $2 AND state = 'WAITING'
RETURNING true;

-- name: standing
-- How many mails wait, how many are dead, and for how long the oldest one waits, in seconds.
SELECT count(*) FILTER (WHERE state = 'WAITING') AS waiting, count(*) FILTER (WHERE state = 'DEAD') AS dead,
       COALESCE(extract(epoch FROM clock_timestamp() - min(created_at) FILTER (WHERE state = 'WAITING')), 0)::float8 AS oldest_s
  FROM ordermesh.statement_mails WHERE state <> 'SENT';
