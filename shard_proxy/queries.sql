-- name: map_version
-- The version of the map; asked once a second.
SELECT version FROM map_head;

-- name: whole_map
-- The whole map in one statement, so from one snapshot: all of it is of the same version. Always one row.
SELECT h.version,
       clock_timestamp() AS read_at,
       (SELECT coalesce(json_agg(json_build_array(shard, vip, lane_target, history_target, state) ORDER BY shard), '[]')
          FROM shards) AS shards,
       (SELECT coalesce(json_agg(json_build_array(service, target) ORDER BY service), '[]') FROM services) AS services,
       (SELECT coalesce(json_agg(json_build_array(bucket, shard, epoch) ORDER BY bucket), '[]') FROM buckets) AS owners,
       (SELECT coalesce(json_agg(json_build_array(user_id, buckets, extract(epoch FROM created_at)) ORDER BY user_id), '[]')
          FROM vip_users) AS vips,
       (SELECT coalesce(json_agg(json_build_array(user_id, ever) ORDER BY user_id), '[]')
          FROM (SELECT user_id, array_agg(bucket ORDER BY since DESC, bucket) AS ever
                  FROM user_bucket GROUP BY user_id) AS u) AS ever
  FROM map_head AS h;
