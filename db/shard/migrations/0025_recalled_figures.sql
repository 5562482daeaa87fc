-- A user who is erased leaves no figure in a statement that had gone before.

SET search_path = ordermesh, public;

-- Recalls every statement of a user that may show what an erasure took out of the archive of any shard by p_until, NULL for all of it:
-- one that is ready goes with what it says and its mail if that was not sent, one that is being made is made from the beginning. Who
-- asks after that is answered by what is left. Returns how many went or begin again; idempotent, NULL when it was done before.
CREATE OR REPLACE FUNCTION ordermesh.recall_statements(p_erasure_id uuid, p_user_id text, p_shard text, p_until timestamptz) RETURNS bigint
    LANGUAGE plpgsql AS $$
DECLARE
    begun_again bigint;
    gone bigint;
BEGIN
    -- As requests of the user do: one that waits for this reads what is left, and one that this waited for is seen below.
    PERFORM pg_advisory_xact_lock(hashtextextended('statements of ' || p_user_id, 0));
    INSERT INTO ordermesh.statement_recalls AS r (erasure_id, user_id, shard, until, recalled_at)
    VALUES (p_erasure_id, p_user_id, p_shard, COALESCE(p_until, 'infinity'), clock_timestamp())
    ON CONFLICT (erasure_id) DO UPDATE SET until = excluded.until, recalled_at = excluded.recalled_at WHERE r.until < excluded.until;
    IF NOT FOUND THEN RETURN NULL; END IF;
    -- First those that are being made: whoever makes one has lost the turn, so that none gets ready any more.
    UPDATE ordermesh.statements
       SET state = 'WAITING', holder = '', lease_until = 'epoch', fence = fence + 1, attempts = greatest(attempts - 1, 0)
     WHERE user_id = p_user_id AND state IN ('PLANNING', 'READING', 'RENDERING', 'STORING');
    GET DIAGNOSTICS begun_again = ROW_COUNT;
    UPDATE ordermesh.statement_mails
       SET state = 'DEAD', fence = fence + 1, note = 'its statement is gone', ended_at = clock_timestamp()
     WHERE state = 'WAITING' AND statement_id IN (SELECT statement_id FROM ordermesh.statements WHERE user_id = p_user_id);
    UPDATE ordermesh.statements
       SET state = 'EXPIRED', is_clean = false, expires_at = clock_timestamp(), totals = '[]', read_orders = 0, pdf_note = ''
     WHERE user_id = p_user_id AND state = 'READY';
    GET DIAGNOSTICS gone = ROW_COUNT;
    -- What those still tell that went before, or that never came to be.
    UPDATE ordermesh.statements SET totals = '[]', read_orders = 0, pdf_note = ''
     WHERE user_id = p_user_id AND state IN ('EXPIRED', 'FAILED', 'CANCELLED')
       AND (totals <> '[]' OR read_orders <> 0 OR pdf_note <> '');
    RETURN begun_again + gone;
END $$;

-- Those of who was erased before.
UPDATE statements s SET totals = '[]', read_orders = 0, pdf_note = ''
  FROM statement_recalls r
 WHERE s.user_id = r.user_id AND s.as_of <= r.recalled_at AND s.state IN ('EXPIRED', 'FAILED', 'CANCELLED')
   AND (s.totals <> '[]' OR s.read_orders <> 0 OR s.pdf_note <> '');

INSERT INTO schema_migrations (name) VALUES ('0025_recalled_figures');
