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
    changed_at timestamptz NOT NULL DEFAULT clock_timestamp()
);
COMMENT ON TABLE bucket_fence IS 'Every bucket this shard owns or owned, and who owns it; without a row it was never here.';

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
            DETAIL = json_build_object('bucket', r.bucket, 'epoch', f.epoch, 'owner', f.owner, 'state', f.state)::text;
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
