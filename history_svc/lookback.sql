-- What a shard looks like from its read replica: a few bounded looks at small tables, for gauges. Times are as of the instant that the
-- replica shows: on one that stands still nothing grows older, since its primary may have seen to it long ago.

-- name: pending
-- How many orders are not done, by age, and how many of them are overdue; of the `$1` oldest, since ids begin
-- with their time. $2: how far this server is behind.
WITH waiting AS (
    SELECT clock_timestamp() - $2::interval - created_at AS age, clock_timestamp() - $2::interval - due_at AS overdue
      FROM order_timers ORDER BY order_id LIMIT $1
)
SELECT count(*) AS orders,
       count(*) FILTER (WHERE age < interval '1 minute') AS younger_than_1m,
       count(*) FILTER (WHERE age >= interval '1 minute' AND age < interval '10 minutes') AS older_than_1m,
       count(*) FILTER (WHERE age >= interval '10 minutes' AND age < interval '1 hour') AS older_than_10m,
       count(*) FILTER (WHERE age >= interval '1 hour' AND age < interval '1 day') AS older_than_1h,
       count(*) FILTER (WHERE age >= interval '1 day') AS older_than_1d,
       coalesce(extract(epoch FROM max(age)), 0)::float8 AS oldest_s,
       count(*) FILTER (WHERE overdue > interval '0') AS hanging,
       greatest(coalesce(extract(epoch FROM max(overdue)), 0), 0)::float8 AS most_overdue_s
  FROM waiting;

-- name: dead_letters
-- Open cases by reason and severity, for how long the oldest has been open, and in how many the upstream names another execution
-- than the one that it had named before; of the `$1` oldest. $2: how far this server is behind.
WITH open AS (
    SELECT reason, severity, order_id, created_at, evidence -> 'last' ->> 'upstream_ref' AS named,
           clock_timestamp() - $2::interval - opened_at AS age
      FROM dead_letters WHERE closed_at IS NULL ORDER BY opened_at, dead_letter_id LIMIT $1
)
SELECT c.reason, c.severity::text AS severity, count(*) AS cases, extract(epoch FROM max(c.age))::float8 AS oldest_s,
       count(*) FILTER (WHERE o.upstream_ref <> '' AND c.named <> o.upstream_ref) AS executed_twice
  FROM open c
  LEFT JOIN orders o ON c.severity = 1 AND o.order_id = c.order_id AND o.created_at = c.created_at
 GROUP BY c.reason, c.severity;

-- name: follows
-- Whether this server is a replica, whether it receives from its primary, and how far it is behind it: not at all when it has
-- replayed everything that it received and still receives; NULL when it has never replayed anything.
SELECT pg_is_in_recovery() AS is_replica,
       EXISTS (SELECT FROM pg_stat_wal_receiver WHERE status = 'streaming') AS streams,
       CASE WHEN NOT pg_is_in_recovery() THEN 0
            WHEN pg_last_wal_receive_lsn() = pg_last_wal_replay_lsn()
                 AND EXISTS (SELECT FROM pg_stat_wal_receiver) THEN 0
            ELSE extract(epoch FROM clock_timestamp() - pg_last_xact_replay_timestamp()) END::float8 AS lag_s;

-- name: place
-- Which shard this is, and how many holds keep claims away.
SELECT i.shard,
       (SELECT count(*) FROM holds WHERE lifted_at IS NULL
           AND (until_at IS NULL OR until_at > clock_timestamp())) AS holds
  FROM shard_identity i;
