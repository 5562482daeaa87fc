-- Objects in S3 that nothing here and no manifest names: looked for, told, and deleted when that is wanted. After the other schemas
-- of archives and statements.

SET search_path = ordermesh, public;

CREATE TABLE archive_sweeps (
    sweep_id      uuid        PRIMARY KEY,
    deletes       boolean     NOT NULL,
    actor         text        NOT NULL CHECK (char_length(actor) BETWEEN 1 AND 64),
    reason        text        NOT NULL CHECK (char_length(reason) BETWEEN 1 AND 512),
    place         int         NOT NULL DEFAULT 0 CHECK (place >= 0),
    after_key     text        NOT NULL DEFAULT '',
    seen_count    bigint      NOT NULL DEFAULT 0,
    deleted_count bigint      NOT NULL DEFAULT 0,
    refusal       text        NOT NULL DEFAULT '' CHECK (char_length(refusal) <= 512),
    created_at    timestamptz NOT NULL,
    ended_at      timestamptz
);
COMMENT ON TABLE archive_sweeps IS 'Walks over this shard''s objects in S3, to find strays: who wanted them, how far they are, and whether they delete.';
COMMENT ON COLUMN archive_sweeps.after_key IS 'The last key that was looked at, in the prefix that is number place; a walk goes on from there.';
COMMENT ON COLUMN archive_sweeps.refusal IS 'Why nothing was called a stray: the catalog is empty, or knows less than S3 does.';
CREATE INDEX archive_sweeps_open ON archive_sweeps (created_at) WHERE ended_at IS NULL;
CREATE INDEX archive_sweeps_by_time ON archive_sweeps (created_at DESC);

CREATE TABLE archive_strays (
    key        text        PRIMARY KEY,
    kind       text        NOT NULL CHECK (kind IN ('SEGMENT', 'MANIFEST', 'STATEMENT')),
    size_bytes bigint      NOT NULL,
    stored_at  timestamptz NOT NULL,
    sweep_id   uuid        NOT NULL REFERENCES archive_sweeps,
    found_at   timestamptz NOT NULL,
    deleted_at timestamptz
);
COMMENT ON TABLE archive_strays IS 'Objects that nothing here and no manifest names; deleted_at: when the walk of sweep_id deleted them.';
CREATE INDEX archive_strays_there ON archive_strays (stored_at) WHERE deleted_at IS NULL;

-- Whether something here names an object. p_statement: the statement whose file it is; NULL when it is none.
CREATE FUNCTION ordermesh.is_catalogued(p_key text, p_statement uuid) RETURNS boolean
    LANGUAGE sql STABLE
    RETURN EXISTS (SELECT FROM ordermesh.archive_segments s WHERE s.key = p_key)
        OR EXISTS (SELECT FROM ordermesh.archive_months m WHERE m.manifest_key = p_key)
        OR EXISTS (SELECT FROM ordermesh.archive_replaced r WHERE r.key = p_key AND r.deleted_at IS NULL)
        OR EXISTS (SELECT FROM ordermesh.statements t WHERE t.statement_id = p_statement);

INSERT INTO schema_migrations (name) VALUES ('0014_archive_strays');
