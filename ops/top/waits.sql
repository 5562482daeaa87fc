-- What keeps others waiting in one shard, seen from its sessions.

-- name: holder
-- The transaction whose snapshot or id is the oldest, of a session or prepared: what it may still see, nobody cleans up, and changes
-- after it are not published.
SELECT who, state, age_s, query
  FROM (SELECT format('pid %s of %s', pid, coalesce(nullif(application_name, ''), 'somebody')) AS who,
               coalesce(state, '') AS state,
               extract(epoch FROM clock_timestamp() - xact_start)::float8 AS age_s,
               left(regexp_replace(coalesce(query, ''), '\s+', ' ', 'g'), 80) AS query
          FROM pg_stat_activity
         WHERE datname = current_database() AND pid <> pg_backend_pid() AND xact_start IS NOT NULL
           AND (backend_xmin IS NOT NULL OR backend_xid IS NOT NULL)
        UNION ALL
        SELECT format('transaction %s of %s', gid, owner), 'prepared',
               extract(epoch FROM clock_timestamp() - prepared)::float8, ''
          FROM pg_prepared_xacts WHERE database = current_database()) AS holders
 ORDER BY age_s DESC LIMIT 1;

-- name: held_from_outside
-- The replica or slot for which rows of the most transactions are kept: a query on a replica holds them as one of a session here does.
SELECT who, kept FROM (
        SELECT format('replica %s (pid %s here)', coalesce(nullif(application_name, ''), 'without a name'), pid) AS who,
               age(backend_xmin)::bigint AS kept
          FROM pg_stat_replication WHERE backend_xmin IS NOT NULL
        UNION ALL
        SELECT format('slot %s', slot_name), greatest(age(xmin), age(catalog_xmin))::bigint
          FROM pg_replication_slots WHERE xmin IS NOT NULL OR catalog_xmin IS NOT NULL) AS holders
 WHERE NOT pg_is_in_recovery()
 ORDER BY kept DESC LIMIT 1;

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
