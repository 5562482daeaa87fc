-- What may not be deleted from the archive: locked objects of S3, and what a law or a court wants kept.

SET search_path = ordermesh, public;

ALTER TABLE archive_segments ADD COLUMN locked_until timestamptz;
COMMENT ON COLUMN archive_segments.locked_until IS 'Until when S3 deletes the object for nobody who does not bypass its lock.';

CREATE TABLE archive_legal_holds (
    hold_id     uuid        PRIMARY KEY,
    user_id     text        COLLATE "C",
    month       date        CHECK (extract(day FROM month) = 1),
    actor       text        NOT NULL CHECK (char_length(actor) BETWEEN 1 AND 64),
    reason      text        NOT NULL CHECK (char_length(reason) BETWEEN 1 AND 512),
    created_at  timestamptz NOT NULL,
    lifted_by   text        NOT NULL DEFAULT '' CHECK (char_length(lifted_by) <= 64),
    lift_reason text        NOT NULL DEFAULT '' CHECK (char_length(lift_reason) <= 512),
    lifted_at   timestamptz,
    CONSTRAINT of_a_user_or_of_a_month CHECK (num_nonnulls(user_id, month) = 1),
    CONSTRAINT somebody_lifted_it CHECK ((lifted_at IS NULL) = (lifted_by = '') AND (lifted_at IS NULL) = (lift_reason = ''))
);
COMMENT ON TABLE archive_legal_holds IS
    'Users who are not erased and months that are not given up, until somebody lifts it; the rows stay as the record of both.';
CREATE UNIQUE INDEX archive_legal_holds_of_user ON archive_legal_holds (user_id) WHERE lifted_at IS NULL;
CREATE UNIQUE INDEX archive_legal_holds_of_month ON archive_legal_holds (month) WHERE lifted_at IS NULL;

-- Why nothing of a month, or of a user, may be deleted; NULL when it may. Either may be NULL.
CREATE FUNCTION ordermesh.legal_hold(p_month date, p_user text) RETURNS text
    LANGUAGE sql STABLE
    RETURN (SELECT 'LEGAL_HOLD of ' || coalesce(h.user_id, to_char(h.month, 'YYYY-MM')) || ' by ' || h.actor || ': ' || h.reason
              FROM ordermesh.archive_legal_holds h
             WHERE h.lifted_at IS NULL AND (h.month = p_month OR h.user_id = p_user COLLATE "C")
             ORDER BY h.created_at LIMIT 1);

-- Gives the tables of a month up, when they stand alone, their time has come, all that is in them is proven to be in S3 and was seen
-- there lately, and they are still what was proven. Returns why not, or an empty list.
CREATE OR REPLACE FUNCTION ordermesh.drop_month(p_month date, p_fence bigint) RETURNS text[]
    LANGUAGE plpgsql SET lock_timeout = '2s' AS $$
DECLARE
    m ordermesh.archive_months;
    orders record;
    journal record;
BEGIN
    PERFORM FROM ordermesh.archive_lease WHERE fence = p_fence FOR SHARE;
    IF NOT FOUND THEN RETURN ARRAY['FENCED']; END IF;
    IF (SELECT is_halted FROM ordermesh.archive_lease) THEN RETURN ARRAY['HALTED']; END IF;
    SELECT * INTO m FROM ordermesh.archive_months WHERE month = p_month AND state = 'GRACE' AND quarantined = '' FOR UPDATE;
    IF NOT FOUND OR m.reach <> 'DROPPED' THEN RETURN ARRAY['FENCED']; END IF;
    IF clock_timestamp() < m.drop_from THEN RETURN ARRAY['TOO_EARLY']; END IF;
    IF ordermesh.legal_hold(p_month, NULL) IS NOT NULL THEN RETURN ARRAY[ordermesh.legal_hold(p_month, NULL)]; END IF;
    IF EXISTS (SELECT FROM pg_inherits WHERE inhrelid IN (m.orders_oid, m.journal_oid)) THEN RETURN ARRAY['ATTACHED']; END IF;
    IF EXISTS (SELECT FROM ordermesh.archive_parts p LEFT JOIN ordermesh.archive_segments s USING (archive_id, part)
                WHERE p.archive_id = m.archive_id
                  AND (s.verified_at IS NULL OR s.seen_at IS NULL OR s.seen_at < clock_timestamp() - interval '24 hours')) THEN
        RETURN ARRAY['NOT_SEEN_IN_S3'];
    END IF;
    EXECUTE format('LOCK TABLE %s, %s IN ACCESS EXCLUSIVE MODE', m.orders_oid::regclass, m.journal_oid::regclass);
    SELECT * INTO orders FROM ordermesh.hash_of(m.orders_oid, 'orders');
    SELECT * INTO journal FROM ordermesh.hash_of(m.journal_oid, 'order_journal');
    IF (orders.row_count, orders.hash, journal.row_count, journal.hash)
       IS DISTINCT FROM (m.order_count, m.orders_hash, m.journal_count, m.journal_hash) THEN
        RETURN ARRAY['DRIFTED'];
    END IF;
    EXECUTE format('DROP TABLE %s, %s', m.orders_oid::regclass, m.journal_oid::regclass);
    UPDATE ordermesh.archive_months
       SET state = 'DROPPED', dropped_at = clock_timestamp(), orders_oid = NULL, journal_oid = NULL,
           failures = 0, not_before = 'epoch', note = '', updated_at = clock_timestamp()
     WHERE month = p_month;
    RETURN ARRAY[]::text[];
END $$;

-- Lets a segment without a user's rows take the place of the one with them. The rows that went stand in the temporary table gone, so
-- that the month's count and hash, which are sums, lose exactly them. Returns whether this was done; NULL below a legal hold.
CREATE OR REPLACE FUNCTION ordermesh.swap_segment(p_fence bigint, p_erasure uuid, p_archive_id uuid, p_part int, p_table text, p_old_key text,
                                       p_key text, p_version text, p_etag text, p_size bigint, p_sha256 text, p_rows bigint,
                                       p_facts jsonb) RETURNS boolean
    LANGUAGE plpgsql AS $$
DECLARE
    went record;
    old ordermesh.archive_segments;
BEGIN
    PERFORM FROM ordermesh.archive_lease WHERE fence = p_fence FOR SHARE;
    IF NOT FOUND THEN RETURN false; END IF;
    PERFORM FROM ordermesh.archive_months WHERE archive_id = p_archive_id AND state = 'DROPPED' AND quarantined = '' FOR UPDATE;
    IF NOT FOUND THEN RETURN false; END IF;
    IF ordermesh.legal_hold((SELECT month FROM ordermesh.archive_months WHERE archive_id = p_archive_id),
                            (SELECT user_id FROM ordermesh.archive_erasures WHERE erasure_id = p_erasure)) IS NOT NULL THEN
        RETURN NULL;
    END IF;
    SELECT * INTO old FROM ordermesh.archive_segments
     WHERE archive_id = p_archive_id AND part = p_part AND of_table = p_table AND key = p_old_key FOR UPDATE;
    IF NOT FOUND THEN RETURN false; END IF;
    SELECT * INTO went FROM ordermesh.hash_of('gone'::regclass, p_table);
    IF went.row_count <> old.row_count - p_rows THEN
        RAISE 'the rows that went are % and not %', went.row_count, old.row_count - p_rows;
    END IF;
    UPDATE ordermesh.archive_segments
       SET key = p_key, version_id = p_version, etag = p_etag, size_bytes = p_size, sha256 = p_sha256, row_count = p_rows,
           facts = p_facts, exported_at = clock_timestamp(), verified_at = clock_timestamp(), seen_at = clock_timestamp()
     WHERE archive_id = p_archive_id AND part = p_part AND of_table = p_table;
    IF p_table = 'orders' THEN
        UPDATE ordermesh.archive_parts SET order_count = order_count - went.row_count WHERE archive_id = p_archive_id AND part = p_part;
        UPDATE ordermesh.archive_months SET order_count = order_count - went.row_count, orders_hash = orders_hash - went.hash
         WHERE archive_id = p_archive_id;
        UPDATE ordermesh.archive_erasures SET row_count = row_count + went.row_count WHERE erasure_id = p_erasure;
    ELSE
        UPDATE ordermesh.archive_parts SET journal_count = journal_count - went.row_count
         WHERE archive_id = p_archive_id AND part = p_part;
        UPDATE ordermesh.archive_months SET journal_count = journal_count - went.row_count, journal_hash = journal_hash - went.hash
         WHERE archive_id = p_archive_id;
    END IF;
    INSERT INTO ordermesh.archive_replaced (key, version_id, erasure_id, archive_id, row_count, at)
    VALUES (old.key, old.version_id, p_erasure, p_archive_id, went.row_count, clock_timestamp());
    RETURN true;
END $$;

INSERT INTO schema_migrations (name) VALUES ('0015_archive_legal_holds');
