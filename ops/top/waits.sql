-- What keeps others waiting in one shard, seen from its sessions.

-- name: holder
-- The session whose snapshot or transaction is the oldest: what it may still see, nobody cleans up, and changes after it
-- are not published.
SELECT pid, coalesce(application_name, '') AS application, coalesce(state, '') AS state,
       extract(epoch FROM clock_timestamp() - xact_start)::float8 AS age_s,
       left(regexp_replace(coalesce(query, ''), '\s+', ' ', 'g'), 80) AS query
  FROM pg_stat_activity
 WHERE datname = current_database() AND pid <> pg_backend_pid() AND xact_start IS NOT NULL
   AND (backend_xmin IS NOT NULL OR backend_xid IS NOT NULL)
 ORDER BY xact_start LIMIT 1;

-- name: blocked
-- How many sessions wait for a lock, and who holds what the longest waiting one wants.
SELECT count(*) OVER () AS sessions, pid, (pg_blocking_pids(pid))[1] AS held_by,
       extract(epoch FROM clock_timestamp() - query_start)::float8 AS waits_s
  FROM pg_stat_activity
 WHERE datname = current_database() AND wait_event_type = 'Lock'
 ORDER BY query_start LIMIT 1;

-- name: slots
-- The replication slot that keeps the most rows from being cleaned up, where one does.
SELECT slot_name AS slot, active, pg_wal_lsn_diff(pg_current_wal_lsn(), restart_lsn)::float8 AS behind_bytes
  FROM pg_replication_slots WHERE NOT pg_is_in_recovery() AND restart_lsn IS NOT NULL
 ORDER BY restart_lsn LIMIT 1;
