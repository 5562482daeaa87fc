-- Orders of users of some buckets, with the changes that made them: $1 how many, $2 buckets, $3 first stream partition,
-- $4 how many stream partitions.
WITH made AS (
    SELECT n, ($2::int[])[1 + (n - 1) % cardinality($2::int[])] AS bucket,
           date_trunc('milliseconds', ordermesh.clock()) AS at
      FROM generate_series(1, $1::int) AS n
), named AS (
    SELECT n, bucket, at, (
               lpad(to_hex((extract(epoch FROM at) * 1000)::bigint), 12, '0') || '7'
               || substr(replace(gen_random_uuid()::text, '-', ''), 1, 3)
               || to_hex(((2::bigint << 14 | bucket >> 2) & 65535)::int)
               || lpad(to_hex(((bucket & 3) << 6 | (random() * 63)::int)), 2, '0')
               || substr(replace(gen_random_uuid()::text, '-', ''), 1, 10))::uuid AS order_id
      FROM made
), users AS (
    SELECT *, 'user-' || bucket AS user_id FROM named
)
INSERT INTO ordermesh.outbox (event_id, order_id, created_at, user_id, bucket, stream_partition, read_routing, version,
                              kind, occurred_at, payload, traceparent)
SELECT gen_random_uuid(), order_id, at, user_id, bucket, $3::int + bucket % $4::int, user_id, 1, 'OPENED', at,
       jsonb_build_object(
           'order_id', order_id, 'created_at', at, 'user_id', user_id, 'bucket', bucket, 'route_epoch', 1,
           'read_routing', user_id, 'version', 1, 'status', 'PENDING', 'stage', 'SUBMITTING', 'kind', 'payment',
           'legs', jsonb_build_array('payments'), 'leg', 0, 'attempt', 1, 'amount_minor', 1250, 'currency_code', 'EUR',
           'currency_exp', 2, 'description', 'a book of ' || n || ' pages', 'labels', jsonb_build_object('cart', '7'),
           'upstream_ref', '', 'failure_reason', '', 'basis', NULL, 'request_id', gen_random_uuid(), 'updated_at', at,
           'settled_at', NULL, 'erased_at', NULL, 'traceparent', '', 'schema_version', 1),
       '00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01'
  FROM users
 ORDER BY n
RETURNING event_id
