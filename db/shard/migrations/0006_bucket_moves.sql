-- What a fence must know so that a user can leave a bucket: writes pause for a moment, and go on under a new epoch.

SET search_path = ordermesh, public;

ALTER TABLE bucket_fence
    ADD COLUMN left_epoch bigint NOT NULL DEFAULT 0 CHECK (left_epoch >= 0),
    ADD COLUMN move_token bigint NOT NULL DEFAULT 0 CHECK (move_token >= 0);
COMMENT ON COLUMN bucket_fence.left_epoch IS
    'The last epoch at which a user left for another bucket: who has an older map must ask who that was, and may not guess.';
COMMENT ON COLUMN bucket_fence.move_token IS 'Of the last mover that was here; one that fell behind comes with a smaller one.';

-- BEFORE INSERT OR UPDATE OR DELETE FOR EACH ROW on every order table, ENABLE ALWAYS.
-- A writer says the epoch it was routed by, or NULL for "whatever it is, as long as we own the bucket", and gets it stamped.
CREATE OR REPLACE FUNCTION ordermesh.fence() RETURNS trigger
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
