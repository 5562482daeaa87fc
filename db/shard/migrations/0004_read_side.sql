-- How far readers outside of this database are, and what they may rely on.

SET search_path = ordermesh, public;

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
    PRIMARY KEY (month, generation)
);
COMMENT ON TABLE projection_index IS 'Which index holds which month; one that is not the one we made is not served.';

CREATE TABLE outbox_floor (
    only_row   boolean     PRIMARY KEY DEFAULT true CHECK (only_row),
    log_epoch  int         NOT NULL,
    xid        xid8        NOT NULL,
    raised_at  timestamptz NOT NULL
);
COMMENT ON TABLE outbox_floor IS 'Below this position the outbox may be gone; a watermark below it needs a rebuild.';

SELECT ordermesh.ensure_partitions();

INSERT INTO schema_migrations (name) VALUES ('0004_read_side');
