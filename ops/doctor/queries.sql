-- name: partitions_end
-- The upper bound of the last partition of each partitioned table: rows of later times would be refused.
SELECT parent.relname AS name,
       max((regexp_match(pg_get_expr(child.relpartbound, child.oid), 'TO \(''([^'']+)''\)'))[1]::timestamptz) AS ends_at
  FROM pg_class AS parent
  JOIN pg_namespace AS space ON space.oid = parent.relnamespace AND space.nspname = 'ordermesh'
  LEFT JOIN pg_inherits AS link ON link.inhparent = parent.oid
  LEFT JOIN pg_class AS child ON child.oid = link.inhrelid
 WHERE parent.relkind = 'p'
 GROUP BY parent.relname
 ORDER BY parent.relname;

-- name: time_now
-- The clock that orders live by.
SELECT ordermesh.clock() AS at;

-- name: map_version
-- The version that the proxy should have by now.
SELECT version FROM ordermesh.map_head;

