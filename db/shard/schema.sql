-- A shard: orders, what wakes them, what happened to them, and the fence that keeps other owners' rows out.
--
-- With schema_*.sql the sum of migrations/, for new databases; a test builds both and compares the
-- catalogs. Written by order_svc only; read by history_svc. Partitions are made by archive_svc; those of a new database by
-- ordermesh.ensure_partitions().

-- What an id says, who this shard is, which buckets it owns, and the trigger that refuses everybody else's rows.

CREATE SCHEMA ordermesh;

SET search_path = ordermesh, public;

CREATE TABLE schema_migrations (
    name       text        COLLATE "C" PRIMARY KEY,
    applied_at timestamptz NOT NULL DEFAULT clock_timestamp()
);
COMMENT ON TABLE schema_migrations IS 'The migrations this database has.';

-- The instant in an order id; the same as chassis.ids.id_time.
CREATE FUNCTION ordermesh.id_time(id uuid) RETURNS timestamptz
    LANGUAGE sql IMMUTABLE STRICT PARALLEL SAFE
    RETURN to_timestamp((('x' || encode(substring(uuid_send(id) FROM 1 FOR 6), 'hex'))::bit(48)::bigint) / 1000.0::float8);

-- The bucket in an order id; the same as chassis.ids.id_bucket.
CREATE FUNCTION ordermesh.id_bucket(id uuid) RETURNS int
    LANGUAGE sql IMMUTABLE STRICT PARALLEL SAFE
    RETURN ((get_byte(uuid_send(id), 8) & 63) << 10) | (get_byte(uuid_send(id), 9) << 2) | (get_byte(uuid_send(id), 10) >> 6);

-- The hashed bucket of a user; the same as chassis.ids.user_bucket. Vectors: alice 701, 42 1844, vip.1 4088.
CREATE FUNCTION ordermesh.user_bucket(user_id text) RETURNS int
    LANGUAGE sql IMMUTABLE STRICT PARALLEL SAFE
    RETURN (get_byte(sha256(convert_to(user_id, 'UTF8')), 0) << 4) | (get_byte(sha256(convert_to(user_id, 'UTF8')), 1) >> 4);

CREATE TABLE clock_offset (
    only_row boolean  PRIMARY KEY DEFAULT true CHECK (only_row),
    ahead    interval NOT NULL
);
COMMENT ON TABLE clock_offset IS 'Empty, except in tests, which let hours pass here in an instant.';

-- The time of this shard. A statement asks once, so that all its rows agree.
CREATE FUNCTION ordermesh.clock() RETURNS timestamptz
    LANGUAGE sql VOLATILE
    RETURN clock_timestamp() + COALESCE((SELECT ahead FROM ordermesh.clock_offset), interval '0');

-- An order whose id is older than this is not written: its caller gets a new id. So, as much later than a period's end, every order of
-- the period is here or is being written.
CREATE FUNCTION ordermesh.arrives_within() RETURNS interval
    LANGUAGE sql IMMUTABLE PARALLEL SAFE
    RETURN interval '5 s';

CREATE TABLE shard_identity (
    only_row        boolean PRIMARY KEY DEFAULT true CHECK (only_row),
    shard           text    COLLATE "C" NOT NULL CHECK (shard ~ '^[a-z][a-z0-9_]{0,31}$'),
    log_epoch       int     NOT NULL DEFAULT 1 CHECK (log_epoch >= 1),
    partition_base  int     NOT NULL DEFAULT 0 CHECK (partition_base >= 0),
    partition_count int     NOT NULL DEFAULT 8 CHECK (partition_count BETWEEN 1 AND 1024)
);
COMMENT ON TABLE shard_identity IS
    'One row. log_epoch grows after a failover that lost commits: xids repeat then. partition_*: this shard''s part of the stream.';

CREATE TABLE bucket_fence (
    bucket     int         PRIMARY KEY CHECK (bucket BETWEEN 0 AND 65535),
    epoch      bigint      NOT NULL CHECK (epoch >= 1),
    state      text        NOT NULL CHECK (state IN ('OWNED', 'MOVING', 'FROZEN_W', 'FROZEN_RW', 'INCOMING', 'MOVED')),
    owner      text        COLLATE "C" NOT NULL,
    changed_at timestamptz NOT NULL DEFAULT clock_timestamp(),
    left_epoch bigint      NOT NULL DEFAULT 0 CHECK (left_epoch >= 0),
    move_token bigint      NOT NULL DEFAULT 0 CHECK (move_token >= 0)
);
COMMENT ON TABLE bucket_fence IS 'Every bucket this shard owns or owned, and who owns it; without a row it was never here.';
COMMENT ON COLUMN bucket_fence.left_epoch IS
    'The last epoch at which a user left for another bucket: who has an older map must ask who that was, and may not guess.';
COMMENT ON COLUMN bucket_fence.move_token IS 'Of the last mover that was here; one that fell behind comes with a smaller one.';

-- BEFORE INSERT OR UPDATE OR DELETE FOR EACH ROW on every order table, ENABLE ALWAYS.
-- A writer says the epoch it was routed by, or NULL for "whatever it is, as long as we own the bucket", and gets it stamped.
CREATE FUNCTION ordermesh.fence() RETURNS trigger
    LANGUAGE plpgsql AS $$
DECLARE
    f ordermesh.bucket_fence;
    r record;
BEGIN
    IF TG_OP = 'DELETE' THEN r := OLD; ELSE r := NEW; END IF;
    IF current_setting('transaction_isolation') <> 'read committed' THEN
        RAISE 'order tables are written in READ COMMITTED only' USING ERRCODE = '25001';
    END IF;
    -- Whoever moves a bucket takes this lock exclusively, so he waits for the writers that passed and the next ones see his row.
    PERFORM pg_advisory_xact_lock_shared(71, r.bucket);
    SELECT * INTO f FROM ordermesh.bucket_fence WHERE bucket = r.bucket;
    IF f.state IS DISTINCT FROM 'OWNED' OR (TG_OP <> 'DELETE' AND r.route_epoch <> f.epoch) THEN
        RAISE 'stale route' USING ERRCODE = 'SH001',
            DETAIL = json_build_object('bucket', r.bucket, 'epoch', f.epoch, 'owner', f.owner, 'state', f.state,
                                       'left_epoch', f.left_epoch)::text;
    END IF;
    IF TG_OP = 'DELETE' THEN RETURN OLD; END IF;
    NEW.route_epoch := f.epoch;
    RETURN NEW;
END $$;

-- Names the shard, once. Returns whether it was unnamed.
CREATE FUNCTION ordermesh.identify_shard(p_shard text, p_partition_base int DEFAULT 0) RETURNS boolean
    LANGUAGE plpgsql AS $$
BEGIN
    INSERT INTO ordermesh.shard_identity (shard, partition_base) VALUES (p_shard, p_partition_base)
    ON CONFLICT (only_row) DO NOTHING;
    IF FOUND THEN
        RETURN true;
    END IF;
    IF (SELECT shard FROM ordermesh.shard_identity) <> p_shard THEN
        RAISE 'this database is shard %, not %', (SELECT shard FROM ordermesh.shard_identity), p_shard USING ERRCODE = '23514';
    END IF;
    RETURN false;
END $$;

-- Makes this shard, named p_owner, the owner of a run of buckets it has never seen. Returns how many that were.
CREATE FUNCTION ordermesh.own_buckets(p_first int, p_last int, p_owner text) RETURNS int
    LANGUAGE plpgsql AS $$
DECLARE
    owned int;
BEGIN
    INSERT INTO ordermesh.bucket_fence (bucket, epoch, state, owner)
    SELECT b, 1, 'OWNED', p_owner FROM generate_series(p_first, p_last) AS b
    ON CONFLICT (bucket) DO NOTHING;
    GET DIAGNOSTICS owned = ROW_COUNT;
    RETURN owned;
END $$;

INSERT INTO schema_migrations (name) VALUES ('0001_ids_and_fence');

-- Orders, their journal, the outbox and the keys that make a repeated create harmless.

CREATE TABLE orders (
    order_id       uuid        NOT NULL,
    created_at     timestamptz NOT NULL,
    user_id        text        COLLATE "C" NOT NULL,
    bucket         int         NOT NULL,
    route_epoch    bigint      NOT NULL,
    read_routing   text        COLLATE "C" NOT NULL,
    version        bigint      NOT NULL CHECK (version >= 1),
    status         text        NOT NULL CHECK (status IN ('PENDING', 'SUCCESS', 'FAILED')),
    stage          text        NOT NULL CHECK (stage IN ('SUBMITTING', 'ACCEPTED', 'UNKNOWN', 'READY', 'PARKED', 'DONE')),
    kind           text        NOT NULL,
    legs           text[]      NOT NULL CHECK (cardinality(legs) BETWEEN 1 AND 8),
    leg            int         NOT NULL CHECK (leg >= 0 AND leg < cardinality(legs)),
    attempt        int         NOT NULL CHECK (attempt >= 0),
    amount_minor   bigint      NOT NULL CHECK (amount_minor > 0),
    currency_code  text        NOT NULL CHECK (currency_code ~ '^[A-Z]{3}$'),
    currency_exp   smallint    NOT NULL CHECK (currency_exp BETWEEN 0 AND 4),
    description    text        NOT NULL DEFAULT '' CHECK (char_length(description) <= 512),
    labels         jsonb       NOT NULL DEFAULT '{}' CHECK (octet_length(labels::text) <= 16384),
    upstream_ref   text        NOT NULL DEFAULT '',
    failure_reason text        NOT NULL DEFAULT '',
    basis          text        CHECK (basis IN ('UPSTREAM', 'NOT_FOUND_FINAL', 'OPERATOR')),
    request_id     uuid        NOT NULL,
    updated_at     timestamptz NOT NULL,
    settled_at     timestamptz,
    erased_at      timestamptz,
    traceparent    text        NOT NULL DEFAULT '',
    schema_version smallint    NOT NULL DEFAULT 1,
    PRIMARY KEY (order_id, created_at),
    CONSTRAINT created_at_is_in_the_id CHECK (created_at = ordermesh.id_time(order_id)),
    CONSTRAINT bucket_is_in_the_id CHECK (bucket = ordermesh.id_bucket(order_id)),
    CONSTRAINT done_means_settled CHECK ((stage = 'DONE') = (status <> 'PENDING')),
    CONSTRAINT settled_has_a_time CHECK ((stage = 'DONE') = (settled_at IS NOT NULL)),
    CONSTRAINT settled_has_a_basis CHECK ((stage = 'DONE') = (basis IS NOT NULL)),
    CONSTRAINT failed_has_a_reason CHECK (status <> 'FAILED' OR failure_reason <> ''),
    CONSTRAINT success_has_a_reference CHECK (status <> 'SUCCESS' OR upstream_ref <> '')
) PARTITION BY RANGE (created_at);
COMMENT ON TABLE orders IS 'The orders of this shard, by month of creation. Written by order_svc only.';
-- Nothing that an update touches is indexed, so that updates stay within their page.
CREATE INDEX orders_of_user ON orders (user_id, created_at, order_id);

CREATE TABLE order_journal (
    order_id    uuid        NOT NULL,
    created_at  timestamptz NOT NULL,
    user_id     text        COLLATE "C" NOT NULL,
    bucket      int         NOT NULL,
    route_epoch bigint      NOT NULL,
    version     bigint      NOT NULL CHECK (version >= 1),
    event_id    uuid        NOT NULL,
    kind        text        NOT NULL,
    from_status text,
    to_status   text        NOT NULL,
    from_stage  text,
    to_stage    text        NOT NULL,
    leg         int         NOT NULL,
    attempt     int         NOT NULL,
    actor       text        NOT NULL,
    proof       text        CHECK (proof IN ('UPSTREAM_SUCCEEDED', 'UPSTREAM_FAILED', 'NOT_FOUND_FINAL', 'OPERATOR')),
    evidence    jsonb       NOT NULL CHECK (octet_length(evidence::text) <= 4096),
    traceparent text        NOT NULL DEFAULT '',
    at          timestamptz NOT NULL,
    PRIMARY KEY (order_id, created_at, version),
    UNIQUE (order_id, created_at, event_id),
    CONSTRAINT success_is_never_left CHECK (from_status IS DISTINCT FROM 'SUCCESS' OR to_status = 'SUCCESS'),
    CONSTRAINT failed_has_proof CHECK (to_status <> 'FAILED' OR from_status = 'FAILED' OR proof IS NOT NULL)
) PARTITION BY RANGE (created_at);
COMMENT ON TABLE order_journal IS 'Everything that happened to an order: versions 1..n, append-only, in the month of its order.';

CREATE SEQUENCE outbox_seq;

CREATE TABLE outbox (
    event_id         uuid        NOT NULL,
    order_id         uuid        NOT NULL,
    created_at       timestamptz NOT NULL,
    user_id          text        COLLATE "C" NOT NULL,
    bucket           int         NOT NULL,
    route_epoch      bigint      NOT NULL,
    stream_partition int         NOT NULL,
    read_routing     text        COLLATE "C" NOT NULL,
    version          bigint      NOT NULL,
    kind             text        NOT NULL,
    xid              xid8        NOT NULL DEFAULT pg_current_xact_id(),
    seq              bigint      NOT NULL DEFAULT nextval('ordermesh.outbox_seq'),
    occurred_at      timestamptz NOT NULL,
    payload          jsonb       NOT NULL CHECK (octet_length(payload::text) <= 65536),
    schema_ver       smallint    NOT NULL DEFAULT 1,
    origin           text        NOT NULL DEFAULT 'order_svc',
    traceparent      text        NOT NULL DEFAULT '',
    tracestate       text        NOT NULL DEFAULT ''
) PARTITION BY RANGE (occurred_at);
COMMENT ON TABLE outbox IS 'What the relay publishes: the order''s full state after each change, by day, append-only.';
CREATE INDEX outbox_tail ON outbox (xid, seq);
CREATE INDEX outbox_of_user ON outbox (user_id, xid, seq);

CREATE TABLE idempotency_keys (
    user_id     text        COLLATE "C" NOT NULL,
    request_id  uuid        NOT NULL,
    order_id    uuid        NOT NULL,
    created_at  timestamptz NOT NULL,
    bucket      int         NOT NULL,
    route_epoch bigint      NOT NULL,
    fingerprint bytea       NOT NULL,
    expires_at  timestamptz,
    PRIMARY KEY (user_id, request_id)
) WITH (fillfactor = 85);
COMMENT ON TABLE idempotency_keys IS 'Which order a request made. A key expires 72 h after its order settled, never before.';
CREATE INDEX idempotency_keys_expiring ON idempotency_keys (expires_at) WHERE expires_at IS NOT NULL;

CREATE TRIGGER fence BEFORE INSERT OR UPDATE OR DELETE ON orders FOR EACH ROW EXECUTE FUNCTION ordermesh.fence();
ALTER TABLE orders ENABLE ALWAYS TRIGGER fence;
CREATE TRIGGER fence BEFORE INSERT OR UPDATE OR DELETE ON order_journal FOR EACH ROW EXECUTE FUNCTION ordermesh.fence();
ALTER TABLE order_journal ENABLE ALWAYS TRIGGER fence;
CREATE TRIGGER fence BEFORE INSERT OR UPDATE OR DELETE ON outbox FOR EACH ROW EXECUTE FUNCTION ordermesh.fence();
ALTER TABLE outbox ENABLE ALWAYS TRIGGER fence;
CREATE TRIGGER fence BEFORE INSERT OR UPDATE OR DELETE ON idempotency_keys FOR EACH ROW EXECUTE FUNCTION ordermesh.fence();
ALTER TABLE idempotency_keys ENABLE ALWAYS TRIGGER fence;

-- Makes one partition when it is missing. Made aside and attached, since that lets reads and writes of the parent go on.
CREATE FUNCTION ordermesh.ensure_partition(p_parent text, p_suffix text, p_column text, p_from timestamptz, p_to timestamptz)
    RETURNS boolean
    LANGUAGE plpgsql AS $$
DECLARE
    child text := p_parent || '_' || p_suffix;
BEGIN
    IF to_regclass('ordermesh.' || child) IS NOT NULL THEN
        RETURN false;
    END IF;
    EXECUTE format(
        'CREATE TABLE ordermesh.%I (LIKE ordermesh.%I INCLUDING DEFAULTS INCLUDING CONSTRAINTS, '
        'CONSTRAINT %I CHECK (%I >= %L AND %I < %L)) WITH (fillfactor = 85)',
        child, p_parent, child || '_range', p_column, p_from, p_column, p_to);
    EXECUTE format(
        'ALTER TABLE ordermesh.%I ATTACH PARTITION ordermesh.%I FOR VALUES FROM (%L) TO (%L)', p_parent, child, p_from, p_to);
    RETURN true;
END $$;

-- Makes the partitions of orders and journal for the month of an instant. Returns how many were missing.
CREATE FUNCTION ordermesh.ensure_month(p_at timestamptz) RETURNS int
    LANGUAGE plpgsql AS $$
DECLARE
    first timestamptz := date_trunc('month', p_at, 'UTC');
    next timestamptz := date_trunc('month', first + interval '32 days', 'UTC');
    suffix text := to_char(first AT TIME ZONE 'UTC', 'YYYY_MM');
BEGIN
    RETURN ordermesh.ensure_partition('orders', suffix, 'created_at', first, next)::int
         + ordermesh.ensure_partition('order_journal', suffix, 'created_at', first, next)::int;
END $$;

-- Makes what is missing: months from an hour ago to three ahead, days of the outbox to seven ahead. Returns how many.
CREATE FUNCTION ordermesh.ensure_partitions() RETURNS int
    LANGUAGE plpgsql AS $$
DECLARE
    here timestamptz := ordermesh.clock();
    month timestamptz;
    day timestamptz;
    made int := 0;
BEGIN
    -- Two processes that start together would make the same table.
    PERFORM pg_advisory_xact_lock(72, 0);
    -- An id is made a moment before its row, by a clock that may be slow by seconds: so the first hour keeps the last month.
    month := date_trunc('month', here - interval '1 hour', 'UTC');
    WHILE month <= here + interval '3 months' LOOP
        made := made + ordermesh.ensure_month(month);
        month := date_trunc('month', month + interval '32 days', 'UTC');
    END LOOP;
    FOR ahead IN 0..7 LOOP
        day := date_trunc('day', here, 'UTC') + ahead * interval '24 hours';
        made := made + ordermesh.ensure_partition(
            'outbox', to_char(day AT TIME ZONE 'UTC', 'YYYY_MM_DD'), 'occurred_at', day, day + interval '24 hours')::int;
    END LOOP;
    RETURN made;
END $$;

INSERT INTO schema_migrations (name) VALUES ('0002_orders');

-- What wakes an order, what keeps recovery away from it, and the cases of those that automation gave up.

CREATE TABLE order_timers (
    order_id           uuid        PRIMARY KEY,
    created_at         timestamptz NOT NULL,
    user_id            text        COLLATE "C" NOT NULL,
    bucket             int         NOT NULL,
    route_epoch        bigint      NOT NULL,
    upstream           text        NOT NULL,
    stage              text        NOT NULL,
    class              text        NOT NULL CHECK (class IN ('SUBMIT', 'PROBE')),
    due_at             timestamptz NOT NULL,
    lease_token        uuid,
    leased_by          text,
    lease_until        timestamptz,
    claim_count        int         NOT NULL DEFAULT 0,
    unfinished_count   int         NOT NULL DEFAULT 0,
    probe_count        int         NOT NULL DEFAULT 0,
    silent_count       int         NOT NULL DEFAULT 0,
    fault_count        int         NOT NULL DEFAULT 0,
    malformed_count    int         NOT NULL DEFAULT 0,
    not_found_count    int         NOT NULL DEFAULT 0,
    first_not_found_at timestamptz,
    first_answer_at    timestamptz,
    accepted_at        timestamptz,
    first_sent_at      timestamptz,
    last_sent_at       timestamptz,
    CONSTRAINT ready_is_submitted CHECK ((stage = 'READY') = (class = 'SUBMIT')),
    CONSTRAINT done_has_no_timer CHECK (stage <> 'DONE'),
    CONSTRAINT a_lease_has_an_end CHECK ((lease_token IS NULL) = (lease_until IS NULL))
) WITH (fillfactor = 70, autovacuum_vacuum_scale_factor = 0.02, autovacuum_vacuum_threshold = 1000);
COMMENT ON TABLE order_timers IS 'One row exactly while an order is not done: when it is looked at next, and what is known about its leg.';
-- A claim sets due_at to the end of its lease, so this index alone finds what is due.
CREATE INDEX order_timers_due ON order_timers (class, due_at, order_id);

CREATE TABLE dead_letters (
    dead_letter_id uuid        PRIMARY KEY,
    order_id       uuid        NOT NULL,
    created_at     timestamptz NOT NULL,
    user_id        text        COLLATE "C" NOT NULL,
    bucket         int         NOT NULL,
    route_epoch    bigint      NOT NULL,
    reason         text        NOT NULL,
    severity       smallint    NOT NULL CHECK (severity BETWEEN 1 AND 3),
    evidence       jsonb       NOT NULL CHECK (octet_length(evidence::text) <= 8192),
    opened_at      timestamptz NOT NULL,
    opened_version bigint      NOT NULL,
    closed_at      timestamptz,
    actor          text,
    outcome        text        CHECK (outcome IN ('REDRIVEN', 'SUCCESS', 'FAILED', 'EVIDENCE')),
    close_reason   text,
    close_event_id uuid,
    redrive_count  int         NOT NULL DEFAULT 0,
    CONSTRAINT closed_by_somebody_for_a_reason CHECK (
        (closed_at IS NULL) = (actor IS NULL) AND (closed_at IS NULL) = (outcome IS NULL)
        AND (closed_at IS NULL) = (close_reason IS NULL))
);
COMMENT ON TABLE dead_letters IS 'Cases for a person: a parked order has exactly one open case; a settled one has one when evidence contradicts it.';
CREATE UNIQUE INDEX dead_letters_open_case ON dead_letters (order_id) WHERE closed_at IS NULL;
CREATE INDEX dead_letters_of_order ON dead_letters (order_id, opened_at);
CREATE INDEX dead_letters_open ON dead_letters (opened_at, dead_letter_id) WHERE closed_at IS NULL;
CREATE INDEX dead_letters_all ON dead_letters (opened_at, dead_letter_id);

CREATE TABLE holds (
    hold_id         uuid        PRIMARY KEY,
    scope           text        NOT NULL CHECK (scope = 'all' OR scope ~ '^upstream:[a-z][a-z0-9_-]{0,31}$'),
    reason          text        NOT NULL,
    actor           text        NOT NULL,
    until_at        timestamptz,
    created_at      timestamptz NOT NULL,
    lifted_at       timestamptz,
    lifted_by       text,
    lift_reason     text,
    lift_request_id uuid
);
COMMENT ON TABLE holds IS 'Rules that keep claims away from some orders; lifted ones are kept, as they say who did what when.';
CREATE UNIQUE INDEX holds_in_force ON holds (scope) WHERE lifted_at IS NULL;

CREATE TRIGGER fence BEFORE INSERT OR UPDATE OR DELETE ON order_timers FOR EACH ROW EXECUTE FUNCTION ordermesh.fence();
ALTER TABLE order_timers ENABLE ALWAYS TRIGGER fence;
CREATE TRIGGER fence BEFORE INSERT OR UPDATE OR DELETE ON dead_letters FOR EACH ROW EXECUTE FUNCTION ordermesh.fence();
ALTER TABLE dead_letters ENABLE ALWAYS TRIGGER fence;

INSERT INTO schema_migrations (name) VALUES ('0003_timers_and_cases');

-- How far readers outside of this database are, and what they may rely on.

CREATE TABLE watermarks (
    stream_partition int         PRIMARY KEY,
    log_epoch        int         NOT NULL,
    xid              xid8        NOT NULL,
    seq              bigint      NOT NULL,
    catalog_version  bigint      NOT NULL DEFAULT 0,
    updated_at       timestamptz NOT NULL
);
COMMENT ON TABLE watermarks IS 'Up to which position of each stream partition every event is searchable.';

CREATE TABLE projection_index (
    month           date        NOT NULL,
    generation      int         NOT NULL,
    index_name      text        NOT NULL,
    cluster_uuid    text        NOT NULL,
    index_uuid      text        NOT NULL,
    state           text        NOT NULL CHECK (state IN ('BUILDING', 'SERVING', 'RETIRED')),
    catalog_version bigint      NOT NULL,
    created_at      timestamptz NOT NULL,
    retired_at      timestamptz,
    PRIMARY KEY (month, generation)
);
COMMENT ON TABLE projection_index IS 'Which index holds which month; one that is not the one we made is not served.';
COMMENT ON COLUMN projection_index.retired_at IS 'Since when nobody reads or writes it; it is dropped a while later.';

CREATE TABLE outbox_floor (
    only_row   boolean     PRIMARY KEY DEFAULT true CHECK (only_row),
    log_epoch  int         NOT NULL,
    xid        xid8        NOT NULL,
    raised_at  timestamptz NOT NULL
);
COMMENT ON TABLE outbox_floor IS 'Below this position the outbox may be gone; a watermark below it needs a rebuild.';

SELECT ordermesh.ensure_partitions();

INSERT INTO schema_migrations (name) VALUES ('0004_read_side');

-- What a claim reads: nothing of an upstream that is held or not asked for, and of the leased timers only those.

-- The lock keeps writers of timers out for as long as the build takes: 1.4 s for half a million unsettled orders.
CREATE INDEX order_timers_of_upstream ON order_timers (class, upstream, due_at) WHERE lease_token IS NULL;
CREATE INDEX order_timers_leased ON order_timers (class, due_at) WHERE lease_token IS NOT NULL;

INSERT INTO schema_migrations (name) VALUES ('0005_claims');

-- How a user leaves a bucket.

-- Stops writes to a bucket and returns its fence; it is the caller's freeze when state and token are his. Waits for the writers
-- that passed, while the next ones queue behind it: so not for long. A mover that was overtaken, or whose freeze was ended,
-- freezes nothing, however late his call arrives.
CREATE FUNCTION ordermesh.freeze_bucket(p_bucket int, p_epoch bigint, p_token bigint) RETURNS ordermesh.bucket_fence
    LANGUAGE plpgsql SET lock_timeout = '300ms' AS $$
DECLARE
    f ordermesh.bucket_fence;
BEGIN
    PERFORM pg_advisory_xact_lock(71, p_bucket);
    UPDATE ordermesh.bucket_fence SET state = 'FROZEN_W', move_token = p_token, changed_at = clock_timestamp()
     WHERE bucket = p_bucket AND epoch = p_epoch AND state = 'OWNED' AND move_token < p_token;
    SELECT * INTO f FROM ordermesh.bucket_fence WHERE bucket = p_bucket;
    RETURN f;
END $$;

-- Lets writes to a bucket go on at the epoch that the control database says, and returns its fence. A greater epoch than before
-- means that a user left. Never goes back, and never undoes what a later mover did. Waits for writers only where a freeze was lost:
-- those that passed then are still under the old epoch.
CREATE FUNCTION ordermesh.thaw_bucket(p_bucket int, p_epoch bigint, p_token bigint) RETURNS ordermesh.bucket_fence
    LANGUAGE plpgsql SET lock_timeout = '300ms' AS $$
DECLARE
    f ordermesh.bucket_fence;
BEGIN
    IF EXISTS (SELECT FROM ordermesh.bucket_fence WHERE bucket = p_bucket AND state = 'OWNED' AND epoch < p_epoch) THEN
        PERFORM pg_advisory_xact_lock(71, p_bucket);
    END IF;
    UPDATE ordermesh.bucket_fence
       SET state = 'OWNED', epoch = p_epoch, left_epoch = CASE WHEN p_epoch > epoch THEN p_epoch ELSE left_epoch END,
           move_token = p_token, changed_at = clock_timestamp()
     WHERE bucket = p_bucket AND epoch <= p_epoch AND state IN ('OWNED', 'FROZEN_W') AND move_token <= p_token;
    SELECT * INTO f FROM ordermesh.bucket_fence WHERE bucket = p_bucket;
    RETURN f;
END $$;

INSERT INTO schema_migrations (name) VALUES ('0006_bucket_moves');

-- What the projector keeps: who publishes, how far, what the read model refused, and which indices hold which month.

ALTER TABLE watermarks ADD COLUMN source_at timestamptz NOT NULL DEFAULT '-infinity';
COMMENT ON COLUMN watermarks.source_at IS 'Every change that was committed before this time is searchable.';

CREATE TABLE relay_lease (
    only_row boolean     PRIMARY KEY DEFAULT true CHECK (only_row),
    term     bigint      NOT NULL CHECK (term >= 1),
    holder   text        NOT NULL,
    taken_at timestamptz NOT NULL
);
COMMENT ON TABLE relay_lease IS 'The term of the process that publishes this shard''s outbox; a cursor is only written in the newest term.';

CREATE TABLE relay_cursors (
    stream_partition int         PRIMARY KEY,
    term             bigint      NOT NULL,
    log_epoch        int         NOT NULL,
    xid              xid8        NOT NULL,
    seq              bigint      NOT NULL,
    sent_at          timestamptz NOT NULL,
    rewind_xid       xid8,
    rewind_seq       bigint,
    CONSTRAINT a_rewind_has_both CHECK ((rewind_xid IS NULL) = (rewind_seq IS NULL))
);
COMMENT ON TABLE relay_cursors IS
    'The last position published to each stream partition; rewind_*: whoever indexes misses what came after it and asks for it again.';

CREATE TABLE quarantine (
    order_id         uuid        PRIMARY KEY,
    created_at       timestamptz NOT NULL,
    user_id          text        COLLATE "C" NOT NULL,
    stream_partition int         NOT NULL,
    version          bigint      NOT NULL,
    reason           text        NOT NULL CHECK (char_length(reason) <= 512),
    seen_at          timestamptz NOT NULL
);
COMMENT ON TABLE quarantine IS 'Orders whose document the read model refused; lists take them from here, whatever their watermark.';
CREATE INDEX quarantine_of_user ON quarantine (user_id);

CREATE TABLE projection_catalog (
    only_row boolean PRIMARY KEY DEFAULT true CHECK (only_row),
    version  bigint  NOT NULL CHECK (version >= 0)
);
COMMENT ON TABLE projection_catalog IS 'Moved by every change of projection_index; a watermark says by which version it was written.';
INSERT INTO projection_catalog (version) VALUES (0);

-- BEFORE, so that whoever changes the catalog holds its head first.
CREATE FUNCTION ordermesh.move_projection_catalog() RETURNS trigger
    LANGUAGE plpgsql AS $$
BEGIN
    UPDATE ordermesh.projection_catalog SET version = version + 1;
    RETURN NULL;
END $$;
CREATE TRIGGER catalog_changes BEFORE INSERT OR UPDATE OR DELETE OR TRUNCATE ON projection_index
    FOR EACH STATEMENT EXECUTE FUNCTION ordermesh.move_projection_catalog();

-- A check number of an order in one version, 0..2^32-1; the same as history_svc.document.h32.
CREATE FUNCTION ordermesh.h32(order_id uuid, version bigint) RETURNS bigint
    LANGUAGE sql IMMUTABLE STRICT PARALLEL SAFE
    RETURN ('x' || encode(substring(sha256(convert_to(order_id::text || ':' || version::text, 'UTF8')) FROM 1 FOR 4), 'hex'))::bit(32)::bigint;

INSERT INTO schema_migrations (name) VALUES ('0007_projection'), ('0018_arrival');
