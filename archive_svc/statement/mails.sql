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
          s.last_day, m.created_at AS ready_at, s.expires_at AS kept_until,
          s.state = 'READY' AND s.expires_at > clock_timestamp() AS is_of_use;

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
-- How many mails wait, how many are dead of which the statement is still there, and for how long the oldest one waits, in seconds.
SELECT w.waiting, d.dead, w.oldest_s
  FROM (SELECT count(*) AS waiting, COALESCE(extract(epoch FROM clock_timestamp() - min(created_at)), 0)::float8 AS oldest_s
          FROM ordermesh.statement_mails WHERE state = 'WAITING') w,
       (SELECT count(*) AS dead FROM ordermesh.statement_mails m JOIN ordermesh.statements s USING (statement_id)
         WHERE m.state = 'DEAD' AND s.state = 'READY' AND s.expires_at > clock_timestamp()) d;

-- name: dead_letters
-- A page of the mails that were given up, the youngest first. $1, $2: after this one; $3: how many.
SELECT * FROM ordermesh.statement_mails_told
 WHERE state = 'DEAD' AND (ended_at, statement_id) < ($1, $2::uuid)
 ORDER BY ended_at DESC, statement_id DESC
 LIMIT $3;

-- name: mail
-- One mail, whatever became of it. $1: statement.
SELECT * FROM ordermesh.statement_mails_told WHERE statement_id = $1;

-- name: retry
-- Let a mail that was given up be sent again. $1: id of the retry; $2: statement; $3: who; $4: why; $5: for how long it is tried.
SELECT ordermesh.retry_statement_mail($1, $2, $3, $4, $5);
