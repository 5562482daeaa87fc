-- What the projector keeps: who publishes, how far, what the read model refused, and which indices hold which month.

SET search_path = ordermesh, public;

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

INSERT INTO schema_migrations (name) VALUES ('0007_projection');
