-- Mails that were given up: seen quickly, and sent again because a person says so.

SET search_path = ordermesh, public;

CREATE TABLE statement_mail_retries (
    retry_id     uuid        PRIMARY KEY,
    statement_id uuid        NOT NULL REFERENCES statement_mails (statement_id),
    actor        text        NOT NULL CHECK (char_length(actor) BETWEEN 1 AND 128),
    reason       text        NOT NULL CHECK (char_length(reason) BETWEEN 1 AND 512),
    attempts     int         NOT NULL,
    note         text        NOT NULL CHECK (char_length(note) <= 512),
    at           timestamptz NOT NULL
);
COMMENT ON TABLE statement_mail_retries IS 'Dead letters of mails that somebody had sent again: who, why, and what had become of them until then.';
CREATE INDEX statement_mail_retries_of_mail ON statement_mail_retries (statement_id, at);
CREATE INDEX statement_mails_dead ON statement_mails (ended_at DESC, statement_id DESC) WHERE state = 'DEAD';

-- What is told of a mail: attempts in all; until when its statement can be downloaded, if it can; the last of its retries.
CREATE VIEW statement_mails_told AS
SELECT m.statement_id, s.user_id, m.state, m.attempts + r.attempts AS attempts, m.note, m.created_at AS ready_at, m.ended_at,
       CASE WHEN s.state = 'READY' THEN s.expires_at END AS kept_until, r.retries, r.actor, r.reason
  FROM ordermesh.statement_mails m JOIN ordermesh.statements s USING (statement_id)
  CROSS JOIN LATERAL (
      SELECT count(*)::int AS retries, COALESCE(sum(attempts), 0)::int AS attempts,
             COALESCE((array_agg(actor ORDER BY at DESC))[1], '') AS actor,
             COALESCE((array_agg(reason ORDER BY at DESC))[1], '') AS reason
        FROM ordermesh.statement_mail_retries WHERE statement_id = m.statement_id) AS r;

-- Lets a mail that was given up be sent again, from its first try on. Verdicts: AGAIN, or SAME of a retry that is noted; NOT_FOUND,
-- REUSED, NOT_DEAD, GONE (the statement cannot be downloaded any more), which change nothing.
CREATE FUNCTION ordermesh.retry_statement_mail(
    p_retry_id uuid, p_statement_id uuid, p_actor text, p_reason text, p_tried_for interval, OUT verdict text)
    LANGUAGE plpgsql SET timezone = 'UTC' AS $$
DECLARE
    at timestamptz;
    mail ordermesh.statement_mails;
    kept_until timestamptz;
BEGIN
    SELECT m.* INTO mail FROM ordermesh.statement_mails m WHERE m.statement_id = p_statement_id FOR UPDATE;
    IF NOT FOUND THEN verdict := 'NOT_FOUND'; RETURN; END IF;
    SELECT CASE WHEN r.statement_id = p_statement_id THEN 'SAME' ELSE 'REUSED' END INTO verdict
      FROM ordermesh.statement_mail_retries r WHERE r.retry_id = p_retry_id;
    IF FOUND THEN RETURN; END IF;
    IF mail.state <> 'DEAD' THEN verdict := 'NOT_DEAD'; RETURN; END IF;
    at := clock_timestamp();
    SELECT s.expires_at INTO kept_until FROM ordermesh.statements s
     WHERE s.statement_id = p_statement_id AND s.state = 'READY' AND s.expires_at > at FOR SHARE;
    IF NOT FOUND THEN verdict := 'GONE'; RETURN; END IF;
    INSERT INTO ordermesh.statement_mail_retries (retry_id, statement_id, actor, reason, attempts, note, at)
    VALUES (p_retry_id, p_statement_id, p_actor, p_reason, mail.attempts, mail.note, at);
    UPDATE ordermesh.statement_mails m
       SET state = 'WAITING', attempts = 0, fence = m.fence + 1, lease_until = 'epoch', not_before = 'epoch',
           ended_at = NULL, give_up_at = least(at + p_tried_for, kept_until)
     WHERE m.statement_id = p_statement_id;
    verdict := 'AGAIN';
END $$;

INSERT INTO schema_migrations (name) VALUES ('0013_statement_mail_retries');
