-- The control database: which shard owns which bucket, where the shards are, and which users are placed by hand.
--
-- Owned by shard_proxy, which reads it once a second and routes on from its own copy when it is gone; nothing that serves an order
-- reads it. Every change of the map moves map_head.version in the same transaction, by trigger, so that no way of changing it can
-- forget to. The row of map_head is also the lock that makes changes of the map follow one another.

CREATE SCHEMA ordermesh;

SET search_path = ordermesh, public;

-- The same function as chassis.ids.user_bucket and the shards' ordermesh.user_bucket; vectors: alice 701, 42 1844, vip.1 4088.
CREATE FUNCTION ordermesh.user_bucket(user_id text) RETURNS int
    LANGUAGE sql IMMUTABLE STRICT PARALLEL SAFE
    RETURN (get_byte(sha256(convert_to(user_id, 'UTF8')), 0) << 4) | (get_byte(sha256(convert_to(user_id, 'UTF8')), 1) >> 4);

CREATE TABLE map_head (
    only_row   boolean     PRIMARY KEY DEFAULT true CHECK (only_row),
    version    bigint      NOT NULL CHECK (version >= 0),
    changed_at timestamptz NOT NULL
);
COMMENT ON TABLE map_head IS 'One row: the version of the map, moved by every change of it.';
INSERT INTO map_head (version, changed_at) VALUES (0, clock_timestamp());

CREATE TABLE shards (
    shard          text    COLLATE "C" PRIMARY KEY CHECK (shard ~ '^[a-z][a-z0-9_]{0,31}$'),
    vip            boolean NOT NULL DEFAULT false,
    lane_target    text    NOT NULL CHECK (lane_target ~ '^.+:[0-9]{1,5}$'),
    history_target text    NOT NULL CHECK (history_target ~ '^.+:[0-9]{1,5}$'),
    state          text    NOT NULL DEFAULT 'ACTIVE' CHECK (state IN ('ACTIVE', 'DRAINING'))
);
COMMENT ON TABLE shards IS 'A Postgres database and the processes that serve only it. vip: only users of the VIP table live there.';

CREATE TABLE services (
    service text COLLATE "C" PRIMARY KEY CHECK (service ~ '^[a-z][a-z0-9_]{0,31}$'),
    target  text NOT NULL CHECK (target ~ '^.+:[0-9]{1,5}$')
);
COMMENT ON TABLE services IS 'Services that belong to no shard, such as recovery_svc, and where they are.';

CREATE TABLE buckets (
    bucket int    PRIMARY KEY CHECK (bucket BETWEEN 0 AND 65535),
    shard  text   COLLATE "C" NOT NULL REFERENCES shards,
    epoch  bigint NOT NULL DEFAULT 1 CHECK (epoch >= 1),
    state  text   NOT NULL DEFAULT 'OWNED' CHECK (state IN ('OWNED', 'MOVING'))
);
COMMENT ON TABLE buckets IS 'Who owns a bucket: 0-4095 are reached by hash, the others are dedicated to VIP users.';
CREATE INDEX buckets_by_shard ON buckets (shard);

CREATE TABLE vip_users (
    user_id    text        COLLATE "C" PRIMARY KEY CHECK (user_id ~ '^[A-Za-z0-9_.:-]{1,64}$'),
    buckets    int[]       NOT NULL CHECK (cardinality(buckets) BETWEEN 1 AND 16 AND array_position(buckets, NULL) IS NULL),
    mode       text        NOT NULL DEFAULT 'PIN' CHECK (mode IN ('PIN', 'SALT')),
    created_at timestamptz NOT NULL DEFAULT clock_timestamp(),
    CONSTRAINT a_pinned_user_has_one_bucket CHECK ((mode = 'PIN') = (cardinality(buckets) = 1))
);
COMMENT ON TABLE vip_users IS 'Users placed by hand on dedicated buckets; new orders go there, old ones keep their bucket.';

CREATE TABLE user_bucket (
    user_id text        COLLATE "C" NOT NULL,
    bucket  int         NOT NULL REFERENCES buckets,
    since   timestamptz NOT NULL DEFAULT clock_timestamp(),
    PRIMARY KEY (user_id, bucket)
);
COMMENT ON TABLE user_bucket IS 'Append-only: every bucket in which a VIP user may have orders. Users without rows have their hashed bucket only.';

CREATE FUNCTION ordermesh.move_map_head() RETURNS trigger
    LANGUAGE plpgsql AS $$
BEGIN
    UPDATE ordermesh.map_head SET version = version + 1, changed_at = clock_timestamp();
    RETURN NULL;
END $$;

-- BEFORE, so that two changes never wait for each other's rows in a circle: whoever changes the map holds its head first.
CREATE TRIGGER map_changes BEFORE INSERT OR UPDATE OR DELETE OR TRUNCATE ON shards
    FOR EACH STATEMENT EXECUTE FUNCTION ordermesh.move_map_head();
CREATE TRIGGER map_changes BEFORE INSERT OR UPDATE OR DELETE OR TRUNCATE ON services
    FOR EACH STATEMENT EXECUTE FUNCTION ordermesh.move_map_head();
CREATE TRIGGER map_changes BEFORE INSERT OR UPDATE OR DELETE OR TRUNCATE ON buckets
    FOR EACH STATEMENT EXECUTE FUNCTION ordermesh.move_map_head();
CREATE TRIGGER map_changes BEFORE INSERT OR UPDATE OR DELETE OR TRUNCATE ON vip_users
    FOR EACH STATEMENT EXECUTE FUNCTION ordermesh.move_map_head();
CREATE TRIGGER map_changes BEFORE INSERT ON user_bucket
    FOR EACH STATEMENT EXECUTE FUNCTION ordermesh.move_map_head();

CREATE FUNCTION ordermesh.refuse_change() RETURNS trigger
    LANGUAGE plpgsql AS $$
BEGIN
    RAISE 'ordermesh.% is append-only', TG_TABLE_NAME USING ERRCODE = '55000';
END $$;
CREATE TRIGGER append_only BEFORE UPDATE OR DELETE OR TRUNCATE ON user_bucket
    FOR EACH STATEMENT EXECUTE FUNCTION ordermesh.refuse_change();

-- Fences on the shards compare epochs: an owner that changes without a new epoch would let two shards believe that they own it.
CREATE FUNCTION ordermesh.guard_epoch() RETURNS trigger
    LANGUAGE plpgsql AS $$
BEGIN
    IF NEW.epoch < OLD.epoch OR (NEW.shard <> OLD.shard AND NEW.epoch = OLD.epoch) THEN
        RAISE 'bucket % cannot go from % epoch % to % epoch %', OLD.bucket, OLD.shard, OLD.epoch, NEW.shard, NEW.epoch
            USING ERRCODE = '23514', HINT = 'A new owner needs a greater epoch.';
    END IF;
    RETURN NEW;
END $$;
CREATE TRIGGER epoch_only_grows BEFORE UPDATE ON buckets
    FOR EACH ROW EXECUTE FUNCTION ordermesh.guard_epoch();

-- The functions below are how tools change the map. Each may be repeated: what is already so moves nothing.

-- Says where a shard's processes are. Returns whether anything changed.
CREATE FUNCTION ordermesh.put_shard(p_shard text, p_vip boolean, p_lane_target text, p_history_target text) RETURNS boolean
    LANGUAGE plpgsql AS $$
BEGIN
    IF EXISTS (SELECT FROM ordermesh.shards
                WHERE (shard, vip, lane_target, history_target) = (p_shard, p_vip, p_lane_target, p_history_target)) THEN
        RETURN false;
    END IF;
    INSERT INTO ordermesh.shards (shard, vip, lane_target, history_target)
    VALUES (p_shard, p_vip, p_lane_target, p_history_target)
    ON CONFLICT (shard) DO UPDATE
       SET vip = excluded.vip, lane_target = excluded.lane_target, history_target = excluded.history_target;
    RETURN true;
END $$;

-- Says where a service that belongs to no shard is. Returns whether anything changed.
CREATE FUNCTION ordermesh.put_service(p_service text, p_target text) RETURNS boolean
    LANGUAGE plpgsql AS $$
BEGIN
    IF EXISTS (SELECT FROM ordermesh.services WHERE (service, target) = (p_service, p_target)) THEN
        RETURN false;
    END IF;
    INSERT INTO ordermesh.services (service, target) VALUES (p_service, p_target)
    ON CONFLICT (service) DO UPDATE SET target = excluded.target;
    RETURN true;
END $$;

-- Deals the 4096 hashed buckets out to shards in equal consecutive runs, once; owned buckets stay where they are.
-- Returns how many were dealt. Each shard needs a fence row OWNED, epoch 1, for each of its buckets.
CREATE FUNCTION ordermesh.deal_buckets(VARIADIC p_shards text[]) RETURNS int
    LANGUAGE plpgsql AS $$
DECLARE
    dealt int;
BEGIN
    IF (SELECT count(*) FROM ordermesh.buckets WHERE bucket < 4096) = 4096 THEN
        RETURN 0;
    END IF;
    INSERT INTO ordermesh.buckets (bucket, shard)
    SELECT b, p_shards[1 + b * cardinality(p_shards) / 4096] FROM generate_series(0, 4095) AS b
    ON CONFLICT (bucket) DO NOTHING;
    GET DIAGNOSTICS dealt = ROW_COUNT;
    RETURN dealt;
END $$;

-- Places a user on a dedicated bucket of a shard: orders made from now on go there, older ones keep their bucket.
-- The shard needs a fence row OWNED, epoch 1, for the bucket first. Returns the user's buckets, newest first.
CREATE FUNCTION ordermesh.place_vip(p_user_id text, p_bucket int, p_shard text) RETURNS int[]
    LANGUAGE plpgsql AS $$
BEGIN
    IF p_bucket < 4096 THEN
        RAISE 'bucket % is reached by hash; dedicated buckets are 4096 to 65535', p_bucket USING ERRCODE = '23514';
    END IF;
    -- Whoever changes the map holds its head: so the look for another owner below is not overtaken.
    PERFORM FROM ordermesh.map_head FOR UPDATE;
    IF EXISTS (SELECT FROM ordermesh.vip_users WHERE p_bucket = ANY (buckets) AND user_id <> p_user_id) THEN
        RAISE 'bucket % is dedicated to another user', p_bucket USING ERRCODE = '23505';
    END IF;
    IF NOT EXISTS (SELECT FROM ordermesh.vip_users WHERE user_id = p_user_id AND buckets = ARRAY[p_bucket]) THEN
        INSERT INTO ordermesh.buckets (bucket, shard) VALUES (p_bucket, p_shard) ON CONFLICT (bucket) DO NOTHING;
        IF (SELECT shard FROM ordermesh.buckets WHERE bucket = p_bucket) <> p_shard THEN
            RAISE 'bucket % is not owned by %', p_bucket, p_shard USING ERRCODE = '23514';
        END IF;
        INSERT INTO ordermesh.user_bucket (user_id, bucket, since)
        VALUES (p_user_id, ordermesh.user_bucket(p_user_id), '-infinity'), (p_user_id, p_bucket, clock_timestamp())
        ON CONFLICT (user_id, bucket) DO NOTHING;
        INSERT INTO ordermesh.vip_users (user_id, buckets) VALUES (p_user_id, ARRAY[p_bucket])
        ON CONFLICT (user_id) DO UPDATE SET buckets = excluded.buckets, mode = 'PIN';
    END IF;
    RETURN (SELECT array_agg(bucket ORDER BY since DESC) FROM ordermesh.user_bucket WHERE user_id = p_user_id);
END $$;

-- Moves of users between their hashed bucket and a dedicated one, as a state machine that survives whoever drives it.

CREATE TABLE schema_migrations (
    name       text        COLLATE "C" PRIMARY KEY,
    applied_at timestamptz NOT NULL DEFAULT clock_timestamp()
);
COMMENT ON TABLE schema_migrations IS 'The migrations this database has.';
INSERT INTO schema_migrations (name) VALUES ('0001_initial');

CREATE TABLE vip_moves (
    move_id     uuid        PRIMARY KEY,
    user_id     text        COLLATE "C" NOT NULL CHECK (user_id ~ '^[A-Za-z0-9_.:-]{1,64}$'),
    kind        text        NOT NULL CHECK (kind IN ('PROMOTE', 'DEMOTE')),
    old_bucket  int         NOT NULL REFERENCES buckets,
    old_shard   text        COLLATE "C" NOT NULL REFERENCES shards,
    old_epoch   bigint      NOT NULL,
    new_bucket  int         NOT NULL REFERENCES buckets,
    new_shard   text        COLLATE "C" NOT NULL REFERENCES shards,
    phase        text        NOT NULL CHECK (phase IN ('PLANNED', 'FREEZING', 'FLIPPED', 'DONE', 'ABORTING', 'ABORTED')),
    attempt     int         NOT NULL DEFAULT 1 CHECK (attempt >= 1),
    failure     text        NOT NULL DEFAULT '',
    reason      text        NOT NULL CHECK (reason <> ''),
    actor       text        NOT NULL CHECK (actor <> ''),
    holder      text        NOT NULL,
    token       bigint      NOT NULL,
    lease_until timestamptz NOT NULL,
    keys_copied int         NOT NULL DEFAULT 0,
    frozen_ms   real,
    created_at  timestamptz NOT NULL DEFAULT clock_timestamp(),
    updated_at  timestamptz NOT NULL DEFAULT clock_timestamp(),
    CONSTRAINT a_move_goes_somewhere CHECK (old_bucket <> new_bucket)
);
COMMENT ON TABLE vip_moves IS
    'Who was moved to or from a dedicated bucket, by whom and why; one that is not over is driven on by whoever holds its lease.';
CREATE UNIQUE INDEX vip_moves_one_of_a_user ON vip_moves (user_id) WHERE phase NOT IN ('DONE', 'ABORTED');
CREATE UNIQUE INDEX vip_moves_one_of_a_bucket ON vip_moves (old_bucket) WHERE phase NOT IN ('DONE', 'ABORTED');
CREATE INDEX vip_moves_newest ON vip_moves (created_at, move_id);

CREATE TRIGGER kept BEFORE DELETE OR TRUNCATE ON vip_moves
    FOR EACH STATEMENT EXECUTE FUNCTION ordermesh.refuse_change();

-- Of a mover, greater than that of every mover before: by the clock, so that it stays so when this database is restored.
CREATE FUNCTION ordermesh.move_token() RETURNS bigint
    LANGUAGE sql VOLATILE
    RETURN (extract(epoch FROM clock_timestamp()) * 1000000)::bigint;

-- Records a move that was decided on one version of the map, with the dedicated bucket it needs; the caller holds its lease.
-- Returns nothing when the map is another one by now: look again.
CREATE FUNCTION ordermesh.plan_vip_move(
    p_map_version bigint, p_move_id uuid, p_user_id text, p_kind text, p_old_bucket int, p_new_bucket int, p_new_shard text,
    p_reason text, p_actor text, p_holder text, p_lease interval) RETURNS SETOF ordermesh.vip_moves
    LANGUAGE plpgsql AS $$
BEGIN
    PERFORM FROM ordermesh.map_head WHERE version = p_map_version FOR UPDATE;
    IF NOT FOUND THEN
        RETURN;
    END IF;
    IF NOT EXISTS (SELECT FROM ordermesh.buckets WHERE bucket = p_new_bucket) THEN
        INSERT INTO ordermesh.buckets (bucket, shard) VALUES (p_new_bucket, p_new_shard);
    END IF;
    RETURN QUERY
    INSERT INTO ordermesh.vip_moves (move_id, user_id, kind, old_bucket, old_shard, old_epoch, new_bucket, new_shard, phase, reason,
                                     actor, holder, token, lease_until)
    SELECT p_move_id, p_user_id, p_kind, b.bucket, b.shard, b.epoch, p_new_bucket, p_new_shard, 'PLANNED', p_reason,
           p_actor, p_holder, ordermesh.move_token(), clock_timestamp() + p_lease
      FROM ordermesh.buckets b WHERE b.bucket = p_old_bucket
    RETURNING *;
END $$;

-- The point of no return of a move, in one transaction: new orders of the user go to the new bucket, and the old one gets a new
-- epoch on the same shard, so that every proxy with an older map is refused there. Returns whether this very move was ready for it.
CREATE FUNCTION ordermesh.flip_vip_move(p_move_id uuid, p_token bigint) RETURNS boolean
    LANGUAGE plpgsql AS $$
DECLARE
    m ordermesh.vip_moves;
BEGIN
    PERFORM FROM ordermesh.map_head FOR UPDATE;
    UPDATE ordermesh.vip_moves SET phase = 'FLIPPED', updated_at = clock_timestamp()
     WHERE move_id = p_move_id AND token = p_token AND phase = 'FREEZING'
    RETURNING * INTO m;
    IF NOT FOUND THEN
        RETURN false;
    END IF;
    UPDATE ordermesh.buckets SET epoch = epoch + 1
     WHERE bucket = m.old_bucket AND shard = m.old_shard AND epoch = m.old_epoch;
    IF NOT FOUND THEN
        RAISE 'bucket % is not what move % found', m.old_bucket, m.move_id USING ERRCODE = '40001';
    END IF;
    IF m.kind = 'DEMOTE' THEN
        DELETE FROM ordermesh.vip_users WHERE user_id = m.user_id;
        RETURN true;
    END IF;
    INSERT INTO ordermesh.user_bucket (user_id, bucket, since)
    VALUES (m.user_id, m.old_bucket, '-infinity'), (m.user_id, m.new_bucket, clock_timestamp())
    ON CONFLICT (user_id, bucket) DO NOTHING;
    INSERT INTO ordermesh.vip_users (user_id, buckets) VALUES (m.user_id, ARRAY[m.new_bucket]);
    RETURN true;
END $$;

INSERT INTO schema_migrations (name) VALUES ('0002_vip_moves');
