-- The same wish after an amendment is another statement, within the hour too.

SET search_path = ordermesh, public;

COMMENT ON COLUMN statements.content_key IS 'Of everything that decides what is written, amendments too; the moment counts by its hour.';

-- Who does not know p_amended asks without it, as before.
DROP FUNCTION ordermesh.request_statement(uuid, text, uuid, date, date, text, text, text[], timestamptz, timestamptz, jsonb, int, text, int, int);

-- Begins a statement, or finds the one that is meant; all requests of one user one after the other.
-- p_amended: what stands for the amendments that it would tell, NULL for none: after another one the same wish means another statement.
-- Verdicts: NEW, AGAIN (it had failed), SAME; REUSED, FUTURE, RUNNING, LIMIT, which change nothing. retry_s: when to come back.
CREATE FUNCTION ordermesh.request_statement(
    p_statement_id uuid, p_user_id text, p_request_id uuid, p_first date, p_last date, p_time_zone text, p_locale text,
    p_formats text[], p_since timestamptz, p_until timestamptz, p_placements jsonb, p_schema int, p_actor text,
    p_day_max int, p_month_max int, p_amended text DEFAULT NULL,
    OUT verdict text, OUT statement uuid, OUT retry_s double precision)
    LANGUAGE plpgsql SET timezone = 'UTC' AS $$
DECLARE
    at timestamptz;
    content bytea;
    found_one ordermesh.statements;
BEGIN
    PERFORM pg_advisory_xact_lock(hashtextextended('statements of ' || p_user_id, 0));
    at := clock_timestamp();
    SELECT s.* INTO found_one FROM ordermesh.statements s WHERE s.user_id = p_user_id AND s.request_id = p_request_id;
    IF FOUND AND (found_one.first_day, found_one.last_day, found_one.time_zone, found_one.locale, found_one.formats)
                 IS DISTINCT FROM (p_first, p_last, p_time_zone, p_locale, p_formats) THEN
        verdict := 'REUSED';
        RETURN;
    END IF;
    IF NOT FOUND THEN
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
        RETURN;
    END IF;
    verdict := 'NEW';
    statement := p_statement_id;
    INSERT INTO ordermesh.statements (statement_id, user_id, request_id, content_key, first_day, last_day, time_zone, locale, formats,
                                      since, until, as_of, placements, actor, asked_at, created_at)
    VALUES (p_statement_id, p_user_id, p_request_id, content, p_first, p_last, p_time_zone, p_locale, p_formats,
            p_since, least(p_until, at), at, p_placements, p_actor, at, at);
END $$;

INSERT INTO schema_migrations (name) VALUES ('0020_amended_statements');
