-- How months leave this database, and what is kept of them. After schema.sql.

SET search_path = ordermesh, public;

CREATE TABLE archive_lease (
    only_row    boolean     PRIMARY KEY DEFAULT true CHECK (only_row),
    fence       bigint      NOT NULL CHECK (fence >= 0),
    holder      text        NOT NULL,
    lease_until timestamptz NOT NULL,
    is_halted   boolean     NOT NULL DEFAULT false,
    actor       text        NOT NULL DEFAULT '' CHECK (char_length(actor) <= 64),
    reason      text        NOT NULL DEFAULT '' CHECK (char_length(reason) <= 512),
    changed_at  timestamptz NOT NULL DEFAULT 'epoch'
);
COMMENT ON TABLE archive_lease IS
    'Who archives this shard, by a fence that grows with each holder; is_halted stops every change of a table at once.';
INSERT INTO archive_lease (fence, holder, lease_until) VALUES (0, '', 'epoch');

CREATE TABLE archive_months (
    month            date        PRIMARY KEY CHECK (extract(day FROM month) = 1),
    archive_id       uuid        NOT NULL UNIQUE,
    state            text        NOT NULL CHECK (state IN ('WANTED', 'FROZEN', 'PLANNED', 'EXPORTED', 'VERIFIED', 'COMMITTED',
                                                           'DETACHING', 'GRACE', 'DROPPED', 'THAWED', 'RESTORING', 'RESTORED')),
    reach            text        NOT NULL CHECK (reach IN ('VERIFIED', 'COMMITTED', 'GRACE', 'DROPPED', 'THAWED', 'RESTORED')),
    quarantined      text        NOT NULL DEFAULT '' CHECK (char_length(quarantined) <= 512),
    begins_at        timestamptz NOT NULL,
    ends_at          timestamptz NOT NULL,
    orders_oid       oid,
    journal_oid      oid,
    order_count      bigint,
    journal_count    bigint,
    orders_hash      numeric,
    journal_hash     numeric,
    manifest_key     text        NOT NULL DEFAULT '',
    manifest_version text        NOT NULL DEFAULT '',
    manifest_sha256  text        NOT NULL DEFAULT '',
    frozen_at        timestamptz,
    committed_at     timestamptz,
    detach_from      timestamptz,
    detached_at      timestamptz,
    drop_from        timestamptz,
    dropped_at       timestamptz,
    restored_at      timestamptz,
    failures         int         NOT NULL DEFAULT 0,
    damages          int         NOT NULL DEFAULT 0,
    not_before       timestamptz NOT NULL DEFAULT 'epoch',
    note             text        NOT NULL DEFAULT '' CHECK (char_length(note) <= 512),
    actor            text        NOT NULL CHECK (char_length(actor) BETWEEN 1 AND 64),
    reason           text        NOT NULL CHECK (char_length(reason) BETWEEN 1 AND 512),
    created_at       timestamptz NOT NULL,
    updated_at       timestamptz NOT NULL,
    edition          bigint      NOT NULL DEFAULT 0,
    CONSTRAINT a_frozen_month_has_tables CHECK (state IN ('WANTED', 'THAWED', 'RESTORING', 'RESTORED', 'DROPPED')
                                                OR (orders_oid IS NOT NULL AND journal_oid IS NOT NULL)),
    CONSTRAINT a_proven_month_has_numbers CHECK (state NOT IN ('VERIFIED', 'COMMITTED', 'DETACHING', 'GRACE', 'DROPPED')
                                                 OR (orders_hash IS NOT NULL AND journal_hash IS NOT NULL)),
    CONSTRAINT a_served_month_is_committed CHECK (state NOT IN ('COMMITTED', 'DETACHING', 'GRACE', 'DROPPED')
                                                  OR (committed_at IS NOT NULL AND manifest_key <> ''))
);
COMMENT ON TABLE archive_months IS 'Months that leave this database, or left it, or came back; one without a row was never asked for.';
COMMENT ON COLUMN archive_months.archive_id IS 'Names this copy of the month in S3; a month that was restored and leaves again gets another.';
COMMENT ON COLUMN archive_months.reach IS 'The state in which it is to be; whoever archives takes it there step by step.';
COMMENT ON COLUMN archive_months.quarantined IS 'Why a person has to look; nothing is done to the month until somebody says so.';
COMMENT ON COLUMN archive_months.damages IS 'Segments that did not read back as they were written, since somebody asked for the month.';
COMMENT ON COLUMN archive_months.edition IS
    'Of what the month''s manifest would say: grows with every change of that, and when its copy is given up. 0: none has a number.';
COMMENT ON COLUMN archive_months.orders_hash IS 'Of every row when it was proven; the table is only dropped while it has the same.';

CREATE TABLE archive_parts (
    archive_id       uuid        NOT NULL REFERENCES archive_months (archive_id) ON UPDATE CASCADE ON DELETE CASCADE,
    part             int         NOT NULL CHECK (part >= 0),
    after_user       text        COLLATE "C" NOT NULL,
    after_created_at timestamptz NOT NULL,
    after_order      uuid        NOT NULL,
    until_user       text        COLLATE "C" NOT NULL,
    until_created_at timestamptz NOT NULL,
    until_order      uuid        NOT NULL,
    order_count      bigint      NOT NULL,
    journal_count    bigint      NOT NULL,
    PRIMARY KEY (archive_id, part)
);
COMMENT ON TABLE archive_parts IS 'The orders of a month in the order of (user_id, created_at, order_id), cut into pieces: after one key, up to another.';

CREATE TABLE archive_segments (
    archive_id    uuid        NOT NULL,
    part          int         NOT NULL,
    of_table      text        NOT NULL CHECK (of_table IN ('orders', 'order_journal')),
    key           text        NOT NULL UNIQUE,
    version_id    text        NOT NULL,
    etag          text        NOT NULL,
    size_bytes    bigint      NOT NULL,
    sha256        text        NOT NULL,
    row_count     bigint      NOT NULL,
    facts         jsonb       NOT NULL,
    exported_at   timestamptz NOT NULL,
    verified_at   timestamptz,
    seen_at       timestamptz,
    restored_at   timestamptz,
    check_from    timestamptz,
    locked_until  timestamptz,
    PRIMARY KEY (archive_id, part, of_table),
    FOREIGN KEY (archive_id, part) REFERENCES archive_parts ON UPDATE CASCADE ON DELETE CASCADE
);
COMMENT ON TABLE archive_segments IS 'The object in S3 that holds one part of one table; facts: what proves it, and where in it each user is.';
COMMENT ON COLUMN archive_segments.seen_at IS 'When it was last seen in S3 as it was written; verified_at: when every byte was last read and compared.';
COMMENT ON COLUMN archive_segments.locked_until IS 'Until when S3 deletes the object for nobody who does not bypass its lock.';
COMMENT ON COLUMN archive_segments.check_from IS 'From when on it is read and compared once more; set by the last time, or by a person.';

-- Below this instant no list is answered from here: those months are served from their copies. '-infinity' when there is none.
CREATE FUNCTION ordermesh.archive_floor() RETURNS timestamptz
    LANGUAGE sql STABLE
    RETURN COALESCE((SELECT max(m.ends_at) FROM ordermesh.archive_months m WHERE m.committed_at IS NOT NULL), '-infinity');

-- Whether all of a month is before that: no list shows it, and no index has to have it.
CREATE FUNCTION ordermesh.is_archived(p_month date) RETURNS boolean
    LANGUAGE sql STABLE
    RETURN (p_month + interval '1 month') AT TIME ZONE 'UTC' <= ordermesh.archive_floor();

-- Whether the month of an instant is served from its copy. One that was restored is not, also below the floor.
CREATE FUNCTION ordermesh.is_archived(p_at timestamptz) RETURNS boolean
    LANGUAGE sql STABLE
    RETURN EXISTS (SELECT FROM ordermesh.archive_months m
                    WHERE m.committed_at IS NOT NULL AND m.begins_at <= p_at AND p_at < m.ends_at);

-- Numbers what a month's manifest would say: when it is proven, when its copy is given up, and when rows are taken out of it.
CREATE FUNCTION ordermesh.next_edition() RETURNS trigger
    LANGUAGE plpgsql AS $$
BEGIN
    IF (NEW.state <> OLD.state AND NEW.state IN ('VERIFIED', 'THAWED'))
       OR (NEW.state = OLD.state AND NEW.state IN ('DROPPED', 'RESTORED', 'WANTED')
           AND (NEW.order_count, NEW.journal_count) IS DISTINCT FROM (OLD.order_count, OLD.journal_count)) THEN
        NEW.edition := OLD.edition + 1;
    END IF;
    RETURN NEW;
END $$;
CREATE TRIGGER next_edition BEFORE UPDATE ON ordermesh.archive_months FOR EACH ROW EXECUTE FUNCTION ordermesh.next_edition();

-- Refuses every change of a month that is being archived. SQLSTATE SH002; the detail says which month it is.
CREATE FUNCTION ordermesh.refuse_frozen() RETURNS trigger
    LANGUAGE plpgsql AS $$
BEGIN
    RAISE 'this month is archived' USING ERRCODE = 'SH002', DETAIL = json_build_object('month', TG_ARGV[0])::text;
END $$;

-- From when until when a partition by time has rows; nothing for a table that is none, or a default one. The one place that reads bounds.
CREATE FUNCTION ordermesh.bounds_of(p_table oid) RETURNS TABLE (begins_at timestamptz, ends_at timestamptz)
    LANGUAGE sql STABLE
AS $$
    SELECT b[1]::timestamptz, b[2]::timestamptz
      FROM pg_class c, regexp_match(pg_get_expr(c.relpartbound, c.oid), 'FROM \(''([^'']+)''\) TO \(''([^'']+)''\)') AS b
     WHERE c.oid = p_table AND b IS NOT NULL
$$;

-- The partition of a table that begins at an instant, by its bounds; NULL when there is none.
CREATE FUNCTION ordermesh.leaf_of(p_parent text, p_begins timestamptz) RETURNS oid
    LANGUAGE sql STABLE SET timezone = 'UTC'
    RETURN (SELECT i.inhrelid FROM pg_inherits i, ordermesh.bounds_of(i.inhrelid) b
             WHERE i.inhparent = to_regclass('ordermesh.' || p_parent) AND NOT i.inhdetachpending AND b.begins_at = p_begins);

-- The months that hang on the tables.
CREATE FUNCTION ordermesh.months_here() RETURNS TABLE (begins_at timestamptz)
    LANGUAGE sql STABLE SET timezone = 'UTC'
AS $$
    SELECT b.begins_at FROM pg_inherits i, ordermesh.bounds_of(i.inhrelid) b WHERE i.inhparent = 'ordermesh.orders'::regclass
$$;

-- Why a month cannot be frozen now; empty when it can. p_until: a month that ends later is too young.
CREATE FUNCTION ordermesh.month_blockers(p_month date, p_until timestamptz) RETURNS text[]
    LANGUAGE sql STABLE SET timezone = 'UTC'
    RETURN (WITH m AS (SELECT p_month::timestamptz AS begins, (p_month + interval '1 month')::timestamptz AS ends)
            SELECT array_remove(ARRAY[
                CASE WHEN m.ends > p_until THEN 'TOO_YOUNG' END,
                CASE WHEN ordermesh.leaf_of('orders', m.begins) IS NULL
                       OR ordermesh.leaf_of('order_journal', m.begins) IS NULL THEN 'NO_TABLE' END,
                CASE WHEN EXISTS (SELECT FROM ordermesh.order_timers t WHERE t.created_at >= m.begins AND t.created_at < m.ends)
                     THEN 'UNSETTLED_ORDERS' END,
                CASE WHEN EXISTS (SELECT FROM ordermesh.dead_letters d
                                   WHERE d.closed_at IS NULL AND d.created_at >= m.begins AND d.created_at < m.ends)
                     THEN 'OPEN_DEAD_LETTERS' END,
                CASE WHEN EXISTS (SELECT FROM ordermesh.quarantine q WHERE q.created_at >= m.begins AND q.created_at < m.ends)
                     THEN 'NOT_SEARCHABLE' END,
                CASE WHEN EXISTS (SELECT FROM ordermesh.months_here() h LEFT JOIN ordermesh.archive_months a USING (begins_at)
                                   WHERE h.begins_at < m.begins AND a.frozen_at IS NULL)
                       OR EXISTS (SELECT FROM ordermesh.archive_months a WHERE a.month < p_month AND a.reach = 'RESTORED')
                     THEN 'OLDER_MONTH_FIRST' END,
                -- Either would be met by DETACH CONCURRENTLY only, when readers have turned to the copies already.
                CASE WHEN EXISTS (SELECT FROM pg_partitioned_table t WHERE t.partdefid <> 0
                                     AND t.partrelid IN ('ordermesh.orders'::regclass, 'ordermesh.order_journal'::regclass))
                     THEN 'HAS_DEFAULT' END,
                CASE WHEN EXISTS (SELECT FROM pg_constraint c WHERE c.contype = 'f'
                                     AND c.confrelid IN ('ordermesh.orders'::regclass, 'ordermesh.order_journal'::regclass,
                                                         ordermesh.leaf_of('orders', m.begins),
                                                         ordermesh.leaf_of('order_journal', m.begins)))
                     THEN 'IS_REFERENCED' END], NULL)
              FROM m);

-- Stops every change of a month for good, in one step with saying so. Returns why not, or an empty list. Waits for those who
-- write to the month's own tables, and for nobody else.
CREATE FUNCTION ordermesh.freeze_month(p_month date, p_fence bigint, p_until timestamptz) RETURNS text[]
    LANGUAGE plpgsql SET timezone = 'UTC' SET lock_timeout = '2s' AS $$
DECLARE
    m ordermesh.archive_months;
    leaf oid;
    blockers text[];
BEGIN
    PERFORM FROM ordermesh.archive_lease WHERE fence = p_fence FOR SHARE;
    IF NOT FOUND THEN RETURN ARRAY['FENCED']; END IF;
    IF (SELECT is_halted FROM ordermesh.archive_lease) THEN RETURN ARRAY['HALTED']; END IF;
    SELECT * INTO m FROM ordermesh.archive_months WHERE month = p_month AND state = 'WANTED' FOR UPDATE;
    IF NOT FOUND THEN RETURN ARRAY['FENCED']; END IF;
    m.orders_oid := ordermesh.leaf_of('orders', m.begins_at);
    m.journal_oid := ordermesh.leaf_of('order_journal', m.begins_at);
    IF m.orders_oid IS NULL OR m.journal_oid IS NULL THEN RETURN ARRAY['NO_TABLE']; END IF;
    FOREACH leaf IN ARRAY ARRAY[m.orders_oid, m.journal_oid] LOOP
        EXECUTE format('LOCK TABLE %s IN SHARE ROW EXCLUSIVE MODE', leaf::regclass);
    END LOOP;
    -- Asked again below the locks: nobody changes an order of the month any more.
    blockers := ordermesh.month_blockers(p_month, p_until);
    IF cardinality(blockers) > 0 THEN RETURN blockers; END IF;
    FOREACH leaf IN ARRAY ARRAY[m.orders_oid, m.journal_oid] LOOP
        EXECUTE format('CREATE OR REPLACE TRIGGER frozen BEFORE INSERT OR UPDATE OR DELETE ON %s '
                       'FOR EACH ROW EXECUTE FUNCTION ordermesh.refuse_frozen(%L)', leaf::regclass, to_char(p_month, 'YYYY-MM'));
        EXECUTE format('CREATE OR REPLACE TRIGGER frozen_truncate BEFORE TRUNCATE ON %s '
                       'FOR EACH STATEMENT EXECUTE FUNCTION ordermesh.refuse_frozen(%L)', leaf::regclass, to_char(p_month, 'YYYY-MM'));
        EXECUTE format('ALTER TABLE %s ENABLE ALWAYS TRIGGER frozen', leaf::regclass);
        EXECUTE format('ALTER TABLE %s ENABLE ALWAYS TRIGGER frozen_truncate', leaf::regclass);
    END LOOP;
    UPDATE ordermesh.archive_months
       SET state = 'FROZEN', orders_oid = m.orders_oid, journal_oid = m.journal_oid, frozen_at = clock_timestamp(),
           updated_at = clock_timestamp(), failures = 0, not_before = 'epoch', note = ''
     WHERE month = p_month;
    RETURN ARRAY[]::text[];
END $$;

-- Lets changes of a month that nobody serves from its copy happen again. Returns whether this was done.
CREATE FUNCTION ordermesh.thaw_month(p_month date, p_fence bigint) RETURNS boolean
    LANGUAGE plpgsql SET lock_timeout = '2s' AS $$
DECLARE
    m ordermesh.archive_months;
    leaf oid;
BEGIN
    PERFORM FROM ordermesh.archive_lease WHERE fence = p_fence FOR SHARE;
    IF NOT FOUND THEN RETURN false; END IF;
    SELECT * INTO m FROM ordermesh.archive_months
     WHERE month = p_month AND committed_at IS NULL AND state IN ('WANTED', 'FROZEN', 'PLANNED', 'EXPORTED', 'VERIFIED') FOR UPDATE;
    IF NOT FOUND THEN RETURN false; END IF;
    FOREACH leaf IN ARRAY array_remove(ARRAY[m.orders_oid, m.journal_oid], NULL) LOOP
        EXECUTE format('DROP TRIGGER IF EXISTS frozen ON %s', leaf::regclass);
        EXECUTE format('DROP TRIGGER IF EXISTS frozen_truncate ON %s', leaf::regclass);
    END LOOP;
    DELETE FROM ordermesh.archive_parts WHERE archive_id = m.archive_id;
    UPDATE ordermesh.archive_months
       SET state = 'THAWED', frozen_at = NULL, orders_oid = NULL, journal_oid = NULL, order_count = NULL, journal_count = NULL,
           orders_hash = NULL, journal_hash = NULL, manifest_key = '', manifest_version = '', manifest_sha256 = '',
           updated_at = clock_timestamp()
     WHERE month = p_month;
    RETURN true;
END $$;

-- Whether everything that happened before a month was frozen can be searched.
CREATE FUNCTION ordermesh.is_searchable(p_at timestamptz) RETURNS boolean
    LANGUAGE sql STABLE
    RETURN (SELECT count(*) FILTER (WHERE w.source_at >= p_at) = max(i.partition_count)
              FROM ordermesh.shard_identity i
              LEFT JOIN ordermesh.watermarks w ON w.stream_partition >= i.partition_base
                                              AND w.stream_partition < i.partition_base + i.partition_count);

-- Cuts a frozen month into parts of about so many bytes of rows. Returns how many; NULL when it was not to be done; -1 while an
-- order of it was settled less than 72 hours ago, since its request may be repeated until then and has to find it. Notes by what
-- the tables are recognised, since nothing is copied before: what is proven has to be what was copied.
CREATE FUNCTION ordermesh.plan_month(p_month date, p_fence bigint, p_part_bytes bigint) RETURNS int
    LANGUAGE plpgsql SET timezone = 'UTC' AS $$
DECLARE
    m ordermesh.archive_months;
    planned int;
    is_fresh boolean;
    orders record;
    journal record;
BEGIN
    SELECT * INTO m FROM ordermesh.archive_months WHERE month = p_month AND state = 'FROZEN';
    IF NOT FOUND THEN RETURN NULL; END IF;
    EXECUTE format('SELECT max(settled_at) > ordermesh.clock() - interval ''72 hours'' FROM %s', m.orders_oid::regclass) INTO is_fresh;
    IF is_fresh THEN RETURN -1; END IF;
    SELECT * INTO orders FROM ordermesh.hash_of(m.orders_oid, 'orders');
    SELECT * INTO journal FROM ordermesh.hash_of(m.journal_oid, 'order_journal');
    DELETE FROM ordermesh.archive_parts WHERE archive_id = m.archive_id;
    EXECUTE format($plan$
        INSERT INTO ordermesh.archive_parts (archive_id, part, after_user, after_created_at, after_order,
                                             until_user, until_created_at, until_order, order_count, journal_count)
        WITH journal AS (
            SELECT order_id, created_at, count(*) AS entries, sum(pg_column_size(j.*)) AS bytes FROM %s j GROUP BY 1, 2),
        weighed AS (
            SELECT o.user_id, o.created_at, o.order_id, row_number() OVER w AS orders,
                   sum(coalesce(j.entries, 0)) OVER w AS entries,
                   sum(pg_column_size(o.*) + coalesce(j.bytes, 0)) OVER w::bigint / $2 AS nth
              FROM %s o LEFT JOIN journal j USING (order_id, created_at)
            WINDOW w AS (ORDER BY o.user_id, o.created_at, o.order_id ROWS UNBOUNDED PRECEDING)),
        cut AS (
            SELECT *, lead(nth) OVER w IS DISTINCT FROM nth AS is_last FROM weighed
            WINDOW w AS (ORDER BY user_id, created_at, order_id))
        SELECT $1, row_number() OVER w - 1,
               lag(user_id, 1, '') OVER w, lag(created_at, 1, $3) OVER w,
               lag(order_id, 1, '00000000-0000-0000-0000-000000000000') OVER w,
               user_id, created_at, order_id, orders - lag(orders, 1, 0::bigint) OVER w, entries - lag(entries, 1, 0::numeric) OVER w
          FROM cut WHERE is_last
        WINDOW w AS (ORDER BY user_id, created_at, order_id)$plan$, m.journal_oid::regclass, m.orders_oid::regclass)
      USING m.archive_id, p_part_bytes, m.begins_at;
    GET DIAGNOSTICS planned = ROW_COUNT;
    -- Last, so that the lease can be renewed meanwhile; without it nothing of this has happened.
    IF NOT ordermesh.move_month(p_month, p_fence, 'FROZEN', 'PLANNED') THEN
        RAISE 'another archiver has this shard' USING ERRCODE = '40001';
    END IF;
    UPDATE ordermesh.archive_months
       SET order_count = orders.row_count, journal_count = journal.row_count, orders_hash = orders.hash, journal_hash = journal.hash
     WHERE month = p_month;
    RETURN planned;
END $$;

-- Takes a month from one state to the next, for the holder of the lease only. Returns whether this was done.
CREATE FUNCTION ordermesh.move_month(p_month date, p_fence bigint, p_from text, p_to text) RETURNS boolean
    LANGUAGE plpgsql AS $$
BEGIN
    PERFORM FROM ordermesh.archive_lease WHERE fence = p_fence FOR SHARE;
    IF NOT FOUND THEN RETURN false; END IF;
    UPDATE ordermesh.archive_months
       SET state = p_to, failures = 0, not_before = 'epoch', note = '', updated_at = clock_timestamp()
     WHERE month = p_month AND state = p_from AND quarantined = '';
    RETURN FOUND;
END $$;

-- How many rows a table of orders, or of their journal, has, and a number that changes with any of them. By a fixed list of columns, since
-- a column that is added later changes no row.
CREATE FUNCTION ordermesh.hash_of(p_table oid, p_of text, OUT row_count bigint, OUT hash numeric)
    LANGUAGE plpgsql STABLE SET timezone = 'UTC' SET datestyle = 'ISO' AS $$
BEGIN
    EXECUTE format('SELECT count(*), coalesce(sum(hashtextextended(ROW(%s)::text, 0)::numeric), 0) FROM %s',
        CASE p_of
            WHEN 'orders' THEN
                'order_id, created_at, user_id, bucket, route_epoch, read_routing, version, status, stage, kind, legs, leg, attempt, '
                'amount_minor, currency_code, currency_exp, description, labels, upstream_ref, failure_reason, basis, request_id, '
                'updated_at, settled_at, erased_at, traceparent, schema_version'
            WHEN 'order_journal' THEN
                'order_id, created_at, user_id, bucket, route_epoch, version, event_id, kind, from_status, to_status, from_stage, '
                'to_stage, leg, attempt, actor, proof, evidence, traceparent, at'
        END, p_table::regclass)
       INTO row_count, hash;
END $$;

-- Says that every row of a month is in a segment that was read back, and notes by what the table is recognised until it is dropped.
-- Returns why not, or an empty list.
CREATE FUNCTION ordermesh.prove_month(p_month date, p_fence bigint) RETURNS text[]
    LANGUAGE plpgsql AS $$
DECLARE
    m ordermesh.archive_months;
    orders record;
    journal record;
    copied record;
BEGIN
    -- Asked again below, with a lock: reading the tables takes long, and the lease is renewed meanwhile.
    SELECT a.* INTO m FROM ordermesh.archive_months a, ordermesh.archive_lease l
     WHERE a.month = p_month AND a.state = 'EXPORTED' AND l.fence = p_fence;
    IF NOT FOUND THEN RETURN ARRAY['FENCED']; END IF;
    SELECT * INTO orders FROM ordermesh.hash_of(m.orders_oid, 'orders');
    SELECT * INTO journal FROM ordermesh.hash_of(m.journal_oid, 'order_journal');
    SELECT coalesce(sum(s.row_count) FILTER (WHERE s.of_table = 'orders'), 0) AS orders,
           coalesce(sum(s.row_count) FILTER (WHERE s.of_table = 'order_journal'), 0) AS journal,
           count(*) FILTER (WHERE s.verified_at IS NULL) AS unread,
           count(*) - 2 * count(DISTINCT p.part) AS lacking
      INTO copied
      FROM ordermesh.archive_parts p LEFT JOIN ordermesh.archive_segments s USING (archive_id, part)
     WHERE p.archive_id = m.archive_id;
    IF copied.unread > 0 OR copied.lacking <> 0 THEN RETURN ARRAY['NOT_READ_BACK']; END IF;
    IF copied.orders <> orders.row_count OR copied.journal <> journal.row_count THEN
        RETURN ARRAY[format('ROWS: orders %s of %s, journal %s of %s',
                            copied.orders, orders.row_count, copied.journal, journal.row_count)];
    END IF;
    -- One that was planned before this was noted has nothing to be held against.
    IF m.orders_hash IS NOT NULL AND (orders.row_count, orders.hash, journal.row_count, journal.hash)
       IS DISTINCT FROM (m.order_count, m.orders_hash, m.journal_count, m.journal_hash) THEN
        RETURN ARRAY['DRIFTED: the tables are not what was copied'];
    END IF;
    PERFORM FROM ordermesh.archive_lease WHERE fence = p_fence FOR SHARE;
    IF NOT FOUND THEN RETURN ARRAY['FENCED']; END IF;
    UPDATE ordermesh.archive_months
       SET state = 'VERIFIED', order_count = orders.row_count, journal_count = journal.row_count,
           orders_hash = orders.hash, journal_hash = journal.hash,
           failures = 0, not_before = 'epoch', note = '', updated_at = clock_timestamp()
     WHERE month = p_month AND state = 'EXPORTED' AND quarantined = '';
    RETURN CASE WHEN FOUND THEN ARRAY[]::text[] ELSE ARRAY['FENCED'] END;
END $$;

-- The one moment at which readers turn to the copy; those of older months first. Returns why not, or an empty list.
CREATE FUNCTION ordermesh.commit_month(p_month date, p_fence bigint, p_key text, p_version text, p_sha256 text, p_settle interval)
    RETURNS text[] LANGUAGE plpgsql AS $$
BEGIN
    PERFORM FROM ordermesh.archive_lease WHERE fence = p_fence FOR SHARE;
    IF NOT FOUND THEN RETURN ARRAY['FENCED']; END IF;
    IF EXISTS (SELECT FROM ordermesh.months_here() h LEFT JOIN ordermesh.archive_months a USING (begins_at)
                WHERE h.begins_at < p_month::timestamp AT TIME ZONE 'UTC' AND a.committed_at IS NULL)
       OR EXISTS (SELECT FROM ordermesh.archive_months a WHERE a.month < p_month AND a.reach = 'RESTORED') THEN
        RETURN ARRAY['OLDER_MONTH_FIRST'];
    END IF;
    UPDATE ordermesh.archive_months
       SET state = 'COMMITTED', committed_at = clock_timestamp(), detach_from = clock_timestamp() + p_settle,
           manifest_key = p_key, manifest_version = p_version, manifest_sha256 = p_sha256,
           failures = 0, not_before = 'epoch', note = '', updated_at = clock_timestamp()
     WHERE month = p_month AND state = 'VERIFIED' AND quarantined = '' AND reach IN ('COMMITTED', 'GRACE', 'DROPPED');
    RETURN CASE WHEN FOUND THEN ARRAY[]::text[] ELSE ARRAY['FENCED'] END;
END $$;

-- Notes that the tables of a month stand alone. Returns whether that is so and was noted.
CREATE FUNCTION ordermesh.part_with_month(p_month date, p_fence bigint, p_grace interval) RETURNS boolean
    LANGUAGE plpgsql AS $$
BEGIN
    PERFORM FROM ordermesh.archive_lease WHERE fence = p_fence FOR SHARE;
    IF NOT FOUND THEN RETURN false; END IF;
    UPDATE ordermesh.archive_months m
       SET state = 'GRACE', detached_at = clock_timestamp(), drop_from = clock_timestamp() + p_grace,
           failures = 0, not_before = 'epoch', note = '', updated_at = clock_timestamp()
     WHERE m.month = p_month AND m.state = 'DETACHING' AND m.quarantined = ''
       AND NOT EXISTS (SELECT FROM pg_inherits i WHERE i.inhrelid IN (m.orders_oid, m.journal_oid));
    RETURN FOUND;
END $$;

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
CREATE FUNCTION ordermesh.drop_month(p_month date, p_fence bigint) RETURNS text[]
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

INSERT INTO schema_migrations (name) VALUES ('0009_archive'), ('0016_partition_bounds'), ('0017_archive_order'), ('0019_archive_locks'), ('0021_what_was_copied'),
       ('0027_archive_gate');
