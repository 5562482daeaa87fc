-- What archive_svc asks of a shard.

-- name: now
-- The clock that rows are placed by.
SELECT ordermesh.clock();

-- name: list_partitions
-- The partitions of every partitioned table, by their bounds and not by their names; one row without bounds for a table
-- that has none, and for a default partition. What is being detached counts as gone.
SELECT parent.relname AS name,
       pg_get_expr(child.relpartbound, child.oid) = 'DEFAULT' AS is_default,
       bounds.begins_at AS begins, bounds.ends_at AS ends
  FROM pg_class AS parent
  LEFT JOIN pg_inherits AS link ON link.inhparent = parent.oid AND NOT link.inhdetachpending
  LEFT JOIN pg_class AS child ON child.oid = link.inhrelid
  LEFT JOIN LATERAL ordermesh.bounds_of(child.oid) AS bounds ON true
 WHERE parent.relkind = 'p' AND parent.relnamespace = 'ordermesh'::regnamespace
 ORDER BY 1, 3;

-- name: make_partition
-- Make one partition aside and attach it, as the only one who does so now; false when a table of this name is there.
-- $1: table; $2: suffix; $3: column; $4, $5: bounds.
WITH alone AS MATERIALIZED (SELECT pg_advisory_xact_lock(72, 0))
SELECT ordermesh.ensure_partition($1, $2, $3, $4, $5) FROM alone;
