-- A month of settled orders with two journal entries each, made in SQL: ten million would take Python an hour.

-- name: orders
-- $1: how many; $2: users; $3: first day; the last user has a tenth of all.
INSERT INTO ordermesh.orders_2023_08 (order_id, created_at, user_id, bucket, route_epoch, read_routing, version, status, stage, kind, legs,
    leg, attempt, amount_minor, currency_code, currency_exp, description, labels, upstream_ref, failure_reason, basis, request_id,
    updated_at, settled_at)
SELECT ordermesh_id, ordermesh.id_time(ordermesh_id), user_id, bucket, 1, user_id, 2, CASE WHEN n % 10 = 0 THEN 'FAILED' ELSE 'SUCCESS' END,
       'DONE', 'payment', '{payments}', 0, 1, 100 + n % 100000, 'EUR', 2, 'order number ' || n, jsonb_build_object('cart', n % 1000),
       CASE WHEN n % 10 = 0 THEN '' ELSE 'ref-' || md5(n::text) END, CASE WHEN n % 10 = 0 THEN 'DECLINED' ELSE '' END, 'UPSTREAM',
       md5('r' || n)::uuid, ordermesh.id_time(ordermesh_id) + interval '2 seconds', ordermesh.id_time(ordermesh_id) + interval '2 seconds'
  FROM (SELECT n, user_id, bucket, (lpad(to_hex($3::bigint + (n * 2400000000 / $1::bigint)), 12, '0') || '7' || lpad(to_hex(n % 4096), 3, '0')
               || to_hex(128 | (bucket >> 10)) || lpad(to_hex((bucket >> 2) & 255), 2, '0') || lpad(to_hex(((bucket & 3) << 6) | (n % 64)::int), 2, '0')
               || left(md5('i' || n), 10))::uuid AS ordermesh_id
          FROM (SELECT n, user_id, ordermesh.user_bucket(user_id) AS bucket
                  FROM (SELECT n, 'user.' || CASE WHEN n % 10 = 3 THEN $2::bigint ELSE n * 7919 % $2::bigint END AS user_id
                          FROM generate_series(1, $1::bigint) AS n) AS named) AS placed) AS made;

-- name: journal
-- The journal of these.
INSERT INTO ordermesh.order_journal_2023_08 (order_id, created_at, user_id, bucket, route_epoch, version, event_id, kind, from_status, to_status,
    from_stage, to_stage, leg, attempt, actor, proof, evidence, at)
SELECT o.order_id, o.created_at, o.user_id, o.bucket, 1, v, md5(o.order_id::text || v)::uuid, CASE v WHEN 1 THEN 'OPENED' ELSE 'VERDICT' END,
       CASE v WHEN 2 THEN 'PENDING' END, CASE v WHEN 1 THEN 'PENDING' ELSE o.status END, CASE v WHEN 2 THEN 'SUBMITTING' END,
       CASE v WHEN 1 THEN 'SUBMITTING' ELSE 'DONE' END, 0, 1, 'order_svc',
       CASE WHEN v = 2 THEN CASE o.status WHEN 'SUCCESS' THEN 'UPSTREAM_SUCCEEDED' ELSE 'UPSTREAM_FAILED' END END,
       jsonb_build_object('request', md5(o.order_id::text), 'took_ms', 12 + v), o.created_at + v * interval '1 second'
  FROM ordermesh.orders_2023_08 AS o, generate_series(1, 2) AS v;

-- name: forget
-- Let every part be exported once more.
WITH gone AS (DELETE FROM ordermesh.archive_segments)
UPDATE ordermesh.archive_months SET state = 'PLANNED', quarantined = '';

-- name: stored_rows
-- How many rows are in segments.
SELECT coalesce(sum(row_count), 0)::bigint FROM ordermesh.archive_segments;
