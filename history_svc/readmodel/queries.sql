-- Statements of the read model in a table. Indices are partitions; a name that is none is said, never skipped.

-- name: create_index
-- Make an index when it is missing.
SELECT create_index($1);

-- name: drop_index
-- Remove an index with its documents.
SELECT drop_index($1);

-- name: read_identities
-- Which of some indices are there, and which ones they are.
SELECT name, cluster_uuid, index_uuid FROM indices WHERE name = ANY ($1::text[]);

-- name: count_missing
-- How many of some indices are not there.
SELECT count(*) FROM unnest($1::text[]) AS asked (name) WHERE asked.name NOT IN (SELECT name FROM indices);

-- name: put_documents
-- Put documents into their indices, each order once; only over an older version, or over the same one too when $1.
-- Rows in the order of their keys, so that two writers cannot wait for each other. Returns what was not stored, by its
-- number: `is_missing` when there is no such index, otherwise it is there in this version or a newer one.
WITH given AS MATERIALIZED (
    SELECT g.*, g.index_name NOT IN (SELECT name FROM indices) AS is_missing
      FROM unnest($2::text[], $3::uuid[], $4::text[], $5::bigint[], $6::bigint[], $7::text[], $8::text[], $9::text[],
                  $10::bigint[], $11::text[], $12::bigint[], $13::bigint[], $14::boolean[], $15::text[])
           WITH ORDINALITY AS g (index_name, order_id, user_id, version, created_us, status, kind, currency_code,
                                 amount_minor, terms, stream_partition, h32, deleted, shown, number)
), stored AS (
    INSERT INTO documents AS d (index_name, order_id, user_id, version, created_us, status, kind, currency_code,
                                amount_minor, terms, stream_partition, h32, deleted, shown)
    SELECT index_name, order_id, user_id, version, created_us, status, kind, currency_code, amount_minor,
           string_to_array(terms, ' '), stream_partition, h32, deleted, shown::json
      FROM given
     WHERE NOT is_missing
     ORDER BY index_name, order_id
    ON CONFLICT (index_name, order_id) DO UPDATE
       SET user_id = excluded.user_id, version = excluded.version, created_us = excluded.created_us,
           status = excluded.status, kind = excluded.kind, currency_code = excluded.currency_code,
           amount_minor = excluded.amount_minor, terms = excluded.terms,
           stream_partition = excluded.stream_partition, h32 = excluded.h32, deleted = excluded.deleted,
           shown = excluded.shown
     WHERE d.version < excluded.version OR ($1::boolean AND d.version = excluded.version)
    RETURNING index_name, order_id
)
SELECT g.number, g.is_missing
  FROM given g
 WHERE (g.index_name, g.order_id) NOT IN (SELECT index_name, order_id FROM stored);

-- name: search_documents
-- The newest documents of a window, newest first, and how many of the indices ($1 names, $2 $3 identities) are not there or
-- are other ones than these. One row at least. The plan holds locks on the partitions it reads, and the snapshot comes
-- after it: while the statement runs, none of them can be dropped or replaced, so it is these that were read. In the
-- indices $15 (NULL: in none) only the documents of some stream partitions count: index $16 with partition $17.
WITH page AS (
    SELECT order_id, created_us, version, shown::text AS shown
      FROM documents
     WHERE index_name = ANY ($1::text[])
       AND ($4::text IS NULL OR user_id = $4)
       AND created_us >= $5
       AND created_us <= $6
       AND (created_us, order_id) < ($6, $7::uuid)
       AND ($8::text IS NULL OR status = $8)
       AND ($9::text IS NULL OR kind = $9)
       AND ($10::text IS NULL OR currency_code = $10)
       AND ($11::bigint IS NULL OR amount_minor >= $11)
       AND ($12::bigint IS NULL OR amount_minor <= $12)
       AND terms @> $13::text[]
       AND NOT deleted
       AND ($15::text[] IS NULL OR index_name <> ALL ($15)
            OR (index_name, stream_partition) IN (SELECT name, partition FROM unnest($16::text[], $17::bigint[]) AS kept (name, partition)))
     ORDER BY created_us DESC, order_id DESC
     LIMIT $14
)
SELECT s.strange, p.*
  FROM (SELECT count(*) AS strange FROM unnest($1::text[], $2::text[], $3::text[]) AS meant (name, cluster_uuid, index_uuid)
         WHERE (meant.name, meant.cluster_uuid, meant.index_uuid) NOT IN
               (SELECT name, cluster_uuid, index_uuid FROM indices)) s
  LEFT JOIN page p ON true
 ORDER BY p.created_us DESC, p.order_id DESC;

-- name: add_up_days
-- An index summed up by stream partition and day, for some partitions.
SELECT stream_partition, created_us / 86400000000 AS day, count(*) AS orders, sum(version)::bigint AS versions,
       sum(h32)::bigint AS hashes
  FROM documents
 WHERE index_name = $1
   AND stream_partition = ANY ($2::bigint[])
   AND NOT deleted
 GROUP BY 1, 2
 ORDER BY 1, 2;

-- name: read_entries
-- Orders and versions of one stream partition in a span of time, by order id, after one of them.
SELECT order_id::text AS order_id, version
  FROM documents
 WHERE index_name = $1
   AND stream_partition = $2
   AND created_us >= $3
   AND created_us < $4
   AND ($5::uuid IS NULL OR order_id > $5)
   AND NOT deleted
 ORDER BY order_id
 LIMIT $6;
