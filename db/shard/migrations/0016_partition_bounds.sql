-- The bounds of partitions are read by one expression.

SET search_path = ordermesh, public;

-- From when until when a partition by time has rows; nothing for a table that is none, or a default one. The one place that reads bounds.
CREATE FUNCTION ordermesh.bounds_of(p_table oid) RETURNS TABLE (begins_at timestamptz, ends_at timestamptz)
    LANGUAGE sql STABLE
AS $$
    SELECT b[1]::timestamptz, b[2]::timestamptz
      FROM pg_class c, regexp_match(pg_get_expr(c.relpartbound, c.oid), 'FROM \(''([^'']+)''\) TO \(''([^'']+)''\)') AS b
     WHERE c.oid = p_table AND b IS NOT NULL
$$;

-- The partition of a table that begins at an instant, by its bounds; NULL when there is none.
CREATE OR REPLACE FUNCTION ordermesh.leaf_of(p_parent text, p_begins timestamptz) RETURNS oid
    LANGUAGE sql STABLE SET timezone = 'UTC'
    RETURN (SELECT i.inhrelid FROM pg_inherits i, ordermesh.bounds_of(i.inhrelid) b
             WHERE i.inhparent = to_regclass('ordermesh.' || p_parent) AND NOT i.inhdetachpending AND b.begins_at = p_begins);

-- The months that hang on the tables.
CREATE OR REPLACE FUNCTION ordermesh.months_here() RETURNS TABLE (begins_at timestamptz)
    LANGUAGE sql STABLE SET timezone = 'UTC'
AS $$
    SELECT b.begins_at FROM pg_inherits i, ordermesh.bounds_of(i.inhrelid) b WHERE i.inhparent = 'ordermesh.orders'::regclass
$$;

INSERT INTO schema_migrations (name) VALUES ('0016_partition_bounds');
