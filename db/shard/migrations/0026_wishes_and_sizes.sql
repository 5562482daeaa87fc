-- The same wish means the same statement beyond a full hour, limits count each begin when it was, and a large statement keeps no small
-- one waiting.

SET search_path = ordermesh, public;
-- Everybody who makes a statement waits for who waits for the table: rather come again. It is taken for a moment, as nothing is built.
SET LOCAL lock_timeout = '2s';

-- How often a statement was begun before is counted from now on: of those that are there, the last time.
ALTER TABLE statements ADD COLUMN is_large boolean NOT NULL DEFAULT false, ADD COLUMN begun_before timestamptz[] NOT NULL DEFAULT '{}';
COMMENT ON COLUMN statements.is_large IS 'Whether it takes so long that some worker is to be left to those that do not.';
COMMENT ON COLUMN statements.content_key IS 'Of everything that decides what is written, amendments too, but for the moment.';
COMMENT ON COLUMN statements.asks IS 'How often it was begun for its user: once, and again after failures.';
COMMENT ON COLUMN statements.begun_before IS 'When it was begun before asked_at, of the last 30 days; limits count both, each when it was.';

-- Two of a content may be ready, of different hours; that one hour has one is seen to under the lock of the user, whose few statements
-- statements_of_user finds.
DROP INDEX one_statement_of_a_content;

-- Who does not know p_is_large asks without it, as before.
DROP FUNCTION ordermesh.request_statement(uuid, text, uuid, date, date, text, text, text[], timestamptz, timestamptz, jsonb, int, text, int, int,
                                          text);

-- Begins a statement, or finds the one that is meant; all requests of one user one after the other.
-- p_amended: what stands for the amendments that it would tell, NULL for none: after another one the same wish means another statement.
-- p_is_large: whether a worker that keeps to small ones leaves it. The same wish means one that is being made, or that was first asked
-- for within the hour: ready, or failed, which is begun again. A repeated request begins one that failed again whenever it comes. Either
-- way it stays as of the moment that it was first asked for, which is as_of and created_at alike.
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
    content := sha256(convert_to(concat_ws(E'\x1f', p_user_id, p_first, p_last, p_time_zone, p_locale, p_formats::text, p_schema,
                                           p_amended), 'UTF8'));
    IF NOT is_known THEN
        IF p_since >= at THEN
            verdict := 'FUTURE';
            RETURN;
        END IF;
        SELECT s.* INTO found_one FROM ordermesh.statements s
         WHERE s.user_id = p_user_id AND s.content_key = content
           AND (s.state IN ('WAITING', 'PLANNING', 'READING', 'RENDERING', 'STORING')
                OR s.state IN ('READY', 'FAILED') AND s.created_at > at - interval '1 hour')
         ORDER BY s.state = 'FAILED', s.asked_at DESC LIMIT 1;
    END IF;
    statement := found_one.statement_id;
    IF statement IS NOT NULL AND found_one.state <> 'FAILED' THEN
        IF NOT is_known THEN
            IF (SELECT count(*) FROM ordermesh.statement_requests r WHERE r.statement_id = statement) >= 100 THEN
                verdict := 'LIMIT';
                retry_s := greatest(extract(epoch FROM found_one.created_at + interval '1 hour' - at), 5);
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
           SET state = 'WAITING', content_key = content, placements = p_placements, asks = s.asks + 1, asked_at = at,
               begun_before = ARRAY(SELECT b.begun_at FROM unnest(s.begun_before || s.asked_at) AS b (begun_at)
                                     WHERE b.begun_at > at - interval '30 days'),
               ended_at = NULL, attempts = 0, not_before = 'epoch', read_months = 0, months = 0, read_orders = 0, archive_bytes = 0,
               error_code = 0, error_reason = '', error_message = '', actor = p_actor, is_large = s.is_large OR p_is_large
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

-- In how many seconds a user may begin another statement; 0 for now. A statement counts as often as it was begun, each time when it was.
CREATE OR REPLACE FUNCTION ordermesh.statements_allowed_in(p_user_id text, p_at timestamptz, p_day_max int, p_month_max int)
    RETURNS double precision LANGUAGE sql STABLE
    RETURN COALESCE((
        SELECT max(extract(epoch FROM n.begun_at + w.span - p_at))
          FROM (VALUES (interval '1 day', p_day_max), (interval '30 days', p_month_max)) AS w (span, most)
          CROSS JOIN LATERAL (
              -- The youngest whose leaving the window makes room: with it and all younger ones the window is full.
              SELECT b.begun_at
                FROM ordermesh.statements s CROSS JOIN LATERAL unnest(s.begun_before || s.asked_at) AS b (begun_at)
               WHERE s.user_id = p_user_id AND s.asked_at > p_at - w.span AND b.begun_at > p_at - w.span
               ORDER BY b.begun_at DESC OFFSET w.most - 1 LIMIT 1) AS n), 0);

INSERT INTO schema_migrations (name) VALUES ('0026_wishes_and_sizes');
