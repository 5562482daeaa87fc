-- A month is not frozen while DETACH ... CONCURRENTLY would be refused for it: beside a default partition, or under a foreign key.

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

INSERT INTO schema_migrations (name) VALUES ('0027_archive_gate');
