-- A month that comes back, or came, holds younger ones up as any other that is in the tables: what is in the archive is older than
-- what is not, so that a list ends where the archive begins and lacks nothing that is in the tables.

SET search_path = ordermesh, public;

CREATE OR REPLACE FUNCTION ordermesh.month_blockers(p_month date, p_until timestamptz) RETURNS text[]
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
                     THEN 'OLDER_MONTH_FIRST' END], NULL)
              FROM m);

CREATE OR REPLACE FUNCTION ordermesh.commit_month(p_month date, p_fence bigint, p_key text, p_version text, p_sha256 text, p_settle interval)
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

INSERT INTO schema_migrations (name) VALUES ('0017_archive_order');
