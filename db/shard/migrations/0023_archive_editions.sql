-- Manifests are numbered by the shard, so that one of somebody who was replaced is never the newest, whenever he stores it.
-- A month in quarantine is let go when all of it is proven whole again. An erasure takes rows out of copies that nobody reads, too.

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

-- Lets a segment without a user's rows take the place of the one with them, of a month whose rows are in S3 alone, or that was restored
-- and whose copy nobody reads. The rows that went stand in the temporary table gone_ and the name of theirs, so that the month's count and
-- hash, which are sums, lose exactly them. Returns whether this was done; NULL below a legal hold.
CREATE OR REPLACE FUNCTION ordermesh.swap_segment(p_fence bigint, p_erasure uuid, p_archive_id uuid, p_part int, p_table text, p_old_key text,
                                       p_key text, p_version text, p_etag text, p_size bigint, p_sha256 text, p_rows bigint,
                                       p_facts jsonb) RETURNS boolean
    LANGUAGE plpgsql AS $$
DECLARE
    went record;
    old ordermesh.archive_segments;
BEGIN
    PERFORM FROM ordermesh.archive_lease WHERE fence = p_fence FOR SHARE;
    IF NOT FOUND THEN RETURN false; END IF;
    PERFORM FROM ordermesh.archive_months WHERE archive_id = p_archive_id AND state IN ('DROPPED', 'RESTORED', 'WANTED') AND quarantined = '' FOR UPDATE;
    IF NOT FOUND THEN RETURN false; END IF;
    IF ordermesh.legal_hold((SELECT month FROM ordermesh.archive_months WHERE archive_id = p_archive_id),
                            (SELECT user_id FROM ordermesh.archive_erasures WHERE erasure_id = p_erasure)) IS NOT NULL THEN
        RETURN NULL;
    END IF;
    SELECT * INTO old FROM ordermesh.archive_segments
     WHERE archive_id = p_archive_id AND part = p_part AND of_table = p_table AND key = p_old_key FOR UPDATE;
    IF NOT FOUND THEN RETURN false; END IF;
    SELECT * INTO went FROM ordermesh.hash_of(('gone_' || p_table)::regclass, p_table);
    IF went.row_count <> old.row_count - p_rows THEN
        RAISE 'the rows that went are % and not %', went.row_count, old.row_count - p_rows;
    END IF;
    UPDATE ordermesh.archive_segments
       SET key = p_key, version_id = p_version, etag = p_etag, size_bytes = p_size, sha256 = p_sha256, row_count = p_rows,
           facts = p_facts, exported_at = clock_timestamp(), verified_at = clock_timestamp(), seen_at = clock_timestamp()
     WHERE archive_id = p_archive_id AND part = p_part AND of_table = p_table;
    IF p_table = 'orders' THEN
        UPDATE ordermesh.archive_parts SET order_count = order_count - went.row_count WHERE archive_id = p_archive_id AND part = p_part;
        UPDATE ordermesh.archive_months SET order_count = order_count - went.row_count, orders_hash = orders_hash - went.hash
         WHERE archive_id = p_archive_id;
        UPDATE ordermesh.archive_erasures SET row_count = row_count + went.row_count WHERE erasure_id = p_erasure;
    ELSE
        UPDATE ordermesh.archive_parts SET journal_count = journal_count - went.row_count
         WHERE archive_id = p_archive_id AND part = p_part;
        UPDATE ordermesh.archive_months SET journal_count = journal_count - went.row_count, journal_hash = journal_hash - went.hash
         WHERE archive_id = p_archive_id;
    END IF;
    INSERT INTO ordermesh.archive_replaced (key, version_id, erasure_id, archive_id, row_count, at)
    VALUES (old.key, old.version_id, p_erasure, p_archive_id, went.row_count, clock_timestamp());
    RETURN true;
END $$;

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
