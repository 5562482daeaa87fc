-- How the archive of a shard stands, for its gauges. Only reads; needs no lease.

-- name: stays
-- The months that readers read from the tables, each with when it was asked for, given back or brought back last.
SELECT begins_at, m.state, m.reach,
       greatest(m.created_at, m.restored_at, CASE WHEN m.state = 'THAWED' THEN m.updated_at END) AS since
  FROM ordermesh.months_here() h FULL JOIN ordermesh.archive_months m USING (begins_at)
 WHERE m.committed_at IS NULL;

-- name: times
-- The shard's clock; when readers turned to a copy last; when the kill switch was set that is on; when the oldest erasure was asked for
-- that is not carried out, but those that a legal hold or a lock of S3 keeps.
SELECT clock_timestamp() AS at,
       (SELECT max(m.committed_at) FROM ordermesh.archive_months m) AS last_commit,
       (SELECT l.changed_at FROM ordermesh.archive_lease l WHERE l.is_halted) AS halted_since,
       (SELECT min(e.created_at) FROM ordermesh.archive_erasures e
         WHERE e.ended_at IS NULL AND e.note NOT LIKE '%LEGAL\_HOLD of %' AND e.note NOT LIKE '%the lock of %') AS erasure_since;
