-- The archive's catalog on one shard. Every change names the fence of the lease under which it is made.

-- name: take_lease
-- Take the shard, or keep it.
-- $1: holder, what nobody else is called; $2: how long. The fence, for who had it or found it free; no row otherwise.
UPDATE ordermesh.archive_lease
   SET fence = fence + CASE WHEN holder = $1 AND lease_until > clock_timestamp() THEN 0 ELSE 1 END,
       holder = $1, lease_until = clock_timestamp() + $2
 WHERE lease_until <= clock_timestamp() OR holder = $1
RETURNING fence;

-- name: renew_lease
-- Keep the shard for longer.
-- $1: fence; $2: how long. Whether it is still held.
UPDATE ordermesh.archive_lease SET lease_until = clock_timestamp() + $2 WHERE fence = $1 RETURNING true;

-- name: give_lease_back
-- Let the next one begin at once. $1: fence.
UPDATE ordermesh.archive_lease SET lease_until = 'epoch', holder = '' WHERE fence = $1;

-- name: control
-- Who has the shard, the kill switch, and the clock.
SELECT l.fence, l.holder, l.lease_until, l.is_halted, l.actor, l.reason, clock_timestamp() AS at FROM ordermesh.archive_lease l;

-- name: halt
-- Set the kill switch.
-- $1: whether; $2: who; $3: why.
UPDATE ordermesh.archive_lease SET is_halted = $1, actor = $2, reason = $3, changed_at = clock_timestamp();

-- name: months
-- Every month that was ever asked for.
SELECT * FROM ordermesh.archive_months ORDER BY month;

-- name: overview
-- Every month that the shard has tables of or that was ever asked for, with how far it is. $1: those that end later are
-- too young.
WITH here AS (
    SELECT (date_trunc('month', b.begins_at AT TIME ZONE 'UTC'))::date AS month,
           sum(CASE WHEN i.inhparent = 'ordermesh.orders'::regclass THEN greatest(c.reltuples, 0) ELSE 0 END)::bigint AS rows,
           sum(pg_total_relation_size(c.oid))::bigint AS bytes, sum(pg_relation_size(c.oid))::bigint AS row_bytes
      FROM pg_inherits i JOIN pg_class c ON c.oid = i.inhrelid CROSS JOIN ordermesh.bounds_of(c.oid) b
     WHERE i.inhparent IN ('ordermesh.orders'::regclass, 'ordermesh.order_journal'::regclass)
     GROUP BY 1),
stored AS (
    SELECT p.archive_id, count(DISTINCT p.part) AS parts, count(s.key) AS segments, sum(s.size_bytes)::bigint AS bytes,
           count(s.verified_at) AS verified, count(s.restored_at) AS restored, min(s.verified_at) AS verified_at,
           count(*) FILTER (WHERE s.check_from <= clock_timestamp())::int AS due,
           max(s.locked_until) FILTER (WHERE s.locked_until > clock_timestamp()) AS locked_until
      FROM ordermesh.archive_parts p LEFT JOIN ordermesh.archive_segments s USING (archive_id, part)
     GROUP BY 1)
SELECT month, m.state, m.reach, coalesce(m.quarantined, '') AS quarantined, coalesce(m.note, '') AS note,
       coalesce(m.order_count, h.rows, 0) AS order_count, s.bytes AS stored_bytes, s.parts, s.segments, s.verified, s.restored,
       s.verified_at, s.locked_until,
       CASE WHEN coalesce(m.quarantined, '') = '' THEN s.due WHEN r.archive_id IS NULL THEN 0 ELSE greatest(s.due, 1) END AS due,
       coalesce(ordermesh.legal_hold(month, NULL), '') AS legal_hold,
       coalesce(h.bytes, pg_total_relation_size(m.orders_oid) + pg_total_relation_size(m.journal_oid), 0) AS table_bytes,
       coalesce(h.row_bytes, 0) AS row_bytes,
       m.committed_at, m.detach_from, m.drop_from, coalesce(m.actor, '') AS actor, coalesce(m.reason, '') AS reason,
       CASE WHEN h.month IS NULL OR m.state NOT IN ('WANTED', 'THAWED', 'RESTORED') THEN '{}'
            ELSE ordermesh.month_blockers(month, $1) END AS blockers
  FROM here h FULL JOIN ordermesh.archive_months m USING (month) LEFT JOIN stored s ON s.archive_id = m.archive_id
  LEFT JOIN (SELECT archive_id FROM ordermesh.archive_releases WHERE ended_at IS NULL) AS r ON r.archive_id = m.archive_id
 ORDER BY month;

-- name: floor
-- Before this instant lists are not answered from the tables; NULL when nothing is archived.
SELECT nullif(ordermesh.archive_floor(), '-infinity');

-- name: state_of
-- Where a month stands; no row when it was never asked for. $1: month.
SELECT state FROM ordermesh.archive_months WHERE month = $1;

-- name: wish
-- Which wish a request was. $1: request.
SELECT month, reach FROM ordermesh.archive_wishes WHERE request_id = $1;

-- name: want
-- Ask for a month that stands where somebody saw it.
-- $1: request, NULL when nobody repeats it; $2: month; $3: archive_id; $4: reach; $5: where it was seen, NULL for nowhere; $6: whether
-- it stays as it is; $7: actor; $8: reason. DONE; KNOWN, REUSED when the request was made before, for the same or another wish; MOVED.
SELECT ordermesh.want_month($1, $2, $3, $4, $5, $6, $7, $8);

-- name: freeze
-- Stop changes of a month. $1: month; $2: fence; $3: those that end later are too young.
SELECT ordermesh.freeze_month($1, $2, $3);

-- name: thaw
-- Let changes of a month happen again. $1: month; $2: fence.
SELECT ordermesh.thaw_month($1, $2);

-- name: is_searchable
-- Whether the read model has everything that happened before $1.
SELECT ordermesh.is_searchable($1);

-- name: plan
-- Cut a frozen month into parts. $1: month; $2: fence; $3: bytes of rows in a part.
SELECT ordermesh.plan_month($1, $2, $3);

-- name: move
-- Take a month to its next state. $1: month; $2: fence; $3: from; $4: to.
SELECT ordermesh.move_month($1, $2, $3, $4);

-- name: parts
-- The parts of a month, with the tables in which their rows are. $1: archive_id.
SELECT p.*, m.orders_oid::regclass::text AS orders_table, m.journal_oid::regclass::text AS journal_table
  FROM ordermesh.archive_parts p JOIN ordermesh.archive_months m USING (archive_id)
 WHERE p.archive_id = $1 ORDER BY p.part;

-- name: segments
-- The segments of a month, orders before journal. $1: archive_id.
SELECT * FROM ordermesh.archive_segments WHERE archive_id = $1 ORDER BY part, of_table DESC;

-- name: add_segment
-- Note which object holds a part of a table.
-- $1: fence; $2: archive_id; $3: part; $4: table; $5: key; $6: version; $7: etag; $8: size; $9: sha256; $10: rows; $11: facts;
-- $12: until when it is locked.
WITH held AS (SELECT FROM ordermesh.archive_lease WHERE fence = $1 FOR SHARE)
INSERT INTO ordermesh.archive_segments
       (archive_id, part, of_table, key, version_id, etag, size_bytes, sha256, row_count, facts, locked_until, exported_at)
SELECT m.archive_id, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, clock_timestamp()
  FROM held, ordermesh.archive_months m WHERE m.archive_id = $2 AND m.state = 'PLANNED' AND m.quarantined = ''
RETURNING true;

-- name: forget_segment
-- A segment that is not what was written is exported again, under another key. $1: fence; $2: archive_id; $3: part; $4: table.
WITH held AS (SELECT FROM ordermesh.archive_lease WHERE fence = $1 FOR SHARE),
back AS (UPDATE ordermesh.archive_months m SET state = 'PLANNED', damages = damages + 1, updated_at = clock_timestamp()
           FROM held WHERE m.archive_id = $2 AND m.state IN ('EXPORTED', 'PLANNED') AND m.quarantined = '' RETURNING m.archive_id)
DELETE FROM ordermesh.archive_segments s USING back
 WHERE s.archive_id = back.archive_id AND s.part = $3 AND s.of_table = $4 RETURNING true;

-- name: verified
-- Every byte was read and compared. $1: fence; $2: archive_id; $3: part; $4: table; $5: sha256; $6: how long that is enough.
WITH held AS (SELECT FROM ordermesh.archive_lease WHERE fence = $1 FOR SHARE)
UPDATE ordermesh.archive_segments s
   SET verified_at = clock_timestamp(), seen_at = clock_timestamp(), check_from = clock_timestamp() + $6
  FROM held WHERE s.archive_id = $2 AND s.part = $3 AND s.of_table = $4 AND s.sha256 = $5 RETURNING true;

-- name: due_check
-- The segment that is to be read once more before all others, of months that readers read from their copies. Of those in quarantine
-- only when somebody asked for it. $1: keys of objects that come after all others.
SELECT s.*, m.month FROM ordermesh.archive_segments s JOIN ordermesh.archive_months m USING (archive_id)
 WHERE m.committed_at IS NOT NULL AND s.check_from <= clock_timestamp()
   AND (m.quarantined = '' OR EXISTS (SELECT FROM ordermesh.archive_releases r WHERE r.archive_id = m.archive_id AND r.ended_at IS NULL))
 ORDER BY s.key = ANY($1), s.check_from, s.key LIMIT 1;

-- name: check_month
-- Let a month's segments be read once more now; one in quarantine is let go when all are whole. $1: month; $2: actor.
WITH due AS (UPDATE ordermesh.archive_segments s SET check_from = clock_timestamp()
               FROM ordermesh.archive_months m
              WHERE m.month = $1 AND m.archive_id = s.archive_id AND m.committed_at IS NOT NULL)
INSERT INTO ordermesh.archive_releases (archive_id, month, quarantined, actor, asked_at)
SELECT archive_id, month, quarantined, $2, clock_timestamp() FROM ordermesh.archive_months
 WHERE month = $1 AND committed_at IS NOT NULL AND quarantined <> ''
ON CONFLICT (archive_id) WHERE ended_at IS NULL DO UPDATE SET actor = excluded.actor, asked_at = excluded.asked_at;

-- name: put_back
-- Let another version of a segment's object count, which has the very bytes; the manifest names the old one until it is stored anew.
-- $1: fence; $2: archive_id; $3: part; $4: table; $5: sha256; $6: version; $7: etag.
WITH held AS (SELECT FROM ordermesh.archive_lease WHERE fence = $1 FOR SHARE),
numbered AS (UPDATE ordermesh.archive_months m SET edition = edition + 1, updated_at = clock_timestamp()
               FROM held, ordermesh.archive_segments s
              WHERE m.archive_id = $2 AND s.archive_id = $2 AND s.part = $3 AND s.of_table = $4 AND s.sha256 = $5 RETURNING m.archive_id)
UPDATE ordermesh.archive_segments s SET version_id = $6, etag = $7
  FROM numbered WHERE s.archive_id = numbered.archive_id AND s.part = $3 AND s.of_table = $4 AND s.sha256 = $5 RETURNING true;

-- name: note_manifest
-- Note where a month's manifest is now. $1: fence; $2: archive_id; $3: key; $4: version; $5: sha256. The old one is left behind by the
-- youngest erasure that took rows out of the month and is not over: it names whom that erases.
WITH held AS (SELECT FROM ordermesh.archive_lease WHERE fence = $1 FOR SHARE),
old AS (SELECT m.manifest_key, m.manifest_version FROM ordermesh.archive_months m, held WHERE m.archive_id = $2 FOR UPDATE OF m),
left_behind AS (
    INSERT INTO ordermesh.archive_replaced (key, version_id, erasure_id, archive_id, row_count, at)
    SELECT o.manifest_key, o.manifest_version, e.erasure_id, $2, 0, clock_timestamp()
      FROM old o, (SELECT r.erasure_id FROM ordermesh.archive_replaced r JOIN ordermesh.archive_erasures w USING (erasure_id)
                    WHERE r.archive_id = $2 AND r.row_count > 0 AND w.ended_at IS NULL ORDER BY w.created_at DESC LIMIT 1) e
     WHERE o.manifest_key <> $3
    ON CONFLICT (key) DO NOTHING)
UPDATE ordermesh.archive_months m SET manifest_key = $3, manifest_version = $4, manifest_sha256 = $5, updated_at = clock_timestamp()
  FROM old WHERE m.archive_id = $2 RETURNING true;

-- name: release
-- Let months out of quarantine of which every segment was read back and is whole since somebody asked; which, and who. $1: fence.
WITH held AS (SELECT FROM ordermesh.archive_lease WHERE fence = $1 FOR SHARE),
proven AS (UPDATE ordermesh.archive_releases r SET ended_at = clock_timestamp()
             FROM held, ordermesh.archive_months m
            WHERE r.ended_at IS NULL AND m.archive_id = r.archive_id
              AND NOT EXISTS (SELECT FROM ordermesh.archive_segments s
                               WHERE s.archive_id = r.archive_id AND (s.verified_at IS NULL OR s.verified_at < r.asked_at))
        RETURNING r.archive_id, r.actor)
UPDATE ordermesh.archive_months m
   SET quarantined = '', note = '', failures = 0, damages = 0, not_before = 'epoch', updated_at = clock_timestamp()
  FROM proven WHERE m.archive_id = proven.archive_id AND m.quarantined <> ''
RETURNING m.month, proven.actor;

-- name: seen
-- The object is there as it was written. As `verified`.
WITH held AS (SELECT FROM ordermesh.archive_lease WHERE fence = $1 FOR SHARE)
UPDATE ordermesh.archive_segments s SET seen_at = clock_timestamp()
  FROM held WHERE s.archive_id = $2 AND s.part = $3 AND s.of_table = $4 AND s.sha256 = $5 RETURNING true;

-- name: sums_by_part
-- What Postgres itself says of the rows of each part, in one walk over all of a table. {table}; {by}, {sums}: as Shape says;
-- $1 to $3: the keys with which the parts end, in their order. A row's part is the number of those below its key; only of users with
-- whom a part ends is more than the name looked at.
SELECT t.part, {sums}
  FROM (SELECT r.*, CASE WHEN r.user_id = ANY ($1::text[])
                         THEN (SELECT count(*)::int FROM unnest($1::text[], $2::timestamptz[], $3::uuid[]) AS u (user_id, created_at, order_id)
                                WHERE (u.user_id, u.created_at, u.order_id) < (r.user_id, r.created_at, r.order_id))
                         ELSE width_bucket(r.user_id, $1::text[]) END AS part
          FROM {table} AS r) AS t
 GROUP BY t.part, {by};

-- name: prove
-- Note that a month is proven. $1: month; $2: fence.
SELECT ordermesh.prove_month($1, $2);

-- name: raise_edition
-- Number what a month's manifest says higher. $1: fence; $2: archive_id; $3: edition.
WITH held AS (SELECT FROM ordermesh.archive_lease WHERE fence = $1 FOR SHARE)
UPDATE ordermesh.archive_months SET edition = $3 FROM held WHERE archive_id = $2 AND edition < $3 RETURNING true;

-- name: commit
-- Turn readers to the copy. $1: month; $2: fence; $3: manifest; $4: its version; $5: its sha256; $6: settle.
SELECT ordermesh.commit_month($1, $2, $3, $4, $5, $6);

-- name: attached
-- Which tables of a month hang on a parent: the table, its parent, and whether a detach of it was cut off.
SELECT i.inhrelid::regclass::text AS leaf, i.inhparent::regclass::text AS parent, i.inhdetachpending AS is_pending
  FROM pg_inherits i WHERE i.inhrelid IN ($1::oid, $2::oid) ORDER BY 1;

-- name: drifted
-- Whether the tables of a month are not what was proven of them. $1: month.
SELECT (o.row_count, o.hash, j.row_count, j.hash) IS DISTINCT FROM (m.order_count, m.orders_hash, m.journal_count, m.journal_hash)
  FROM ordermesh.archive_months m
 CROSS JOIN LATERAL ordermesh.hash_of(m.orders_oid, 'orders') AS o
 CROSS JOIN LATERAL ordermesh.hash_of(m.journal_oid, 'order_journal') AS j
 WHERE m.month = $1 AND m.state = 'DETACHING';

-- name: part_with
-- Note that tables stand alone. $1: month; $2: fence; $3: grace.
SELECT ordermesh.part_with_month($1, $2, $3);

-- name: drop
-- Give the tables of a month up. $1: month; $2: fence.
SELECT ordermesh.drop_month($1, $2);

-- name: orders_of_parts
-- What is copied of the orders of parts that follow each other: page by page as they lie, then sorted, then made text. The order of
-- the index would take a page for each row, and texts would be more to sort: each OFFSET 0 keeps the planner from its own idea of it.
-- {orders}: the table; {columns}, {order}: as Shape says; $1 to $3: after; $4 to $6: until.
SELECT {columns}
  FROM (SELECT *
          FROM (SELECT * FROM {orders} AS o
                 WHERE (o.user_id, o.created_at, o.order_id) > ($1::text COLLATE "C", $2::timestamptz, $3::uuid)
                   AND (o.user_id, o.created_at, o.order_id) <= ($4::text COLLATE "C", $5::timestamptz, $6::uuid)
                OFFSET 0) AS o
         ORDER BY {order} OFFSET 0) AS o
 ORDER BY {order};

-- name: journal_of_parts
-- The same of their journal, which is read from one end to the other: it has no index by user.
SELECT {columns}
  FROM (SELECT * FROM {journal} AS j
         WHERE (j.user_id, j.created_at, j.order_id) > ($1::text COLLATE "C", $2::timestamptz, $3::uuid)
           AND (j.user_id, j.created_at, j.order_id) <= ($4::text COLLATE "C", $5::timestamptz, $6::uuid)
         ORDER BY {order} OFFSET 0) AS j
 ORDER BY {order};

-- name: journal_of_orders
-- The same, looked up by the orders, whose index has the users: these in the order of their ids, in which the rows lie.
SELECT {columns}
  FROM (SELECT j.*
          FROM (SELECT o.order_id, o.created_at FROM {orders} AS o
                 WHERE (o.user_id, o.created_at, o.order_id) > ($1::text COLLATE "C", $2::timestamptz, $3::uuid)
                   AND (o.user_id, o.created_at, o.order_id) <= ($4::text COLLATE "C", $5::timestamptz, $6::uuid)
                 ORDER BY o.order_id, o.created_at OFFSET 0) AS o
          JOIN {journal} AS j USING (order_id, created_at)
         ORDER BY {order} OFFSET 0) AS j
 ORDER BY {order};

-- name: make_copied
-- Where COPY writes a segment's rows as text, until the transaction ends. {columns}: as Shape says.
CREATE TEMP TABLE copied ({columns}) ON COMMIT DROP;

-- name: copy_back
-- Make rows of what was copied as text. {table}; {columns}, {values}: as Shape says.
INSERT INTO {table} ({columns}) SELECT {values} FROM copied AS c;

-- name: adopt
-- Make the catalog of a month again. $1: manifest; $2: its key; $3: version; $4: sha256; $5: grace; $6: actor; $7: reason.
SELECT ordermesh.adopt_edition($1, $2, $3, $4, $5, $6, $7);

-- name: replace
-- Let a newer manifest take the place of a month's catalog. $1 to $7: as `adopt`; $8: the manifest that the catalog shows now.
SELECT ordermesh.replace_edition($1, $2, $3, $4, $5, $6, $7, $8);

-- name: tables_stand
-- How the tables of a month stand. $1: month; $2: when it begins.
SELECT ordermesh.tables_stand($1, $2);

-- name: adopt_amendment
-- Note an amendment again of its object; nothing when it is noted, or its user was erased since. $1 to $8: as `amend`; $9: when it was made.
INSERT INTO ordermesh.archive_amendments (amendment_id, order_id, user_id, created_at, note, changes, actor, reason, amended_at)
SELECT $1, $2, $3, $4::timestamptz, $5, $6, $7, $8, $9::timestamptz
 WHERE NOT EXISTS (SELECT FROM ordermesh.archive_erasures e WHERE e.user_id = $3 AND coalesce(e.ended_at, 'infinity') > $9)
ON CONFLICT (amendment_id) DO NOTHING RETURNING true;

-- name: want_erasure
-- $1: id; $2: user; $3: actor; $4: reason. The row, also of an earlier call.
WITH made AS (
    INSERT INTO ordermesh.archive_erasures (erasure_id, user_id, actor, reason, created_at)
    VALUES ($1, $2, $3, $4, clock_timestamp()) ON CONFLICT (erasure_id) DO NOTHING RETURNING *)
SELECT * FROM made UNION ALL SELECT * FROM ordermesh.archive_erasures WHERE erasure_id = $1 LIMIT 1;

-- name: due_erasure
-- The oldest wish that is not carried out and does not wait.
SELECT * FROM ordermesh.archive_erasures
 WHERE ended_at IS NULL AND not_before <= clock_timestamp() ORDER BY created_at, erasure_id LIMIT 1;

-- name: segments_of
-- The segments that may hold rows of a user, also of months whose copies nobody reads: yet, or any more. $1: user.
SELECT s.* FROM ordermesh.archive_segments s
  JOIN ordermesh.archive_parts p USING (archive_id, part) JOIN ordermesh.archive_months m USING (archive_id)
 WHERE p.after_user <= $1 AND p.until_user >= $1
 ORDER BY m.month, s.part, s.of_table DESC;

-- name: frozen_with
-- The months with orders of a user that are being copied and that readers read from the tables still. $1: user.
SELECT m.month FROM ordermesh.archive_months m
 WHERE m.frozen_at IS NOT NULL AND m.committed_at IS NULL
   AND EXISTS (SELECT FROM ordermesh.orders o WHERE o.user_id = $1 AND o.created_at >= m.begins_at AND o.created_at < m.ends_at)
 ORDER BY m.month;

-- name: rows_again
-- The rows that are about to go, as they were. {table}, {values}: as Shape says.
CREATE TEMP TABLE gone_{table} ON COMMIT DROP AS SELECT {values} FROM copied AS c;

-- name: drop_copied
-- So that the next segment's rows can be written as text.
DROP TABLE copied;

-- name: swap_segment
-- Let one segment take the place of another.
SELECT ordermesh.swap_segment($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13);

-- name: segment_locked
-- Note until when a segment is locked that took another one's place. $1: key; $2: until.
UPDATE ordermesh.archive_segments SET locked_until = $2 WHERE key = $1;

-- name: legal_hold
-- Why nothing of a month, or of a user, may be deleted; NULL when it may. $1: month; $2: user.
SELECT ordermesh.legal_hold($1, $2);

-- name: erased_months
-- The copies that an erasure took rows out of. $1: erasure.
SELECT DISTINCT archive_id FROM ordermesh.archive_replaced WHERE erasure_id = $1 AND row_count > 0;

-- name: erased_until
-- When an erasure last took something out, or was asked for: by the clock of the shard. $1: erasure.
SELECT GREATEST(created_at, (SELECT max(at) FROM ordermesh.archive_replaced WHERE erasure_id = $1))
  FROM ordermesh.archive_erasures WHERE erasure_id = $1;

-- name: unname_bounds
-- Let parts of a copy begin and end at orders that are left, where they did at one of a user: what is between the last order that is
-- left of the parts before and the bound went with him, so that a part has the same orders as before. Only of copies that nothing is
-- copied of by their bounds any more. $1: fence; $2: archive_id; $3: user.
WITH held AS (SELECT FROM ordermesh.archive_lease WHERE fence = $1 FOR SHARE),
copy AS (SELECT m.archive_id, m.begins_at FROM ordermesh.archive_months m, held
          WHERE m.archive_id = $2 AND m.state IN ('DROPPED', 'RESTORED', 'WANTED') FOR UPDATE OF m),
lasts AS (SELECT s.part, s.facts -> 'last' AS key FROM ordermesh.archive_segments s
           WHERE s.archive_id = $2 AND s.of_table = 'orders' AND jsonb_typeof(s.facts -> 'last') = 'array'),
bounds AS (SELECT p.part, CASE WHEN p.after_user = $3 THEN coalesce(a.key, f.key) END AS after,
                  CASE WHEN p.until_user = $3 THEN coalesce(u.key, f.key) END AS until
             FROM ordermesh.archive_parts p JOIN copy USING (archive_id)
            CROSS JOIN LATERAL jsonb_build_array('', copy.begins_at, '00000000-0000-0000-0000-000000000000') AS f (key)
             LEFT JOIN LATERAL (SELECT key FROM lasts l WHERE l.part < p.part ORDER BY l.part DESC LIMIT 1) AS a ON true
             LEFT JOIN LATERAL (SELECT key FROM lasts l WHERE l.part <= p.part ORDER BY l.part DESC LIMIT 1) AS u ON true
            WHERE $3 IN (p.after_user, p.until_user))
UPDATE ordermesh.archive_parts p
   SET after_user = coalesce(b.after ->> 0, p.after_user),
       after_created_at = coalesce((b.after ->> 1)::timestamptz, p.after_created_at),
       after_order = coalesce((b.after ->> 2)::uuid, p.after_order),
       until_user = coalesce(b.until ->> 0, p.until_user),
       until_created_at = coalesce((b.until ->> 1)::timestamptz, p.until_created_at),
       until_order = coalesce((b.until ->> 2)::uuid, p.until_order)
  FROM bounds b WHERE p.archive_id = $2 AND p.part = b.part;

-- name: renew_manifest
-- $1: fence; $2: erasure; $3: archive_id; $4: key; $5: version; $6: sha256. The old one is left behind.
WITH held AS (SELECT FROM ordermesh.archive_lease WHERE fence = $1 FOR SHARE),
old AS (SELECT m.manifest_key, m.manifest_version FROM ordermesh.archive_months m, held WHERE m.archive_id = $3 FOR UPDATE OF m),
left_behind AS (
    INSERT INTO ordermesh.archive_replaced (key, version_id, erasure_id, archive_id, row_count, at)
    SELECT manifest_key, manifest_version, $2, $3, 0, clock_timestamp() FROM old WHERE manifest_key <> $4
    ON CONFLICT (key) DO NOTHING)
UPDATE ordermesh.archive_months m SET manifest_key = $4, manifest_version = $5, manifest_sha256 = $6, updated_at = clock_timestamp()
  FROM old WHERE m.archive_id = $3 RETURNING true;

-- name: give_up_copy
-- Forget the copy of a month that readers read from the tables; its manifest is left behind by an erasure, its segments are strays.
-- No row without the lease, below a legal hold, or when the month stands elsewhere. $1: fence; $2: erasure; $3: archive_id; $4: note.
WITH held AS (SELECT FROM ordermesh.archive_lease WHERE fence = $1 FOR SHARE),
copy AS (SELECT m.archive_id, m.manifest_key, m.manifest_version
           FROM ordermesh.archive_months m, held, ordermesh.archive_erasures e
          WHERE m.archive_id = $3 AND m.state IN ('RESTORED', 'WANTED') AND m.committed_at IS NULL AND m.quarantined = ''
            AND ordermesh.tables_stand(m.month, m.begins_at) = 'HERE'
            AND e.erasure_id = $2 AND ordermesh.legal_hold(m.month, e.user_id) IS NULL FOR UPDATE OF m),
left_behind AS (
    INSERT INTO ordermesh.archive_replaced (key, version_id, erasure_id, archive_id, row_count, at)
    SELECT manifest_key, manifest_version, $2, archive_id, 0, clock_timestamp() FROM copy WHERE manifest_key <> ''
    ON CONFLICT (key) DO NOTHING),
gone AS (DELETE FROM ordermesh.archive_parts p USING copy WHERE p.archive_id = copy.archive_id)
UPDATE ordermesh.archive_months m
   SET order_count = NULL, journal_count = NULL, orders_hash = NULL, journal_hash = NULL,
       manifest_key = '', manifest_version = '', manifest_sha256 = '', note = left($4, 512), updated_at = clock_timestamp()
  FROM copy WHERE m.archive_id = copy.archive_id RETURNING true;

-- name: leave_behind
-- Let an object that nothing names be one that an erasure leaves behind. $1: fence; $2: erasure; $3: key; $4: version; $5: month.
WITH held AS (SELECT FROM ordermesh.archive_lease WHERE fence = $1 FOR SHARE)
INSERT INTO ordermesh.archive_replaced AS r (key, version_id, erasure_id, archive_id, row_count, at)
SELECT $3, $4, $2, coalesce((SELECT archive_id FROM ordermesh.archive_months WHERE to_char(month, 'YYYY-MM') = $5),
                            '00000000-0000-0000-0000-000000000000'), 0, clock_timestamp()
  FROM held WHERE NOT ordermesh.is_catalogued($3, NULL)
ON CONFLICT (key) DO UPDATE SET version_id = excluded.version_id, erasure_id = excluded.erasure_id, at = excluded.at, deleted_at = NULL
RETURNING true;

-- name: left_behind
-- Objects that an erasure left behind. $1: erasure.
SELECT key, version_id FROM ordermesh.archive_replaced WHERE erasure_id = $1 AND deleted_at IS NULL ORDER BY key;

-- name: note_deleted
-- Note that an object is gone. $1: fence; $2: erasure; $3: key.
WITH held AS (SELECT FROM ordermesh.archive_lease WHERE fence = $1 FOR SHARE)
UPDATE ordermesh.archive_replaced SET deleted_at = clock_timestamp()
  FROM held WHERE erasure_id = $2 AND key = $3 RETURNING true;

-- name: defer_erasure
-- Let an erasure wait. $1: fence; $2: erasure; $3: wait; $4: note.
WITH held AS (SELECT FROM ordermesh.archive_lease WHERE fence = $1 FOR SHARE)
UPDATE ordermesh.archive_erasures SET not_before = clock_timestamp() + $3, note = left($4, 512)
  FROM held WHERE erasure_id = $2 RETURNING true;

-- name: erase_amendments
-- Delete the amendments of a user, but for those of a month below a legal hold. $1: fence; $2: user. Nothing without the lease.
WITH held AS (SELECT FROM ordermesh.archive_lease WHERE fence = $1 FOR SHARE),
gone AS (DELETE FROM ordermesh.archive_amendments a USING held
          WHERE a.user_id = $2 AND ordermesh.legal_hold(date_trunc('month', a.created_at AT TIME ZONE 'UTC')::date, a.user_id) IS NULL)
SELECT true FROM held;

-- name: kept_amendments
-- The amendments of a user that a legal hold keeps, each with the hold. $1: user.
SELECT amendment_id, hold
  FROM ordermesh.archive_amendments a
 CROSS JOIN LATERAL ordermesh.legal_hold(date_trunc('month', a.created_at AT TIME ZONE 'UTC')::date, a.user_id) AS hold
 WHERE a.user_id = $1 AND hold IS NOT NULL;

-- name: end_erasure
-- Note that a user is erased. $1: fence; $2: erasure.
WITH held AS (SELECT FROM ordermesh.archive_lease WHERE fence = $1 FOR SHARE),
ended AS (UPDATE ordermesh.archive_erasures SET ended_at = clock_timestamp(), note = ''
            FROM held WHERE erasure_id = $2 AND ended_at IS NULL RETURNING user_id),
amendments AS (DELETE FROM ordermesh.archive_amendments a USING ended WHERE a.user_id = ended.user_id)
SELECT true FROM ended;

-- name: begin_restore
-- Make the tables of a month that comes back. $1: month; $2: fence.
SELECT ordermesh.begin_restore($1, $2);

-- name: restored
-- Note that a segment's rows are back, in their transaction. $1: fence; $2: archive_id; $3: part; $4: table.
WITH held AS (SELECT FROM ordermesh.archive_lease WHERE fence = $1 FOR SHARE)
UPDATE ordermesh.archive_segments s SET restored_at = clock_timestamp()
  FROM held, ordermesh.archive_months m
 WHERE s.archive_id = $2 AND s.part = $3 AND s.of_table = $4 AND s.restored_at IS NULL
   AND m.archive_id = s.archive_id AND m.state = 'RESTORING'
RETURNING true;

-- name: restore
-- Turn readers back to the tables. $1: month; $2: fence.
SELECT ordermesh.restore_month($1, $2);

-- name: table_names
-- The tables of a month as SQL writes them. $1: orders; $2: journal.
SELECT $1::oid::regclass::text AS orders, $2::oid::regclass::text AS order_journal;

-- name: quarantine
-- Nothing is done to the month until somebody says so; who wanted it to be let go has his answer. $1: month; $2: fence; $3: why.
WITH held AS (SELECT FROM ordermesh.archive_lease WHERE fence = $2 FOR SHARE),
answered AS (UPDATE ordermesh.archive_releases r SET ended_at = clock_timestamp(), note = left($3, 512)
               FROM held, ordermesh.archive_months m
              WHERE m.month = $1 AND r.archive_id = m.archive_id AND r.ended_at IS NULL)
UPDATE ordermesh.archive_months SET quarantined = left($3, 512), note = left($3, 512), updated_at = clock_timestamp()
  FROM held WHERE month = $1 RETURNING true;

-- name: defer
-- Let a month wait.
-- $1: month; $2: fence; $3: wait; $4: note; $5: whether it counts as a failure.
WITH held AS (SELECT FROM ordermesh.archive_lease WHERE fence = $2 FOR SHARE)
UPDATE ordermesh.archive_months
   SET not_before = clock_timestamp() + $3, note = left($4, 512), failures = failures + $5::int, updated_at = clock_timestamp()
  FROM held WHERE month = $1 RETURNING true;

-- name: lock_tables
-- For whoever attaches or detaches tables of the shard, as long as his session lives.
SELECT pg_try_advisory_lock(73, 0);

-- name: end_lock_holder
-- Ends the session that holds it; only for who has a newer fence.
SELECT pg_terminate_backend(pid) FROM pg_locks
 WHERE locktype = 'advisory' AND classid = 73 AND objid = 0 AND granted AND pid <> pg_backend_pid()
   AND database = (SELECT oid FROM pg_database WHERE datname = current_database());

-- name: may_detach
-- Whether this month is to be detached now, under this fence.
SELECT EXISTS (SELECT FROM ordermesh.archive_lease l, ordermesh.archive_months m
                WHERE l.fence = $2 AND NOT l.is_halted AND m.month = $1 AND m.state = 'DETACHING' AND m.quarantined = '');
