-- What may not be deleted from the archive: locked objects of S3, and what a law or a court wants kept. After schema_archive.sql.

SET search_path = ordermesh, public;

CREATE TABLE archive_legal_holds (
    hold_id     uuid        PRIMARY KEY,
    user_id     text        COLLATE "C",
    month       date        CHECK (extract(day FROM month) = 1),
    actor       text        NOT NULL CHECK (char_length(actor) BETWEEN 1 AND 64),
    reason      text        NOT NULL CHECK (char_length(reason) BETWEEN 1 AND 512),
    created_at  timestamptz NOT NULL,
    lifted_by   text        NOT NULL DEFAULT '' CHECK (char_length(lifted_by) <= 64),
    lift_reason text        NOT NULL DEFAULT '' CHECK (char_length(lift_reason) <= 512),
    lifted_at   timestamptz,
    CONSTRAINT of_a_user_or_of_a_month CHECK (num_nonnulls(user_id, month) = 1),
    CONSTRAINT somebody_lifted_it CHECK ((lifted_at IS NULL) = (lifted_by = '') AND (lifted_at IS NULL) = (lift_reason = ''))
);
COMMENT ON TABLE archive_legal_holds IS
    'Users who are not erased and months that are not given up, until somebody lifts it; the rows stay as the record of both.';
CREATE UNIQUE INDEX archive_legal_holds_of_user ON archive_legal_holds (user_id) WHERE lifted_at IS NULL;
CREATE UNIQUE INDEX archive_legal_holds_of_month ON archive_legal_holds (month) WHERE lifted_at IS NULL;

-- Why nothing of a month, or of a user, may be deleted; NULL when it may. Either may be NULL.
CREATE FUNCTION ordermesh.legal_hold(p_month date, p_user text) RETURNS text
    LANGUAGE sql STABLE
    RETURN (SELECT 'LEGAL_HOLD of ' || coalesce(h.user_id, to_char(h.month, 'YYYY-MM')) || ' by ' || h.actor || ': ' || h.reason
              FROM ordermesh.archive_legal_holds h
             WHERE h.lifted_at IS NULL AND (h.month = p_month OR h.user_id = p_user COLLATE "C")
             ORDER BY h.created_at LIMIT 1);

INSERT INTO schema_migrations (name) VALUES ('0015_archive_legal_holds');
