-- The care for the projection: what is done to it, and the functions that change its catalog. After schema.sql.

SET search_path = ordermesh, public;

CREATE TABLE projection_operations (
    operation_id      uuid        PRIMARY KEY,
    kind              text        NOT NULL CHECK (kind IN ('RESET', 'RETRY', 'REBUILD', 'VERIFY')),
    month             date        CHECK (extract(day FROM month) = 1),
    repairs           boolean     NOT NULL DEFAULT false,
    state             text        NOT NULL DEFAULT 'OPEN' CHECK (state IN ('OPEN', 'SUCCEEDED', 'FAILED', 'CANCELLED')),
    phase             text        NOT NULL DEFAULT 'PLAN' CHECK (phase IN ('PLAN', 'WAIT', 'COPY', 'COMPARE')),
    generation        int,
    index_name        text,
    index_uuid        text,
    catalog_version   bigint,
    copied_to         uuid,
    orders            bigint      NOT NULL DEFAULT 0,
    orders_expected   bigint      NOT NULL DEFAULT 0,
    missing           bigint      NOT NULL DEFAULT 0,
    stale             bigint      NOT NULL DEFAULT 0,
    ahead             bigint      NOT NULL DEFAULT 0,
    extra             bigint      NOT NULL DEFAULT 0,
    refused           bigint      NOT NULL DEFAULT 0,
    repaired          bigint      NOT NULL DEFAULT 0,
    passes            int         NOT NULL DEFAULT 0,
    failures          int         NOT NULL DEFAULT 0,
    not_before        timestamptz NOT NULL DEFAULT '-infinity',
    note              text        NOT NULL DEFAULT '' CHECK (char_length(note) <= 512),
    actor             text        NOT NULL CHECK (char_length(actor) BETWEEN 1 AND 64),
    reason            text        NOT NULL CHECK (char_length(reason) BETWEEN 1 AND 512),
    created_at        timestamptz NOT NULL,
    updated_at        timestamptz NOT NULL,
    ended_at          timestamptz,
    CONSTRAINT a_month_is_named CHECK ((month IS NOT NULL) = (kind IN ('REBUILD', 'VERIFY'))),
    CONSTRAINT an_end_has_its_time CHECK ((ended_at IS NULL) = (state = 'OPEN'))
);
COMMENT ON TABLE projection_operations IS
    'What is done to this shard''s part of the projection, with where it stands, so that whoever leads the shard carries it on.';
COMMENT ON COLUMN projection_operations.not_before IS 'A step that failed waits until then, and lets the others go on.';
COMMENT ON COLUMN projection_operations.copied_to IS 'Every order of the month up to this id is written into the index.';
COMMENT ON COLUMN projection_operations.catalog_version IS 'From this version on, whoever moves a watermark has written to the index too.';
CREATE UNIQUE INDEX projection_operations_open ON projection_operations (kind, month) NULLS NOT DISTINCT WHERE state = 'OPEN';
CREATE INDEX projection_operations_all ON projection_operations (created_at, operation_id);

-- The generation in which a month is to be built, as a row of the catalog; made when there is none. p_hides: nobody reads the
-- month from the read model until then. p_fresh: into an index that nobody has written to, since what stands there is not ours.
CREATE FUNCTION ordermesh.plan_index(p_month date, p_hides boolean, p_fresh boolean) RETURNS ordermesh.projection_index
    LANGUAGE plpgsql AS $$
DECLARE
    newest ordermesh.projection_index;
BEGIN
    -- Whoever changes the catalog holds its head first; the next statements see what the one before wrote.
    PERFORM FROM ordermesh.projection_catalog FOR UPDATE;
    SELECT * INTO newest FROM ordermesh.projection_index WHERE month = p_month ORDER BY generation DESC LIMIT 1;
    IF p_hides THEN
        UPDATE ordermesh.projection_index SET state = 'BUILDING' WHERE month = p_month AND state = 'SERVING';
    END IF;
    IF newest.state = 'BUILDING' AND (newest.index_uuid = '' OR NOT p_fresh) THEN
        RETURN newest;
    END IF;
    INSERT INTO ordermesh.projection_index
           (month, generation, index_name, cluster_uuid, index_uuid, state, catalog_version, created_at)
    SELECT p_month, n.generation, format('orders-v%s-%s', n.generation, to_char(p_month, 'YYYY.MM')), '', '', 'BUILDING',
           c.version, ordermesh.clock()
      FROM ordermesh.projection_catalog c, (SELECT coalesce(newest.generation, 0) + 1 AS generation) n
    RETURNING * INTO newest;
    RETURN newest;
END $$;

-- Lets readers have a month from the index that was built and proven; false when it is not the one to serve any more.
CREATE FUNCTION ordermesh.serve_index(p_month date, p_generation int, p_index_uuid text) RETURNS boolean
    LANGUAGE plpgsql AS $$
BEGIN
    PERFORM FROM ordermesh.projection_catalog FOR UPDATE;
    UPDATE ordermesh.projection_index i SET state = 'SERVING'
     WHERE i.month = p_month AND i.generation = p_generation AND i.index_uuid = p_index_uuid AND i.state <> 'RETIRED'
       AND NOT EXISTS (SELECT FROM ordermesh.projection_index n WHERE n.month = p_month AND n.generation > p_generation);
    RETURN FOUND;
END $$;

-- A shard that knows nothing of a month begins it with the generation that the others serve. A month that is known stays as it is.
CREATE FUNCTION ordermesh.plant_index(p_month date, p_generation int, p_name text, p_cluster_uuid text, p_index_uuid text)
    RETURNS void LANGUAGE plpgsql AS $$
BEGIN
    PERFORM FROM ordermesh.projection_catalog FOR UPDATE;
    IF NOT EXISTS (SELECT FROM ordermesh.projection_index WHERE month = p_month) THEN
        INSERT INTO ordermesh.projection_index
               (month, generation, index_name, cluster_uuid, index_uuid, state, catalog_version, created_at)
        SELECT p_month, p_generation, p_name, p_cluster_uuid, p_index_uuid, 'SERVING', c.version, ordermesh.clock()
          FROM ordermesh.projection_catalog c;
    END IF;
END $$;

-- Begins the projection anew: watermarks stand where the log is now, and every month that has orders is read from here until it
-- is built again, in an index that holds nothing yet; one that is archived is not built, nor believed should it come back. Only for
-- the operation that asks for it, while that is open, in the newest term. Returns how many months are built, NULL when nothing was done.
CREATE FUNCTION ordermesh.reset_projection(p_operation_id uuid, p_term bigint) RETURNS int
    LANGUAGE plpgsql AS $$
DECLARE
    m date;
    planned int := 0;
    has_orders boolean;
BEGIN
    PERFORM FROM ordermesh.projection_catalog FOR UPDATE;
    IF NOT EXISTS (SELECT FROM ordermesh.projection_operations o, ordermesh.relay_lease l
                    WHERE o.operation_id = p_operation_id AND o.state = 'OPEN' AND l.term = p_term) THEN
        RETURN NULL;
    END IF;
    INSERT INTO ordermesh.watermarks AS w (stream_partition, log_epoch, xid, seq, catalog_version, updated_at, source_at)
    SELECT p, i.log_epoch, pg_snapshot_xmin(pg_current_snapshot()), 0, 0, clock_timestamp(), '-infinity'
      FROM ordermesh.shard_identity i, generate_series(i.partition_base, i.partition_base + i.partition_count - 1) AS p
    ON CONFLICT (stream_partition) DO UPDATE
       SET log_epoch = excluded.log_epoch, xid = excluded.xid, seq = excluded.seq, catalog_version = 0,
           updated_at = excluded.updated_at, source_at = excluded.source_at;
    FOR m IN
        SELECT to_date(substring(c.relname FROM 'orders_(\d{4}_\d{2})'), 'YYYY_MM')
          FROM pg_inherits h JOIN pg_class c ON c.oid = h.inhrelid
         WHERE h.inhparent = 'ordermesh.orders'::regclass
        UNION SELECT month FROM ordermesh.projection_index
        ORDER BY 1
    LOOP
        IF ordermesh.is_archived(m) THEN
            UPDATE ordermesh.projection_index SET state = 'RETIRED', retired_at = ordermesh.clock()
             WHERE month = m AND state <> 'RETIRED';
            CONTINUE;
        END IF;
        EXECUTE 'SELECT EXISTS (SELECT FROM ordermesh.orders WHERE created_at >= $1 AND created_at < $2)'
           INTO has_orders USING m::timestamp AT TIME ZONE 'UTC', (m + interval '1 month')::timestamp AT TIME ZONE 'UTC';
        IF has_orders OR EXISTS (SELECT FROM ordermesh.projection_index WHERE month = m) THEN
            PERFORM ordermesh.plan_index(m, true, true);
            planned := planned + 1;
        END IF;
    END LOOP;
    RETURN planned;
END $$;

INSERT INTO schema_migrations (name) VALUES ('0008_projection_operations');
