-- Giving a month up and bringing it back hold the lease only for the moment in which they do it, and not while they read the month.

SET search_path = ordermesh, public;

-- Why the tables of a month cannot be given up now, by what the catalog says; empty when they can. Takes no lock.
CREATE FUNCTION ordermesh.drop_blockers(p_month date, p_fence bigint) RETURNS text[]
    LANGUAGE plpgsql STABLE AS $$
DECLARE
    l ordermesh.archive_lease;
    m ordermesh.archive_months;
BEGIN
    SELECT * INTO l FROM ordermesh.archive_lease WHERE fence = p_fence;
    IF NOT FOUND THEN RETURN ARRAY['FENCED']; END IF;
    IF l.is_halted THEN RETURN ARRAY['HALTED']; END IF;
    SELECT * INTO m FROM ordermesh.archive_months WHERE month = p_month AND state = 'GRACE' AND quarantined = '';
    IF NOT FOUND OR m.reach <> 'DROPPED' THEN RETURN ARRAY['FENCED']; END IF;
    IF clock_timestamp() < m.drop_from THEN RETURN ARRAY['TOO_EARLY']; END IF;
    IF ordermesh.legal_hold(p_month, NULL) IS NOT NULL THEN RETURN ARRAY[ordermesh.legal_hold(p_month, NULL)]; END IF;
    IF EXISTS (SELECT FROM pg_inherits WHERE inhrelid IN (m.orders_oid, m.journal_oid)) THEN RETURN ARRAY['ATTACHED']; END IF;
    IF EXISTS (SELECT FROM ordermesh.archive_parts p LEFT JOIN ordermesh.archive_segments s USING (archive_id, part)
                WHERE p.archive_id = m.archive_id
                  AND (s.verified_at IS NULL OR s.seen_at IS NULL OR s.seen_at < clock_timestamp() - interval '24 hours')) THEN
        RETURN ARRAY['NOT_SEEN_IN_S3'];
    END IF;
    RETURN ARRAY[]::text[];
END $$;

-- Gives the tables of a month up, when they stand alone, their time has come, all that is in them is proven to be in S3 and was seen
-- there lately, and they are still what was proven. Returns why not, or an empty list. Reading them takes long, so that the lease is
-- locked after it and everything asked again: the lease is renewed, the shard halted and the month asked for elsewhere meanwhile.
CREATE OR REPLACE FUNCTION ordermesh.drop_month(p_month date, p_fence bigint) RETURNS text[]
    LANGUAGE plpgsql SET lock_timeout = '2s' AS $$
DECLARE
    m ordermesh.archive_months;
    orders record;
    journal record;
    both_tables text;
    blockers text[] := ordermesh.drop_blockers(p_month, p_fence);
BEGIN
    IF cardinality(blockers) > 0 THEN RETURN blockers; END IF;
    SELECT * INTO m FROM ordermesh.archive_months WHERE month = p_month;
    both_tables := format('%s, %s', m.orders_oid::regclass, m.journal_oid::regclass);
    -- Nobody writes from here on, and nobody else drops; who reads them, or their size, goes on.
    EXECUTE format('LOCK TABLE %s IN SHARE ROW EXCLUSIVE MODE', both_tables);
    SELECT * INTO orders FROM ordermesh.hash_of(m.orders_oid, 'orders');
    SELECT * INTO journal FROM ordermesh.hash_of(m.journal_oid, 'order_journal');
    IF (orders.row_count, orders.hash, journal.row_count, journal.hash)
       IS DISTINCT FROM (m.order_count, m.orders_hash, m.journal_count, m.journal_hash) THEN
        RETURN ARRAY['DRIFTED'];
    END IF;
    -- Waited for before the lease is locked, so that nobody waits for the lease as long as this waits for readers.
    EXECUTE format('LOCK TABLE %s IN ACCESS EXCLUSIVE MODE', both_tables);
    PERFORM FROM ordermesh.archive_lease WHERE fence = p_fence FOR SHARE;
    PERFORM FROM ordermesh.archive_months
      WHERE month = p_month AND (archive_id, orders_oid, journal_oid, order_count, orders_hash, journal_count, journal_hash)
                                = (m.archive_id, m.orders_oid, m.journal_oid, m.order_count, m.orders_hash, m.journal_count,
                                   m.journal_hash) FOR UPDATE;
    IF NOT FOUND THEN RETURN ARRAY['FENCED']; END IF;
    blockers := ordermesh.drop_blockers(p_month, p_fence);
    IF cardinality(blockers) > 0 THEN RETURN blockers; END IF;
    EXECUTE format('DROP TABLE %s', both_tables);
    UPDATE ordermesh.archive_months
       SET state = 'DROPPED', dropped_at = clock_timestamp(), orders_oid = NULL, journal_oid = NULL,
           failures = 0, not_before = 'epoch', note = '', updated_at = clock_timestamp()
     WHERE month = p_month;
    RETURN ARRAY[]::text[];
END $$;

-- Begins to bring back a month whose tables are gone: makes them, empty and alone. Returns whether it is to be done.
CREATE OR REPLACE FUNCTION ordermesh.begin_restore(p_month date, p_fence bigint) RETURNS boolean
    LANGUAGE plpgsql SET timezone = 'UTC' SET lock_timeout = '2s' AS $$
DECLARE
    m ordermesh.archive_months;
    parent text;
    child text;
BEGIN
    PERFORM FROM ordermesh.archive_lease WHERE fence = p_fence FOR SHARE;
    IF NOT FOUND THEN RETURN false; END IF;
    SELECT * INTO m FROM ordermesh.archive_months
     WHERE month = p_month AND state = 'DROPPED' AND reach = 'RESTORED' AND quarantined = '' FOR UPDATE;
    IF NOT FOUND THEN RETURN false; END IF;
    FOREACH parent IN ARRAY ARRAY['orders', 'order_journal'] LOOP
        child := parent || '_' || to_char(p_month, 'YYYY_MM');
        -- With the indexes, and the bounds as a constraint, so that attaching it makes none and reads no row.
        EXECUTE format('CREATE TABLE ordermesh.%I (LIKE ordermesh.%I INCLUDING DEFAULTS INCLUDING CONSTRAINTS INCLUDING INDEXES, '
                       'CONSTRAINT %I CHECK (created_at >= %L AND created_at < %L)) WITH (fillfactor = 85)',
                       child, parent, child || '_range', m.begins_at, m.ends_at);
    END LOOP;
    UPDATE ordermesh.archive_segments SET restored_at = NULL WHERE archive_id = m.archive_id;
    UPDATE ordermesh.archive_months
       SET state = 'RESTORING', orders_oid = to_regclass('ordermesh.orders_' || to_char(p_month, 'YYYY_MM')),
           journal_oid = to_regclass('ordermesh.order_journal_' || to_char(p_month, 'YYYY_MM')),
           failures = 0, not_before = 'epoch', note = '', updated_at = clock_timestamp()
     WHERE month = p_month;
    RETURN true;
END $$;

-- Why readers cannot be turned back to the tables of a month now, by what the catalog says; empty when they can. Takes no lock.
CREATE FUNCTION ordermesh.restore_blockers(p_month date, p_fence bigint) RETURNS text[]
    LANGUAGE plpgsql STABLE AS $$
DECLARE
    l ordermesh.archive_lease;
    m ordermesh.archive_months;
BEGIN
    SELECT * INTO l FROM ordermesh.archive_lease WHERE fence = p_fence;
    IF NOT FOUND THEN RETURN ARRAY['FENCED']; END IF;
    IF l.is_halted THEN RETURN ARRAY['HALTED']; END IF;
    SELECT * INTO m FROM ordermesh.archive_months
     WHERE month = p_month AND state IN ('COMMITTED', 'GRACE', 'RESTORING') AND reach = 'RESTORED' AND quarantined = '';
    IF NOT FOUND THEN RETURN ARRAY['FENCED']; END IF;
    IF m.state = 'RESTORING' AND EXISTS (SELECT FROM ordermesh.archive_segments
                                          WHERE archive_id = m.archive_id AND restored_at IS NULL) THEN
        RETURN ARRAY['NOT_COPIED_BACK'];
    END IF;
    RETURN ARRAY[]::text[];
END $$;

-- Turns readers back to the tables of a month, when these are what was proven: attaches those that stand alone, and lets changes
-- happen again. Returns why not, or an empty list. The lease is locked, and everything asked again, after the tables were read.
CREATE OR REPLACE FUNCTION ordermesh.restore_month(p_month date, p_fence bigint) RETURNS text[]
    LANGUAGE plpgsql SET timezone = 'UTC' SET lock_timeout = '2s' AS $$
DECLARE
    m ordermesh.archive_months;
    orders record;
    journal record;
    leaf oid;
    parent text;
    both_tables text;
    blockers text[] := ordermesh.restore_blockers(p_month, p_fence);
BEGIN
    IF cardinality(blockers) > 0 THEN RETURN blockers; END IF;
    SELECT * INTO m FROM ordermesh.archive_months WHERE month = p_month;
    both_tables := format('%s, %s', m.orders_oid::regclass, m.journal_oid::regclass);
    -- Those that hang are frozen, and who writes to them is refused and does not wait.
    IF NOT EXISTS (SELECT FROM pg_inherits WHERE inhrelid IN (m.orders_oid, m.journal_oid)) THEN
        EXECUTE format('LOCK TABLE %s IN SHARE ROW EXCLUSIVE MODE', both_tables);
    END IF;
    SELECT * INTO orders FROM ordermesh.hash_of(m.orders_oid, 'orders');
    SELECT * INTO journal FROM ordermesh.hash_of(m.journal_oid, 'order_journal');
    IF (orders.row_count, orders.hash, journal.row_count, journal.hash)
       IS DISTINCT FROM (m.order_count, m.orders_hash, m.journal_count, m.journal_hash) THEN
        RETURN ARRAY['DRIFTED'];
    END IF;
    -- What attaching locks is waited for before the lease is locked, so that nobody waits for the lease as long as this does.
    LOCK TABLE ONLY ordermesh.orders, ONLY ordermesh.order_journal IN SHARE UPDATE EXCLUSIVE MODE;
    EXECUTE format('LOCK TABLE %s IN ACCESS EXCLUSIVE MODE', both_tables);
    PERFORM FROM ordermesh.archive_lease WHERE fence = p_fence FOR SHARE;
    PERFORM FROM ordermesh.archive_months
      WHERE month = p_month AND (archive_id, state, orders_oid, journal_oid, order_count, orders_hash, journal_count, journal_hash)
                                = (m.archive_id, m.state, m.orders_oid, m.journal_oid, m.order_count, m.orders_hash,
                                   m.journal_count, m.journal_hash) FOR UPDATE;
    IF NOT FOUND THEN RETURN ARRAY['FENCED']; END IF;
    blockers := ordermesh.restore_blockers(p_month, p_fence);
    IF cardinality(blockers) > 0 THEN RETURN blockers; END IF;
    FOR leaf, parent IN VALUES (m.orders_oid, 'orders'), (m.journal_oid, 'order_journal') LOOP
        IF NOT EXISTS (SELECT FROM pg_inherits WHERE inhrelid = leaf) THEN
            EXECUTE format('ALTER TABLE ordermesh.%I ATTACH PARTITION %s FOR VALUES FROM (%L) TO (%L)',
                           parent, leaf::regclass, m.begins_at, m.ends_at);
        END IF;
        EXECUTE format('DROP TRIGGER IF EXISTS frozen ON %s', leaf::regclass);
        EXECUTE format('DROP TRIGGER IF EXISTS frozen_truncate ON %s', leaf::regclass);
    END LOOP;
    UPDATE ordermesh.archive_months
       SET state = 'RESTORED', restored_at = clock_timestamp(), frozen_at = NULL, committed_at = NULL, detach_from = NULL,
           detached_at = NULL, drop_from = NULL, dropped_at = NULL, orders_oid = NULL, journal_oid = NULL,
           failures = 0, not_before = 'epoch', note = '', updated_at = clock_timestamp()
     WHERE month = p_month;
    RETURN ARRAY[]::text[];
END $$;

INSERT INTO schema_migrations (name) VALUES ('0019_archive_locks');
