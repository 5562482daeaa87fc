-- The statements of a simulated upstream's ledger (SQLite). Each change runs inside one transaction of the writer thread.

-- name: add_execution
-- The row that makes an execution or a refusal true. The reference counts the executions of a key.
INSERT INTO executions (key, order_id, leg, attempt, user_id, amount_minor, currency_code, verdict, upstream_ref, at)
SELECT :key, :order_id, :leg, :attempt, :user_id, :amount_minor, :currency_code, :verdict,
       :ref_prefix || '-' || (1 + (SELECT count(*) FROM executions WHERE key = :key)), :at
RETURNING *;

-- name: keep_execution
-- A row of the past, once per reference.
INSERT OR IGNORE INTO executions (key, order_id, leg, attempt, user_id, amount_minor, currency_code, verdict, upstream_ref, at)
VALUES (:key, :order_id, :leg, :attempt, :user_id, :amount_minor, :currency_code, :verdict, :upstream_ref, :at);

-- name: keep_pending
-- Something that is to be executed, once per key, unless it was.
INSERT INTO pending (key, order_id, leg, attempt, user_id, amount_minor, currency_code, due_at, hidden)
SELECT :key, :order_id, :leg, :attempt, :user_id, :amount_minor, :currency_code, :due_at, 0
 WHERE NOT EXISTS (SELECT 1 FROM pending WHERE key = :key) AND NOT EXISTS (SELECT 1 FROM executions WHERE key = :key);

-- name: forget_executions
-- Everything that was executed for a user.
DELETE FROM executions WHERE user_id = :user_id;

-- name: forget_pending
-- Everything that was put off for a user.
DELETE FROM pending WHERE user_id = :user_id;

-- name: outcome
-- A key's first success, else its last refusal. No row: nothing happened yet.
SELECT * FROM executions
 WHERE key = :key
 ORDER BY verdict = 'SUCCEEDED' DESC, CASE verdict WHEN 'SUCCEEDED' THEN seq ELSE -seq END
 LIMIT 1;

-- name: put_off
-- Write down an execution that will happen later.
INSERT INTO pending (key, order_id, leg, attempt, user_id, amount_minor, currency_code, due_at, hidden)
VALUES (:key, :order_id, :leg, :attempt, :user_id, :amount_minor, :currency_code, :due_at, :hidden);

-- name: waiting
-- What a key waits for. No row: nothing was put off.
SELECT * FROM pending WHERE key = :key ORDER BY seq LIMIT 1;

-- name: take_due
-- Hands out what is due, of one key or of all, and forgets it.
DELETE FROM pending
 WHERE seq IN (SELECT seq FROM pending WHERE due_at <= :at AND :key IN ('', key) ORDER BY due_at LIMIT :batch)
RETURNING *;

-- name: count_pending
-- How many executions are still to happen; an empty key or order means all.
SELECT count(*) FROM pending WHERE :key IN ('', key) AND :order_id IN ('', order_id);

-- name: user_of
-- Whose key it is. No row: the key was never executed.
SELECT user_id FROM executions WHERE key = :key
UNION ALL
SELECT user_id FROM pending WHERE key = :key
 LIMIT 1;

-- name: add_reversal
-- Write down that an execution was reversed.
INSERT INTO reversals (key, original_key, order_id, upstream_ref, at)
VALUES (:key, :original_key, :order_id, :upstream_ref, :at);

-- name: reversal
-- A reversal with what it took back. No row: nothing was taken back with this key.
SELECT r.upstream_ref, e.amount_minor, e.currency_code
  FROM reversals r JOIN executions e ON e.key = r.original_key AND e.verdict = 'SUCCEEDED'
 WHERE r.key = :key
 ORDER BY e.seq
 LIMIT 1;

-- name: list_executions
-- Executions in the order in which they happened; an empty key or order means all.
SELECT * FROM executions WHERE :key IN ('', key) AND :order_id IN ('', order_id) ORDER BY seq;

-- name: list_reversals
-- Reversals in the order in which they happened; an empty key or order means all.
SELECT * FROM reversals
 WHERE (:key = '' OR :key IN (key, original_key)) AND :order_id IN ('', order_id)
 ORDER BY rowid;

-- name: add_fault
-- Write down a fault that was asked for.
INSERT INTO faults (kind, order_id, user_id_prefix, key, method, probability, seed, duration_s, max_strikes, strike_count)
VALUES (:kind, :order_id, :user_id_prefix, :key, :method, :probability, :seed, :duration_s, :max_strikes, 0);

-- name: count_strike
-- Note that a fault struck once more.
UPDATE faults SET strike_count = strike_count + 1 WHERE fault_id = :fault_id;

-- name: clear_faults
-- Forget one fault, or all when none is named.
DELETE FROM faults WHERE :fault_id IS NULL OR fault_id = :fault_id;

-- name: list_faults
-- Faults in the order in which they were asked for.
SELECT * FROM faults ORDER BY fault_id;
