-- What wakes an order, what keeps recovery away from it, and the cases of those that automation gave up.

SET search_path = ordermesh, public;

CREATE TABLE order_timers (
    order_id           uuid        PRIMARY KEY,
    created_at         timestamptz NOT NULL,
    user_id            text        COLLATE "C" NOT NULL,
    bucket             int         NOT NULL,
    route_epoch        bigint      NOT NULL,
    upstream           text        NOT NULL,
    stage              text        NOT NULL,
    class              text        NOT NULL CHECK (class IN ('SUBMIT', 'PROBE')),
    due_at             timestamptz NOT NULL,
    lease_token        uuid,
    leased_by          text,
    lease_until        timestamptz,
    claim_count        int         NOT NULL DEFAULT 0,
    unfinished_count   int         NOT NULL DEFAULT 0,
    probe_count        int         NOT NULL DEFAULT 0,
    silent_count       int         NOT NULL DEFAULT 0,
    fault_count        int         NOT NULL DEFAULT 0,
    malformed_count    int         NOT NULL DEFAULT 0,
    not_found_count    int         NOT NULL DEFAULT 0,
    first_not_found_at timestamptz,
    first_answer_at    timestamptz,
    accepted_at        timestamptz,
    first_sent_at      timestamptz,
    last_sent_at       timestamptz,
    CONSTRAINT ready_is_submitted CHECK ((stage = 'READY') = (class = 'SUBMIT')),
    CONSTRAINT done_has_no_timer CHECK (stage <> 'DONE'),
    CONSTRAINT a_lease_has_an_end CHECK ((lease_token IS NULL) = (lease_until IS NULL))
) WITH (fillfactor = 70, autovacuum_vacuum_scale_factor = 0.02, autovacuum_vacuum_threshold = 1000);
COMMENT ON TABLE order_timers IS 'One row exactly while an order is not done: when it is looked at next, and what is known about its leg.';
-- A claim sets due_at to the end of its lease, so this index alone finds what is due.
CREATE INDEX order_timers_due ON order_timers (class, due_at, order_id);

CREATE TABLE dead_letters (
    dead_letter_id uuid        PRIMARY KEY,
    order_id       uuid        NOT NULL,
    created_at     timestamptz NOT NULL,
    user_id        text        COLLATE "C" NOT NULL,
    bucket         int         NOT NULL,
    route_epoch    bigint      NOT NULL,
    reason         text        NOT NULL,
    severity       smallint    NOT NULL CHECK (severity BETWEEN 1 AND 3),
    evidence       jsonb       NOT NULL CHECK (octet_length(evidence::text) <= 8192),
    opened_at      timestamptz NOT NULL,
    opened_version bigint      NOT NULL,
    closed_at      timestamptz,
    actor          text,
    outcome        text        CHECK (outcome IN ('REDRIVEN', 'SUCCESS', 'FAILED', 'EVIDENCE')),
    close_reason   text,
    close_event_id uuid,
    redrive_count  int         NOT NULL DEFAULT 0,
    CONSTRAINT closed_by_somebody_for_a_reason CHECK (
        (closed_at IS NULL) = (actor IS NULL) AND (closed_at IS NULL) = (outcome IS NULL)
        AND (closed_at IS NULL) = (close_reason IS NULL))
);
COMMENT ON TABLE dead_letters IS 'Cases for a person: a parked order has exactly one open case; a settled one has one when evidence contradicts it.';
CREATE UNIQUE INDEX dead_letters_open_case ON dead_letters (order_id) WHERE closed_at IS NULL;
CREATE INDEX dead_letters_of_order ON dead_letters (order_id, opened_at);
CREATE INDEX dead_letters_open ON dead_letters (opened_at, dead_letter_id) WHERE closed_at IS NULL;
CREATE INDEX dead_letters_all ON dead_letters (opened_at, dead_letter_id);

CREATE TABLE holds (
    hold_id         uuid        PRIMARY KEY,
    scope           text        NOT NULL CHECK (scope = 'all' OR scope ~ '^upstream:[a-z][a-z0-9_-]{0,31}$'),
    reason          text        NOT NULL,
    actor           text        NOT NULL,
    until_at        timestamptz,
    created_at      timestamptz NOT NULL,
    lifted_at       timestamptz,
    lifted_by       text,
    lift_reason     text,
    lift_request_id uuid
);
COMMENT ON TABLE holds IS 'Rules that keep claims away from some orders; lifted ones are kept, as they say who did what when.';
CREATE UNIQUE INDEX holds_in_force ON holds (scope) WHERE lifted_at IS NULL;

CREATE TRIGGER fence BEFORE INSERT OR UPDATE OR DELETE ON order_timers FOR EACH ROW EXECUTE FUNCTION ordermesh.fence();
ALTER TABLE order_timers ENABLE ALWAYS TRIGGER fence;
CREATE TRIGGER fence BEFORE INSERT OR UPDATE OR DELETE ON dead_letters FOR EACH ROW EXECUTE FUNCTION ordermesh.fence();
ALTER TABLE dead_letters ENABLE ALWAYS TRIGGER fence;

INSERT INTO schema_migrations (name) VALUES ('0003_timers_and_cases');
