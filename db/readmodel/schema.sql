-- A read model without Elasticsearch: the documents of all shards, late and losable, in a database of its own.
--
-- The sum of migrations/, for new databases; a test builds both and compares the catalogs. Written and read by
-- history_svc only, through history_svc/readmodel/table.py.

CREATE SCHEMA ordermesh;

SET search_path = ordermesh, public;

CREATE TABLE schema_migrations (
    name       text        COLLATE "C" PRIMARY KEY,
    applied_at timestamptz NOT NULL DEFAULT clock_timestamp()
);
COMMENT ON TABLE schema_migrations IS 'The migrations this database has.';

CREATE TABLE read_model (
    only_row     boolean PRIMARY KEY DEFAULT true CHECK (only_row),
    cluster_uuid uuid    NOT NULL DEFAULT gen_random_uuid()
);
COMMENT ON TABLE read_model IS 'Which database this is: one that was lost and made again is another one.';
INSERT INTO read_model DEFAULT VALUES;

-- One partition per index, and named after it. Its oid is the identity of the index, since it cannot come back.
CREATE TABLE documents (
    index_name       text    COLLATE "C" NOT NULL,
    order_id         uuid    NOT NULL,
    user_id          text    COLLATE "C" NOT NULL,
    version          bigint  NOT NULL,
    created_us       bigint  NOT NULL,
    status           text    NOT NULL,
    kind             text    NOT NULL,
    currency_code    text    NOT NULL,
    amount_minor     bigint  NOT NULL,
    terms            text[]  NOT NULL,
    stream_partition bigint  NOT NULL,
    h32              bigint  NOT NULL,
    deleted          boolean NOT NULL,
    shown            json    NOT NULL,
    PRIMARY KEY (index_name, order_id)
) PARTITION BY LIST (index_name);
COMMENT ON TABLE documents IS 'One order in one version; `shown` is what a list shows of it.';
CREATE INDEX documents_of_user ON documents (user_id, created_us, order_id);
CREATE INDEX documents_newest ON documents (created_us, order_id);

-- Makes the partition of an index when it is missing: aside and attached, so that reads and writes of the others go on.
CREATE FUNCTION ordermesh.create_index(p_name text) RETURNS void
    LANGUAGE plpgsql AS $$
BEGIN
    PERFORM pg_advisory_xact_lock(74, 0);
    IF to_regclass(format('ordermesh.%I', p_name)) IS NOT NULL THEN
        RETURN;
    END IF;
    EXECUTE format(
        'CREATE TABLE ordermesh.%I (LIKE ordermesh.documents INCLUDING DEFAULTS INCLUDING CONSTRAINTS, '
        'CONSTRAINT %I CHECK (index_name = %L)) WITH (fillfactor = 85)',
        p_name, p_name || '_name', p_name);
    EXECUTE format('ALTER TABLE ordermesh.documents ATTACH PARTITION ordermesh.%I FOR VALUES IN (%L)', p_name, p_name);
END $$;

-- Removes an index with its documents, when it is there.
CREATE FUNCTION ordermesh.drop_index(p_name text) RETURNS void
    LANGUAGE plpgsql AS $$
BEGIN
    PERFORM pg_advisory_xact_lock(74, 0);
    IF EXISTS (SELECT FROM ordermesh.indices WHERE name = p_name) THEN
        EXECUTE format('DROP TABLE ordermesh.%I', p_name);
    END IF;
END $$;

CREATE VIEW indices AS
SELECT c.relname::text AS name, r.cluster_uuid::text AS cluster_uuid, c.oid::text AS index_uuid
  FROM pg_inherits i
  JOIN pg_class c ON c.oid = i.inhrelid
 CROSS JOIN read_model r
 WHERE i.inhparent = 'ordermesh.documents'::regclass;
COMMENT ON VIEW indices IS 'The indices that are there, each with its identity.';

INSERT INTO schema_migrations (name) VALUES ('0001_documents');
