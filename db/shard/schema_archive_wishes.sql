-- Who asked for which month to be where. After schema_archive.sql.

SET search_path = ordermesh, public;

CREATE TABLE archive_wishes (
    request_id uuid        PRIMARY KEY,
    month      date        NOT NULL CHECK (extract(day FROM month) = 1),
    reach      text        NOT NULL CHECK (reach IN ('VERIFIED', 'COMMITTED', 'GRACE', 'DROPPED', 'THAWED', 'RESTORED')),
    actor      text        NOT NULL CHECK (char_length(actor) BETWEEN 1 AND 64),
    reason     text        NOT NULL CHECK (char_length(reason) BETWEEN 1 AND 512),
    asked_at   timestamptz NOT NULL
);
COMMENT ON TABLE archive_wishes IS 'Which wish for a month each request was, for ever: who repeats one begins nothing more.';

-- Asks for a month to be somewhere. p_seen: where whoever asks saw it, NULL for nowhere, by which he knows that it can get there;
-- p_stays: it is there, and only the wish is noted. One that is in its tables begins anew, as a copy of its own.
-- Returns DONE; KNOWN or REUSED when the request was made before, for the same wish or another; MOVED when it stands elsewhere by now.
CREATE FUNCTION ordermesh.want_month(p_request uuid, p_month date, p_archive_id uuid, p_reach text, p_seen text, p_stays boolean,
                                     p_actor text, p_reason text) RETURNS text
    LANGUAGE plpgsql AS $$
DECLARE
    known ordermesh.archive_wishes;
    there text;
BEGIN
    -- One after the other: the same request may be under way twice, and a month that nobody asked for has no row to lock.
    PERFORM pg_advisory_xact_lock(75, 0);
    SELECT * INTO known FROM ordermesh.archive_wishes WHERE request_id = p_request;
    IF FOUND THEN
        RETURN CASE WHEN (known.month, known.reach) = (p_month, p_reach) THEN 'KNOWN' ELSE 'REUSED' END;
    END IF;
    SELECT state INTO there FROM ordermesh.archive_months WHERE month = p_month FOR UPDATE;
    IF there IS DISTINCT FROM p_seen THEN RETURN 'MOVED'; END IF;
    IF there IS NULL AND NOT p_stays THEN
        INSERT INTO ordermesh.archive_months (month, archive_id, state, reach, begins_at, ends_at, actor, reason, created_at, updated_at)
        VALUES (p_month, p_archive_id, 'WANTED', p_reach, p_month::timestamp AT TIME ZONE 'UTC',
                (p_month + interval '1 month')::timestamp AT TIME ZONE 'UTC', p_actor, p_reason, clock_timestamp(), clock_timestamp())
        ON CONFLICT (month) DO NOTHING;
        IF NOT FOUND THEN RETURN 'MOVED'; END IF;
    ELSIF NOT p_stays THEN
        IF there IN ('THAWED', 'RESTORED') THEN
            -- What an erasure took the place of, and has not deleted yet, is of the copy that begins now.
            UPDATE ordermesh.archive_replaced r SET archive_id = p_archive_id
              FROM ordermesh.archive_months m WHERE m.month = p_month AND r.archive_id = m.archive_id;
        END IF;
        UPDATE ordermesh.archive_months
           SET reach = p_reach, actor = p_actor, reason = p_reason, updated_at = clock_timestamp(),
               quarantined = '', failures = 0, damages = 0, not_before = 'epoch',
               archive_id = CASE WHEN state IN ('THAWED', 'RESTORED') THEN p_archive_id ELSE archive_id END,
               state = CASE WHEN state IN ('THAWED', 'RESTORED') THEN 'WANTED' ELSE state END
         WHERE month = p_month;
    END IF;
    IF p_request IS NOT NULL THEN
        INSERT INTO ordermesh.archive_wishes (request_id, month, reach, actor, reason, asked_at)
        VALUES (p_request, p_month, p_reach, p_actor, p_reason, clock_timestamp());
    END IF;
    RETURN 'DONE';
END $$;
