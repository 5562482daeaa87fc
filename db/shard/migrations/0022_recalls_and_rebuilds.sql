-- An erasure reaches the statements of its user wherever they stand; a month whose detach was begun is made again as one.

SET search_path = ordermesh, public;

CREATE TABLE statement_recalls (
    erasure_id  uuid        PRIMARY KEY,
    user_id     text        NOT NULL CHECK (char_length(user_id) BETWEEN 1 AND 64),
    shard       text        NOT NULL CHECK (char_length(shard) BETWEEN 1 AND 64),
    until       timestamptz NOT NULL,
    recalled_at timestamptz NOT NULL
);
COMMENT ON TABLE statement_recalls IS
    'Erasures, on any shard, because of which the statements of a user were recalled here, where they stand.';
COMMENT ON COLUMN statement_recalls.until IS
    'What the erasure took out until then, by the clock of its shard, no statement here shows; infinity when it is over.';

-- Recalls every statement of a user that may show what an erasure took out of the archive of any shard by p_until, NULL for all of it:
-- one that is ready goes with what it says and its mail if that was not sent, one that is being made is made from the beginning. Who
-- asks after that is answered by what is left. Returns how many went or begin again; idempotent, NULL when it was done before.
CREATE FUNCTION ordermesh.recall_statements(p_erasure_id uuid, p_user_id text, p_shard text, p_until timestamptz) RETURNS bigint
    LANGUAGE plpgsql AS $$
DECLARE
    begun_again bigint;
    gone bigint;
BEGIN
    -- As requests of the user do: one that waits for this reads what is left, and one that this waited for is seen below.
    PERFORM pg_advisory_xact_lock(hashtextextended('statements of ' || p_user_id, 0));
    INSERT INTO ordermesh.statement_recalls AS r (erasure_id, user_id, shard, until, recalled_at)
    VALUES (p_erasure_id, p_user_id, p_shard, COALESCE(p_until, 'infinity'), clock_timestamp())
    ON CONFLICT (erasure_id) DO UPDATE SET until = excluded.until, recalled_at = excluded.recalled_at WHERE r.until < excluded.until;
    IF NOT FOUND THEN RETURN NULL; END IF;
    -- First those that are being made: whoever makes one has lost the turn, so that none gets ready any more.
    UPDATE ordermesh.statements
       SET state = 'WAITING', holder = '', lease_until = 'epoch', fence = fence + 1, attempts = greatest(attempts - 1, 0)
     WHERE user_id = p_user_id AND state IN ('PLANNING', 'READING', 'RENDERING', 'STORING');
    GET DIAGNOSTICS begun_again = ROW_COUNT;
    UPDATE ordermesh.statement_mails
       SET state = 'DEAD', fence = fence + 1, note = 'its statement is gone', ended_at = clock_timestamp()
     WHERE state = 'WAITING' AND statement_id IN (SELECT statement_id FROM ordermesh.statements WHERE user_id = p_user_id);
    UPDATE ordermesh.statements
       SET state = 'EXPIRED', is_clean = false, expires_at = clock_timestamp(), totals = '[]', read_orders = 0, pdf_note = ''
     WHERE user_id = p_user_id AND state = 'READY';
    GET DIAGNOSTICS gone = ROW_COUNT;
    RETURN begun_again + gone;
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
CREATE OR REPLACE FUNCTION ordermesh.adopt_month(p_manifest jsonb, p_key text, p_version text, p_sha256 text, p_grace interval,
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

-- A month that was coming back when 0019 came has tables without the indexes that attaching it needs, and would make them while it
-- holds the lease, however long that takes. It begins once more, with tables that have them: all of it is in S3, where readers read it.
DO $again$
DECLARE
    m ordermesh.archive_months;
    leaf oid;
BEGIN
    FOR m IN SELECT * FROM ordermesh.archive_months WHERE state = 'RESTORING' LOOP
        CONTINUE WHEN EXISTS (SELECT FROM pg_inherits WHERE inhrelid IN (m.orders_oid, m.journal_oid)) OR NOT EXISTS (
            SELECT FROM (VALUES (m.orders_oid, 'ordermesh.orders'::regclass),
                                (m.journal_oid, 'ordermesh.order_journal'::regclass)) AS t (leaf, parent)
             WHERE (SELECT count(*) FROM pg_index WHERE indrelid = t.leaf) < (SELECT count(*) FROM pg_index WHERE indrelid = t.parent));
        -- Whoever copies rows back ends first; who restores the month locks its tables before the month, too.
        FOR leaf IN SELECT oid FROM pg_class WHERE oid IN (m.orders_oid, m.journal_oid) LOOP
            EXECUTE format('LOCK TABLE %s IN ACCESS EXCLUSIVE MODE', leaf::regclass);
        END LOOP;
        UPDATE ordermesh.archive_months
           SET state = 'DROPPED', orders_oid = NULL, journal_oid = NULL, failures = 0, not_before = 'epoch', note = '',
               updated_at = clock_timestamp()
         WHERE month = m.month AND state = 'RESTORING'
           AND (orders_oid, journal_oid) IS NOT DISTINCT FROM (m.orders_oid, m.journal_oid);
        CONTINUE WHEN NOT FOUND;
        UPDATE ordermesh.archive_segments SET restored_at = NULL WHERE archive_id = m.archive_id;
        FOR leaf IN SELECT oid FROM pg_class WHERE oid IN (m.orders_oid, m.journal_oid) LOOP
            EXECUTE format('DROP TABLE %s', leaf::regclass);
        END LOOP;
    END LOOP;
END $again$;

-- Nobody has asked for one part since all are asked for at once.
DROP FUNCTION ordermesh.part_facts(uuid, int);

INSERT INTO schema_migrations (name) VALUES ('0022_recalls_and_rebuilds');
