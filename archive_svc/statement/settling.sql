-- When a shard has all orders of a period that were being written as it ended. Outside of any transaction.

-- name: newer
-- A transaction id that is greater than those of all who write an order of the period; none while one may still arrive, by the shard's
-- own clock, and none at a replica. It is one of our own: the xmax of a snapshot would not do, as who writes may have that one or a
-- greater. The clock is read first. $1: when the period is over.
SELECT CASE WHEN NOT pg_is_in_recovery() AND clock_timestamp() >= $1::timestamptz + ordermesh.arrives_within() THEN pg_current_xact_id() END;

-- name: are_over
-- Whether every transaction with a smaller id has ended. $1: id.
SELECT pg_snapshot_xmin(pg_current_snapshot()) >= $1;
