-- How months come back, a lost catalog is made again, and a user is taken out. After schema_archive.sql.

SET search_path = ordermesh, public;

CREATE TABLE archive_erasures (
    erasure_id uuid        PRIMARY KEY,
    user_id    text        COLLATE "C" NOT NULL,
    actor      text        NOT NULL CHECK (char_length(actor) BETWEEN 1 AND 64),
    reason     text        NOT NULL CHECK (char_length(reason) BETWEEN 1 AND 512),
    row_count  bigint      NOT NULL DEFAULT 0,
    note       text        NOT NULL DEFAULT '' CHECK (char_length(note) <= 512),
    not_before timestamptz NOT NULL DEFAULT 'epoch',
    created_at timestamptz NOT NULL,
    ended_at   timestamptz
);
COMMENT ON TABLE archive_erasures IS 'Users whose archived rows are to be taken out, or were: who asked, why, and how many rows went.';
CREATE INDEX archive_erasures_open ON archive_erasures (created_at) WHERE ended_at IS NULL;

CREATE TABLE archive_replaced (
    key        text        PRIMARY KEY,
    version_id text        NOT NULL,
    erasure_id uuid        NOT NULL REFERENCES archive_erasures,
    archive_id uuid        NOT NULL,
    row_count  bigint      NOT NULL,
    at         timestamptz NOT NULL,
    deleted_at timestamptz
);
COMMENT ON TABLE archive_replaced IS 'Objects that another took the place of because of an erasure, with how many rows it has less.';

CREATE TABLE archive_releases (
    archive_id  uuid        NOT NULL,
    month       date        NOT NULL,
    quarantined text        NOT NULL,
    actor       text        NOT NULL CHECK (char_length(actor) BETWEEN 1 AND 64),
    asked_at    timestamptz NOT NULL,
    ended_at    timestamptz,
    note        text        NOT NULL DEFAULT '' CHECK (char_length(note) <= 512),
    PRIMARY KEY (archive_id, asked_at)
);
COMMENT ON TABLE archive_releases IS
    'Months in quarantine that somebody wants to be let go once every segment is read back whole; note: why one was not.';
COMMENT ON COLUMN archive_releases.quarantined IS 'Why the month was in quarantine when it was asked for.';
CREATE UNIQUE INDEX archive_releases_open ON archive_releases (archive_id) WHERE ended_at IS NULL;

-- Begins to bring back a month whose tables are gone: makes them, empty and alone. Returns whether it is to be done.
CREATE FUNCTION ordermesh.begin_restore(p_month date, p_fence bigint) RETURNS boolean
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
CREATE FUNCTION ordermesh.restore_month(p_month date, p_fence bigint) RETURNS text[]
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

-- Lets a segment without a user's rows take the place of the one with them, of a month whose rows are in S3 alone, or that was restored
-- and whose copy nobody reads. The rows that went stand in the temporary table gone_ and the name of theirs, so that the month's count and
-- hash, which are sums, lose exactly them. Returns whether this was done; NULL below a legal hold.
CREATE FUNCTION ordermesh.swap_segment(p_fence bigint, p_erasure uuid, p_archive_id uuid, p_part int, p_table text, p_old_key text,
                                       p_key text, p_version text, p_etag text, p_size bigint, p_sha256 text, p_rows bigint,
                                       p_facts jsonb) RETURNS boolean
    LANGUAGE plpgsql AS $$
DECLARE
    went record;
    old ordermesh.archive_segments;
BEGIN
    PERFORM FROM ordermesh.archive_lease WHERE fence = p_fence FOR SHARE;
    IF NOT FOUND THEN RETURN false; END IF;
    PERFORM FROM ordermesh.archive_months WHERE archive_id = p_archive_id AND state IN ('DROPPED', 'RESTORED', 'WANTED') AND quarantined = '' FOR UPDATE;
    IF NOT FOUND THEN RETURN false; END IF;
    IF ordermesh.legal_hold((SELECT month FROM ordermesh.archive_months WHERE archive_id = p_archive_id),
                            (SELECT user_id FROM ordermesh.archive_erasures WHERE erasure_id = p_erasure)) IS NOT NULL THEN
        RETURN NULL;
    END IF;
    SELECT * INTO old FROM ordermesh.archive_segments
     WHERE archive_id = p_archive_id AND part = p_part AND of_table = p_table AND key = p_old_key FOR UPDATE;
    IF NOT FOUND THEN RETURN false; END IF;
    SELECT * INTO went FROM ordermesh.hash_of(('gone_' || p_table)::regclass, p_table);
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

-- How the tables of a month stand: HERE, both hang on their parents; ALONE, neither does; GONE, neither is there; LEAVING, a detach
-- was begun and is not over, since frozen they are and at least one hangs; ODD, as no step of the archive leaves them.
CREATE FUNCTION ordermesh.tables_stand(p_month date, p_begins timestamptz) RETURNS text
    LANGUAGE sql STABLE SET timezone = 'UTC'
    RETURN (
        SELECT CASE WHEN count(t.leaf) = 0 THEN 'GONE'
                    WHEN count(t.leaf) < 2 THEN 'ODD'
                    WHEN bool_and(t.hangs AND NOT t.is_pending) THEN 'HERE'
                    WHEN NOT bool_or(t.hangs) THEN 'ALONE'
                    WHEN bool_and(EXISTS (SELECT FROM pg_trigger g WHERE g.tgrelid = t.leaf AND g.tgname = 'frozen')) THEN 'LEAVING'
                    ELSE 'ODD' END
          FROM (SELECT n.leaf, i.inhrelid IS NOT NULL AS hangs, coalesce(i.inhdetachpending, false) AS is_pending
                  FROM (SELECT coalesce(ordermesh.leaf_of(parent, p_begins),
                                        to_regclass('ordermesh.' || parent || '_' || to_char(p_month, 'YYYY_MM'))::oid) AS leaf
                          FROM unnest(ARRAY['orders', 'order_journal']) AS parent) AS n
                  LEFT JOIN pg_inherits i ON i.inhrelid = n.leaf) AS t);

-- Makes the catalog of a month again of its manifest, when the shard knows nothing of the month and does not have it. Returns whether
-- this was done. Every segment is read back before anybody drops a table because of it; a detach that was begun goes on.
CREATE FUNCTION ordermesh.adopt_month(p_manifest jsonb, p_key text, p_version text, p_sha256 text, p_grace interval,
                                      p_actor text, p_reason text) RETURNS boolean
    LANGUAGE plpgsql SET timezone = 'UTC' AS $$
DECLARE
    m date := (p_manifest->>'month' || '-01')::date;
    begins timestamptz := (p_manifest->>'begins_at')::timestamptz;
    id uuid := (p_manifest->>'archive_id')::uuid;
    orders oid := coalesce(ordermesh.leaf_of('orders', begins), to_regclass('ordermesh.orders_' || to_char(m, 'YYYY_MM')));
    journal oid := coalesce(ordermesh.leaf_of('order_journal', begins), to_regclass('ordermesh.order_journal_' || to_char(m, 'YYYY_MM')));
    stand text := ordermesh.tables_stand(m, begins);
BEGIN
    IF p_manifest->>'shard' <> (SELECT shard FROM ordermesh.shard_identity) OR stand IN ('HERE', 'ODD') THEN
        RETURN false;
    END IF;
    INSERT INTO ordermesh.archive_months
           (month, archive_id, state, reach, begins_at, ends_at, orders_oid, journal_oid, order_count, journal_count, orders_hash,
            journal_hash, manifest_key, manifest_version, manifest_sha256, committed_at, detached_at, drop_from, actor, reason,
            created_at, updated_at)
    SELECT m, id, CASE stand WHEN 'ALONE' THEN 'GRACE' WHEN 'LEAVING' THEN 'DETACHING' ELSE 'DROPPED' END, 'DROPPED', begins,
           (p_manifest->>'ends_at')::timestamptz, orders, journal,
           (p_manifest->>'orders')::bigint, (p_manifest->>'journal_entries')::bigint, (p_manifest->>'orders_hash')::numeric,
           (p_manifest->>'journal_hash')::numeric, p_key, p_version, p_sha256, clock_timestamp(),
           CASE WHEN stand <> 'LEAVING' THEN clock_timestamp() END, CASE WHEN stand <> 'LEAVING' THEN clock_timestamp() + p_grace END,
           p_actor, p_reason, clock_timestamp(), clock_timestamp()
    ON CONFLICT (month) DO NOTHING;
    IF NOT FOUND THEN RETURN false; END IF;
    INSERT INTO ordermesh.archive_parts (archive_id, part, after_user, after_created_at, after_order,
                                         until_user, until_created_at, until_order, order_count, journal_count)
    SELECT id, (p->>'part')::int, p->'after'->>0, (p->'after'->>1)::timestamptz, (p->'after'->>2)::uuid,
           p->'until'->>0, (p->'until'->>1)::timestamptz, (p->'until'->>2)::uuid, (p->>'orders')::bigint, (p->>'journal_entries')::bigint
      FROM jsonb_array_elements(p_manifest->'parts') AS p;
    INSERT INTO ordermesh.archive_segments (archive_id, part, of_table, key, version_id, etag, size_bytes, sha256, row_count, facts,
                                            exported_at, check_from)
    SELECT id, (s->>'part')::int, s->'facts'->>'table', s->>'key', s->>'version_id', s->>'etag', (s->'facts'->>'size_bytes')::bigint,
           s->'facts'->>'sha256', (s->'facts'->>'rows')::bigint, s->'facts', clock_timestamp(), clock_timestamp()
      FROM jsonb_array_elements(p_manifest->'segments') AS s;
    RETURN true;
END $$;

-- Makes the catalog of a month again of its manifest, as adopt_month does, and goes on with its number. Returns whether this was done.
CREATE FUNCTION ordermesh.adopt_edition(p_manifest jsonb, p_key text, p_version text, p_sha256 text, p_grace interval,
                                        p_actor text, p_reason text) RETURNS boolean
    LANGUAGE plpgsql AS $$
BEGIN
    IF NOT ordermesh.adopt_month(p_manifest, p_key, p_version, p_sha256, p_grace, p_actor, p_reason) THEN RETURN false; END IF;
    UPDATE ordermesh.archive_months SET edition = coalesce((p_manifest->>'edition')::bigint, 0)
     WHERE archive_id = (p_manifest->>'archive_id')::uuid;
    RETURN true;
END $$;

-- Lets a newer manifest take the place of the catalog of a month that is in S3 alone, which shows another one. Returns whether this was
-- done: not when the month stands elsewhere by now.
CREATE FUNCTION ordermesh.replace_edition(p_manifest jsonb, p_key text, p_version text, p_sha256 text, p_grace interval,
                                          p_actor text, p_reason text, p_old_key text) RETURNS boolean
    LANGUAGE plpgsql AS $$
BEGIN
    -- Whoever archives the shard is between two changes.
    PERFORM FROM ordermesh.archive_lease FOR UPDATE;
    DELETE FROM ordermesh.archive_months
     WHERE month = (p_manifest->>'month' || '-01')::date AND state = 'DROPPED' AND manifest_key = p_old_key;
    IF NOT FOUND THEN RETURN false; END IF;
    IF NOT ordermesh.adopt_edition(p_manifest, p_key, p_version, p_sha256, p_grace, p_actor, p_reason) THEN
        RAISE 'the tables of % are here', p_manifest->>'month';
    END IF;
    RETURN true;
END $$;

INSERT INTO schema_migrations (name) VALUES ('0011_archive_upkeep'), ('0023_archive_editions');
