-- The same wish means the same statement beyond a full hour, and a large statement keeps no small one waiting.

SET search_path = ordermesh, public;

ALTER TABLE statements ADD COLUMN is_large boolean NOT NULL DEFAULT false;
COMMENT ON COLUMN statements.is_large IS 'Whether it takes so long that some worker is to be left to those that do not.';
COMMENT ON COLUMN statements.content_key IS 'Of everything that decides what is written, amendments too, but for the moment.';

-- Two of a content may be ready, of different hours; that one hour has one is seen to under the lock of the user.
CREATE INDEX statements_of_content ON statements (user_id, content_key) WHERE state NOT IN ('CANCELLED', 'EXPIRED');
DROP INDEX one_statement_of_a_content;

-- Who does not know p_is_large asks without it, as before.
DROP FUNCTION ordermesh.request_statement(uuid, text, uuid, date, date, text, text, text[], timestamptz, timestamptz, jsonb, int, text, int, int,
                                          text);

-- Begins a statement, or finds the one that is meant; all requests of one user one after the other.
-- p_amended: what stands for the amendments that it would tell, NULL for none: after another one the same wish means another statement.
-- p_is_large: whether a worker that keeps to small ones leaves it. The same wish means one that is being made, one that is ready and was
-- asked for within the hour, or one that failed within the week: that is begun again, by another request as of now once the hour is over.
-- Verdicts: NEW, AGAIN (it had failed), SAME, after which the request means this statement for ever; REUSED, FUTURE, RUNNING, LIMIT, which
-- change nothing. retry_s: when to come back.
CREATE FUNCTION ordermesh.request_statement(
    p_statement_id uuid, p_user_id text, p_request_id uuid, p_first date, p_last date, p_time_zone text, p_locale text,
    p_formats text[], p_since timestamptz, p_until timestamptz, p_placements jsonb, p_schema int, p_actor text,
    p_day_max int, p_month_max int, p_amended text DEFAULT NULL, p_is_large boolean DEFAULT false,
    OUT verdict text, OUT statement uuid, OUT retry_s double precision)
    LANGUAGE plpgsql SET timezone = 'UTC' AS $$
DECLARE
    at timestamptz;
    content bytea;
    found_one ordermesh.statements;
    is_known boolean;
    stays boolean;
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
                                               p_amended), 'UTF8'));
        SELECT s.* INTO found_one FROM ordermesh.statements s
         WHERE s.user_id = p_user_id AND s.content_key = content
           AND CASE s.state WHEN 'READY' THEN s.as_of > at - interval '1 hour'
                            WHEN 'FAILED' THEN s.asked_at > at - interval '7 days'
                            ELSE s.state NOT IN ('CANCELLED', 'EXPIRED') END
         ORDER BY s.state = 'FAILED', s.asked_at DESC LIMIT 1;
    END IF;
    statement := found_one.statement_id;
    IF statement IS NOT NULL AND found_one.state <> 'FAILED' THEN
        IF NOT is_known THEN
            IF (SELECT count(*) FROM ordermesh.statement_requests r WHERE r.statement_id = statement) >= 100 THEN
                verdict := 'LIMIT';
                retry_s := greatest(extract(epoch FROM found_one.as_of + interval '1 hour' - at), 5);
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
        stays := is_known OR found_one.as_of > at - interval '1 hour';
        UPDATE ordermesh.statements s
           SET state = 'WAITING', placements = p_placements, asks = s.asks + 1, asked_at = at, ended_at = NULL, attempts = 0,
               not_before = 'epoch', read_months = 0, months = 0, read_orders = 0, archive_bytes = 0,
               error_code = 0, error_reason = '', error_message = '', actor = p_actor, is_large = p_is_large,
               as_of = CASE WHEN stays THEN s.as_of ELSE at END,
               until = CASE WHEN stays THEN s.until ELSE least(p_until, at) END
         WHERE s.statement_id = statement;
        IF NOT is_known THEN
            INSERT INTO ordermesh.statement_requests (user_id, request_id, statement_id) VALUES (p_user_id, p_request_id, statement);
        END IF;
        RETURN;
    END IF;
    verdict := 'NEW';
    statement := p_statement_id;
    INSERT INTO ordermesh.statements (statement_id, user_id, request_id, content_key, first_day, last_day, time_zone, locale, formats,
                                      since, until, as_of, placements, actor, asked_at, created_at, is_large)
    VALUES (p_statement_id, p_user_id, p_request_id, content, p_first, p_last, p_time_zone, p_locale, p_formats,
            p_since, least(p_until, at), at, p_placements, p_actor, at, at, p_is_large);
END $$;

INSERT INTO schema_migrations (name) VALUES ('0026_wishes_and_sizes');
