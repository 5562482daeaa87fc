-- A month is only proven when it is what it was before it was copied.

SET search_path = ordermesh, public;

-- Cuts a frozen month into parts of about so many bytes of rows. Returns how many; NULL when it was not to be done; -1 while an
-- order of it was settled less than 72 hours ago, since its request may be repeated until then and has to find it. Notes by what
-- the tables are recognised, since nothing is copied before: what is proven has to be what was copied.
CREATE OR REPLACE FUNCTION ordermesh.plan_month(p_month date, p_fence bigint, p_part_bytes bigint) RETURNS int
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

-- Says that every row of a month is in a segment that was read back, and notes by what the table is recognised until it is dropped.
-- Returns why not, or an empty list.
CREATE OR REPLACE FUNCTION ordermesh.prove_month(p_month date, p_fence bigint) RETURNS text[]
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

-- What is on its way may have numbers of the last time it left.
UPDATE archive_months SET order_count = NULL, journal_count = NULL, orders_hash = NULL, journal_hash = NULL
 WHERE state IN ('WANTED', 'FROZEN', 'PLANNED', 'EXPORTED');

INSERT INTO schema_migrations (name) VALUES ('0021_what_was_copied');
