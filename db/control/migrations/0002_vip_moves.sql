-- Moves of users between their hashed bucket and a dedicated one, as a state machine that survives whoever drives it.

SET search_path = ordermesh, public;

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
