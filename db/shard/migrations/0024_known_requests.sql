-- Requests are known when they are repeated, and what cannot be done keeps nothing else waiting.

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

-- Those that nothing took on: to come back before it had left means to stay, and what comes back has nowhere else to go.
UPDATE archive_months SET reach = 'THAWED' WHERE reach = 'RESTORED' AND state IN ('WANTED', 'FROZEN', 'PLANNED', 'EXPORTED', 'VERIFIED');
UPDATE archive_months SET reach = 'RESTORED' WHERE reach <> 'RESTORED' AND state = 'RESTORING';

ALTER TABLE statements ADD COLUMN clean_from timestamptz NOT NULL DEFAULT 'epoch', ADD COLUMN clean_failures int NOT NULL DEFAULT 0;
COMMENT ON COLUMN statements.clean_from IS 'When its objects are looked for again after some could not go; clean_failures: how often they could not, in a row.';

CREATE TABLE statement_requests (
    user_id      text NOT NULL CHECK (char_length(user_id) BETWEEN 1 AND 64),
    request_id   uuid NOT NULL,
    statement_id uuid NOT NULL REFERENCES statements (statement_id),
    PRIMARY KEY (user_id, request_id)
);
COMMENT ON TABLE statement_requests IS
    'Which statement a request means that found one already there; the request that made it is in its row. For ever, as the statements.';
CREATE INDEX statement_requests_of_statement ON statement_requests (statement_id);

-- Begins a statement, or finds the one that is meant; all requests of one user one after the other.
-- p_amended: what stands for the amendments that it would tell, NULL for none: after another one the same wish means another statement.
-- Verdicts: NEW, AGAIN (it had failed), SAME, after which the request means this statement for ever; REUSED, FUTURE, RUNNING, LIMIT, which
-- change nothing. retry_s: when to come back.
CREATE OR REPLACE FUNCTION ordermesh.request_statement(
    p_statement_id uuid, p_user_id text, p_request_id uuid, p_first date, p_last date, p_time_zone text, p_locale text,
    p_formats text[], p_since timestamptz, p_until timestamptz, p_placements jsonb, p_schema int, p_actor text,
    p_day_max int, p_month_max int, p_amended text DEFAULT NULL,
    OUT verdict text, OUT statement uuid, OUT retry_s double precision)
    LANGUAGE plpgsql SET timezone = 'UTC' AS $$
DECLARE
    at timestamptz;
    content bytea;
    found_one ordermesh.statements;
    is_known boolean;
BEGIN
    PERFORM pg_advisory_xact_lock(hashtextextended('statements of ' || p_user_id, 0));
    at := clock_timestamp();
    SELECT s.* INTO found_one FROM ordermesh.statements s
     WHERE s.statement_id = (SELECT o.statement_id FROM ordermesh.statements o
                              WHERE o.user_id = p_user_id AND o.request_id = p_request_id
                              UNION ALL
                             SELECT r.statement_id FROM ordermesh.statement_requests r
                              WHERE r.user_id = p_user_id AND r.request_id = p_request_id);
    is_known := FOUND;
    IF is_known AND (found_one.first_day, found_one.last_day, found_one.time_zone, found_one.locale, found_one.formats)
                 IS DISTINCT FROM (p_first, p_last, p_time_zone, p_locale, p_formats) THEN
        verdict := 'REUSED';
        RETURN;
    END IF;
    IF NOT is_known THEN
        IF p_since >= at THEN
            verdict := 'FUTURE';
            RETURN;
        END IF;
        content := sha256(convert_to(concat_ws(E'\x1f', p_user_id, p_first, p_last, p_time_zone, p_locale, p_formats::text, p_schema,
                                               date_trunc('hour', at), p_amended), 'UTF8'));
        SELECT s.* INTO found_one FROM ordermesh.statements s
         WHERE s.user_id = p_user_id AND s.content_key = content AND s.state NOT IN ('CANCELLED', 'EXPIRED')
         ORDER BY s.state = 'FAILED' LIMIT 1;
    END IF;
    statement := found_one.statement_id;
    IF statement IS NOT NULL AND found_one.state <> 'FAILED' THEN
        IF NOT is_known THEN
            IF (SELECT count(*) FROM ordermesh.statement_requests r WHERE r.statement_id = statement) >= 100 THEN
                verdict := 'LIMIT';
                retry_s := extract(epoch FROM date_trunc('hour', at) + interval '1 hour' - at);
                RETURN;
            END IF;
            INSERT INTO ordermesh.statement_requests (user_id, request_id, statement_id) VALUES (p_user_id, p_request_id, statement);
        END IF;
        verdict := 'SAME';
        RETURN;
    END IF;
    IF EXISTS (SELECT FROM ordermesh.statements s
                WHERE s.user_id = p_user_id AND s.state IN ('WAITING', 'PLANNING', 'READING', 'RENDERING', 'STORING')) THEN
        verdict := 'RUNNING';
        retry_s := 5;
        RETURN;
    END IF;
    retry_s := ordermesh.statements_allowed_in(p_user_id, at, p_day_max, p_month_max);
    IF retry_s > 0 THEN
        verdict := 'LIMIT';
        RETURN;
    END IF;
    IF statement IS NOT NULL THEN
        verdict := 'AGAIN';
        UPDATE ordermesh.statements s
           SET state = 'WAITING', placements = p_placements, asks = s.asks + 1, asked_at = at, ended_at = NULL, attempts = 0,
               not_before = 'epoch', read_months = 0, months = 0, read_orders = 0, archive_bytes = 0,
               error_code = 0, error_reason = '', error_message = '', actor = p_actor
         WHERE s.statement_id = statement;
        IF NOT is_known THEN
            INSERT INTO ordermesh.statement_requests (user_id, request_id, statement_id) VALUES (p_user_id, p_request_id, statement);
        END IF;
        RETURN;
    END IF;
    verdict := 'NEW';
    statement := p_statement_id;
    INSERT INTO ordermesh.statements (statement_id, user_id, request_id, content_key, first_day, last_day, time_zone, locale, formats,
                                      since, until, as_of, placements, actor, asked_at, created_at)
    VALUES (p_statement_id, p_user_id, p_request_id, content, p_first, p_last, p_time_zone, p_locale, p_formats,
            p_since, least(p_until, at), at, p_placements, p_actor, at, at);
END $$;

INSERT INTO schema_migrations (name) VALUES ('0024_known_requests');
