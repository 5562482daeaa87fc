-- What was found out about orders after they had been archived; their segments stay as they are. After schema_archive.sql.

SET search_path = ordermesh, public;

CREATE TABLE archive_amendments (
    amendment_id uuid        PRIMARY KEY,
    order_id     uuid        NOT NULL,
    user_id      text        COLLATE "C" NOT NULL,
    created_at   timestamptz NOT NULL CHECK (created_at = ordermesh.id_time(order_id)),
    note         text        NOT NULL CHECK (char_length(note) BETWEEN 1 AND 512),
    changes      jsonb       NOT NULL DEFAULT '{}',
    actor        text        NOT NULL CHECK (char_length(actor) BETWEEN 1 AND 64),
    reason       text        NOT NULL CHECK (char_length(reason) BETWEEN 1 AND 512),
    amended_at   timestamptz NOT NULL,
    CONSTRAINT only_these_fields CHECK (changes - ARRAY['status', 'upstream_ref', 'description'] = '{}'),
    CONSTRAINT a_success_stays_one CHECK (NOT changes ? 'status'
                                          OR (changes->>'status' = 'SUCCESS' AND coalesce(changes->>'upstream_ref', '') <> '')),
    CONSTRAINT texts_are_short CHECK (octet_length(changes::text) <= 4096)
);
COMMENT ON TABLE archive_amendments IS 'Corrections of archived orders, for whoever reads them; the oldest first, a later one on top of it.';
COMMENT ON COLUMN archive_amendments.note IS 'What the user is told; reason: why somebody did it, for the record.';
CREATE INDEX archive_amendments_of_user ON archive_amendments (user_id, created_at, order_id);

INSERT INTO schema_migrations (name) VALUES ('0012_archive_amendments');
