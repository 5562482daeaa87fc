-- Manifests are numbered by the shard, so that one of somebody who was replaced is never the newest, whenever he stores it.
-- A month in quarantine is let go when all of it is proven whole again.

SET search_path = ordermesh, public;

ALTER TABLE archive_months ADD COLUMN edition bigint NOT NULL DEFAULT 0;
COMMENT ON COLUMN archive_months.edition IS
    'Of what the month''s manifest would say: grows with every change of that, and when its copy is given up. 0: none has a number.';

-- Numbers what a month's manifest would say: when it is proven, when its copy is given up, and when rows are taken out of it.
CREATE FUNCTION ordermesh.next_edition() RETURNS trigger
    LANGUAGE plpgsql AS $$
BEGIN
    IF (NEW.state <> OLD.state AND NEW.state IN ('VERIFIED', 'THAWED'))
       OR (NEW.state = OLD.state AND NEW.state IN ('DROPPED', 'RESTORED', 'WANTED')
           AND (NEW.order_count, NEW.journal_count) IS DISTINCT FROM (OLD.order_count, OLD.journal_count)) THEN
        NEW.edition := OLD.edition + 1;
    END IF;
    RETURN NEW;
END $$;
CREATE TRIGGER next_edition BEFORE UPDATE ON ordermesh.archive_months FOR EACH ROW EXECUTE FUNCTION ordermesh.next_edition();

CREATE TABLE archive_releases (
    archive_id  uuid        NOT NULL,
    month       date        NOT NULL,
    quarantined text        NOT NULL,
    actor       text        NOT NULL CHECK (char_length(actor) BETWEEN 1 AND 64),
    asked_at    timestamptz NOT NULL,
    ended_at    timestamptz,
    note        text        NOT NULL DEFAULT '' CHECK (char_length(note) <= 512),
    PRIMARY KEY (archive_id, asked_at)
);
COMMENT ON TABLE archive_releases IS
    'Months in quarantine that somebody wants to be let go once every segment is read back whole; note: why one was not.';
COMMENT ON COLUMN archive_releases.quarantined IS 'Why the month was in quarantine when it was asked for.';
CREATE UNIQUE INDEX archive_releases_open ON archive_releases (archive_id) WHERE ended_at IS NULL;

-- Makes the catalog of a month again of its manifest, as adopt_month does, and goes on with its number. Returns whether this was done.
CREATE FUNCTION ordermesh.adopt_edition(p_manifest jsonb, p_key text, p_version text, p_sha256 text, p_grace interval,
                                        p_actor text, p_reason text) RETURNS boolean
    LANGUAGE plpgsql AS $$
BEGIN
    IF NOT ordermesh.adopt_month(p_manifest, p_key, p_version, p_sha256, p_grace, p_actor, p_reason) THEN RETURN false; END IF;
    UPDATE ordermesh.archive_months SET edition = coalesce((p_manifest->>'edition')::bigint, 0)
     WHERE archive_id = (p_manifest->>'archive_id')::uuid;
    RETURN true;
END $$;

-- Lets a newer manifest take the place of the catalog of a month that is in S3 alone, which shows another one. Returns whether this was
-- done: not when the month stands elsewhere by now.
CREATE FUNCTION ordermesh.replace_edition(p_manifest jsonb, p_key text, p_version text, p_sha256 text, p_grace interval,
                                          p_actor text, p_reason text, p_old_key text) RETURNS boolean
    LANGUAGE plpgsql AS $$
BEGIN
    -- Whoever archives the shard is between two changes.
    PERFORM FROM ordermesh.archive_lease FOR UPDATE;
    DELETE FROM ordermesh.archive_months
     WHERE month = (p_manifest->>'month' || '-01')::date AND state = 'DROPPED' AND manifest_key = p_old_key;
    IF NOT FOUND THEN RETURN false; END IF;
    IF NOT ordermesh.adopt_edition(p_manifest, p_key, p_version, p_sha256, p_grace, p_actor, p_reason) THEN
        RAISE 'the tables of % are here', p_manifest->>'month';
    END IF;
    RETURN true;
END $$;

INSERT INTO schema_migrations (name) VALUES ('0023_archive_editions');
