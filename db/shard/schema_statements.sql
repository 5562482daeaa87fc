-- Statements: operations that make documents of a user's orders, and the mails that announce them.

SET search_path = ordermesh, public;

CREATE TABLE statements (
    statement_id   uuid        PRIMARY KEY,
    user_id        text        NOT NULL CHECK (char_length(user_id) BETWEEN 1 AND 64),
    request_id     uuid        NOT NULL,
    content_key    bytea       NOT NULL CHECK (octet_length(content_key) = 32),
    first_day      date        NOT NULL,
    last_day       date        NOT NULL CHECK (last_day >= first_day),
    time_zone      text        NOT NULL CHECK (char_length(time_zone) BETWEEN 1 AND 64),
    locale         text        NOT NULL CHECK (locale IN ('en', 'hi')),
    formats        text[]      NOT NULL CHECK (formats <@ ARRAY['CSV', 'PDF'] AND 'CSV' = ANY (formats)),
    since          timestamptz NOT NULL,
    until          timestamptz NOT NULL CHECK (until > since),
    as_of          timestamptz NOT NULL CHECK (as_of >= until),
    placements     jsonb       NOT NULL,
    state          text        NOT NULL DEFAULT 'WAITING'
                   CHECK (state IN ('WAITING', 'PLANNING', 'READING', 'RENDERING', 'STORING', 'READY', 'FAILED', 'CANCELLED', 'EXPIRED')),
    read_months    int         NOT NULL DEFAULT 0,
    months         int         NOT NULL DEFAULT 0,
    read_orders    bigint      NOT NULL DEFAULT 0,
    archive_bytes  bigint      NOT NULL DEFAULT 0,
    holder         text        NOT NULL DEFAULT '',
    fence          bigint      NOT NULL DEFAULT 0,
    lease_until    timestamptz NOT NULL DEFAULT 'epoch',
    attempts       int         NOT NULL DEFAULT 0,
    not_before     timestamptz NOT NULL DEFAULT 'epoch',
    object_key     text        NOT NULL DEFAULT '',
    object_version text        NOT NULL DEFAULT '',
    object_etag    text        NOT NULL DEFAULT '',
    size_bytes     bigint      NOT NULL DEFAULT 0,
    sha256         text        NOT NULL DEFAULT '',
    totals         jsonb       NOT NULL DEFAULT '[]',
    pdf_note       text        NOT NULL DEFAULT '' CHECK (char_length(pdf_note) <= 512),
    error_code     int         NOT NULL DEFAULT 0,
    error_reason   text        NOT NULL DEFAULT '' CHECK (char_length(error_reason) <= 64),
    error_message  text        NOT NULL DEFAULT '' CHECK (char_length(error_message) <= 512),
    is_clean       boolean     NOT NULL DEFAULT true,
    actor          text        NOT NULL CHECK (char_length(actor) BETWEEN 1 AND 128),
    asks           int         NOT NULL DEFAULT 1,
    asked_at       timestamptz NOT NULL,
    created_at     timestamptz NOT NULL,
    ended_at       timestamptz,
    expires_at     timestamptz,
    clean_from     timestamptz NOT NULL DEFAULT 'epoch',
    clean_failures int         NOT NULL DEFAULT 0,
    is_large       boolean     NOT NULL DEFAULT false,
    begun_before   timestamptz[] NOT NULL DEFAULT '{}',
    CONSTRAINT a_request_makes_one_statement UNIQUE (user_id, request_id),
    CONSTRAINT a_ready_statement_has_a_file CHECK (state <> 'READY' OR (object_key <> '' AND sha256 <> '' AND expires_at IS NOT NULL)),
    CONSTRAINT a_failed_statement_says_why CHECK (state <> 'FAILED' OR (error_code > 0 AND error_reason <> '')),
    CONSTRAINT an_ended_statement_has_an_end CHECK ((state IN ('READY', 'FAILED', 'CANCELLED', 'EXPIRED')) = (ended_at IS NOT NULL))
);
COMMENT ON TABLE statements IS
    'One row is one operation that makes a document of a user''s orders; on the shard of the user''s hashed bucket, for ever.';
COMMENT ON COLUMN statements.content_key IS 'Of everything that decides what is written, amendments too, but for the moment.';
COMMENT ON COLUMN statements.placements IS 'Buckets of the user by shard, as the proxy knew them: every order created before as_of is in one.';
COMMENT ON COLUMN statements.fence IS 'Grows with each turn of a worker and with a cancellation; nothing is written under an older one.';
COMMENT ON COLUMN statements.is_clean IS 'Whether no object can be left in S3 but the one that the row names.';
COMMENT ON COLUMN statements.clean_from IS 'When its objects are looked for again after some could not go; clean_failures: how often they could not, in a row.';
COMMENT ON COLUMN statements.is_large IS 'Whether it takes so long that some worker is to be left to those that do not.';
COMMENT ON COLUMN statements.asks IS 'How often it was begun for its user: once, and again after failures.';
COMMENT ON COLUMN statements.begun_before IS 'When it was begun before asked_at, of the last 30 days; limits count both, each when it was.';

CREATE UNIQUE INDEX one_running_statement ON statements (user_id)
    WHERE state IN ('WAITING', 'PLANNING', 'READING', 'RENDERING', 'STORING');
CREATE INDEX statements_of_user ON statements (user_id, created_at DESC, statement_id DESC);
CREATE INDEX statements_to_make ON statements (asked_at) WHERE state IN ('WAITING', 'PLANNING', 'READING', 'RENDERING', 'STORING');
CREATE INDEX statements_to_expire ON statements (expires_at) WHERE state = 'READY';
CREATE INDEX statements_to_clean ON statements (ended_at) WHERE NOT is_clean;

CREATE TABLE statement_mails (
    statement_id   uuid        PRIMARY KEY REFERENCES statements (statement_id),
    state          text        NOT NULL DEFAULT 'WAITING' CHECK (state IN ('WAITING', 'SENT', 'DEAD')),
    attempts       int         NOT NULL DEFAULT 0,
    fence          bigint      NOT NULL DEFAULT 0,
    lease_until    timestamptz NOT NULL DEFAULT 'epoch',
    not_before     timestamptz NOT NULL DEFAULT 'epoch',
    give_up_at     timestamptz NOT NULL,
    note           text        NOT NULL DEFAULT '' CHECK (char_length(note) <= 512),
    created_at     timestamptz NOT NULL,
    ended_at       timestamptz
);
COMMENT ON TABLE statement_mails IS 'The mail that says that a statement is ready; written in the transaction that makes it so.';
COMMENT ON COLUMN statement_mails.note IS 'What the mail server said last; of a dead one, why.';
CREATE INDEX statement_mails_to_send ON statement_mails (not_before) WHERE state = 'WAITING';

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
CREATE FUNCTION ordermesh.statements_allowed_in(p_user_id text, p_at timestamptz, p_day_max int, p_month_max int)
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

INSERT INTO schema_migrations (name) VALUES ('0010_statements'), ('0020_amended_statements'), ('0024_known_requests'), ('0026_wishes_and_sizes');
