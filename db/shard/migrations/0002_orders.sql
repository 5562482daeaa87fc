-- Orders, their journal, the outbox and the keys that make a repeated create harmless.

SET search_path = ordermesh, public;

CREATE TABLE orders (
    order_id       uuid        NOT NULL,
    created_at     timestamptz NOT NULL,
    user_id        text        COLLATE "C" NOT NULL,
    bucket         int         NOT NULL,
    route_epoch    bigint      NOT NULL,
    read_routing   text        COLLATE "C" NOT NULL,
    version        bigint      NOT NULL CHECK (version >= 1),
    status         text        NOT NULL CHECK (status IN ('PENDING', 'SUCCESS', 'FAILED')),
    stage          text        NOT NULL CHECK (stage IN ('SUBMITTING', 'ACCEPTED', 'UNKNOWN', 'READY', 'PARKED', 'DONE')),
    kind           text        NOT NULL,
    legs           text[]      NOT NULL CHECK (cardinality(legs) BETWEEN 1 AND 8),
    leg            int         NOT NULL CHECK (leg >= 0 AND leg < cardinality(legs)),
    attempt        int         NOT NULL CHECK (attempt >= 0),
    amount_minor   bigint      NOT NULL CHECK (amount_minor > 0),
    currency_code  text        NOT NULL CHECK (currency_code ~ '^[A-Z]{3}$'),
    currency_exp   smallint    NOT NULL CHECK (currency_exp BETWEEN 0 AND 4),
    description    text        NOT NULL DEFAULT '' CHECK (char_length(description) <= 512),
    labels         jsonb       NOT NULL DEFAULT '{}' CHECK (octet_length(labels::text) <= 16384),
    upstream_ref   text        NOT NULL DEFAULT '',
    failure_reason text        NOT NULL DEFAULT '',
    basis          text        CHECK (basis IN ('UPSTREAM', 'NOT_FOUND_FINAL', 'OPERATOR')),
    request_id     uuid        NOT NULL,
    updated_at     timestamptz NOT NULL,
    settled_at     timestamptz,
    erased_at      timestamptz,
    traceparent    text        NOT NULL DEFAULT '',
    schema_version smallint    NOT NULL DEFAULT 1,
    PRIMARY KEY (order_id, created_at),
    CONSTRAINT created_at_is_in_the_id CHECK (created_at = ordermesh.id_time(order_id)),
    CONSTRAINT bucket_is_in_the_id CHECK (bucket = ordermesh.id_bucket(order_id)),
    CONSTRAINT done_means_settled CHECK ((stage = 'DONE') = (status <> 'PENDING')),
    CONSTRAINT settled_has_a_time CHECK ((stage = 'DONE') = (settled_at IS NOT NULL)),
    CONSTRAINT settled_has_a_basis CHECK ((stage = 'DONE') = (basis IS NOT NULL)),
    CONSTRAINT failed_has_a_reason CHECK (status <> 'FAILED' OR failure_reason <> ''),
    CONSTRAINT success_has_a_reference CHECK (status <> 'SUCCESS' OR upstream_ref <> '')
) PARTITION BY RANGE (created_at);
COMMENT ON TABLE orders IS 'The orders of this shard, by month of creation. Written by order_svc only.';
-- Nothing that an update touches is indexed, so that updates stay within their page.
CREATE INDEX orders_of_user ON orders (user_id, created_at, order_id);

CREATE TABLE order_journal (
    order_id    uuid        NOT NULL,
    created_at  timestamptz NOT NULL,
    user_id     text        COLLATE "C" NOT NULL,
    bucket      int         NOT NULL,
    route_epoch bigint      NOT NULL,
    version     bigint      NOT NULL CHECK (version >= 1),
    event_id    uuid        NOT NULL,
    kind        text        NOT NULL,
    from_status text,
    to_status   text        NOT NULL,
    from_stage  text,
    to_stage    text        NOT NULL,
    leg         int         NOT NULL,
    attempt     int         NOT NULL,
    actor       text        NOT NULL,
    proof       text        CHECK (proof IN ('UPSTREAM_SUCCEEDED', 'UPSTREAM_FAILED', 'NOT_FOUND_FINAL', 'OPERATOR')),
    evidence    jsonb       NOT NULL CHECK (octet_length(evidence::text) <= 4096),
    traceparent text        NOT NULL DEFAULT '',
    at          timestamptz NOT NULL,
    PRIMARY KEY (order_id, created_at, version),
    UNIQUE (order_id, created_at, event_id),
    CONSTRAINT success_is_never_left CHECK (from_status IS DISTINCT FROM 'SUCCESS' OR to_status = 'SUCCESS'),
    CONSTRAINT failed_has_proof CHECK (to_status <> 'FAILED' OR from_status = 'FAILED' OR proof IS NOT NULL)
) PARTITION BY RANGE (created_at);
COMMENT ON TABLE order_journal IS 'Everything that happened to an order: versions 1..n, append-only, in the month of its order.';

CREATE SEQUENCE outbox_seq;

CREATE TABLE outbox (
    event_id         uuid        NOT NULL,
    order_id         uuid        NOT NULL,
    created_at       timestamptz NOT NULL,
    user_id          text        COLLATE "C" NOT NULL,
    bucket           int         NOT NULL,
    route_epoch      bigint      NOT NULL,
    stream_partition int         NOT NULL,
    read_routing     text        COLLATE "C" NOT NULL,
    version          bigint      NOT NULL,
    kind             text        NOT NULL,
    xid              xid8        NOT NULL DEFAULT pg_current_xact_id(),
    seq              bigint      NOT NULL DEFAULT nextval('ordermesh.outbox_seq'),
    occurred_at      timestamptz NOT NULL,
    payload          jsonb       NOT NULL CHECK (octet_length(payload::text) <= 65536),
    schema_ver       smallint    NOT NULL DEFAULT 1,
    origin           text        NOT NULL DEFAULT 'order_svc',
    traceparent      text        NOT NULL DEFAULT '',
    tracestate       text        NOT NULL DEFAULT ''
) PARTITION BY RANGE (occurred_at);
COMMENT ON TABLE outbox IS 'What the relay publishes: the order''s full state after each change, by day, append-only.';
CREATE INDEX outbox_tail ON outbox (xid, seq);
CREATE INDEX outbox_of_user ON outbox (user_id, xid, seq);

CREATE TABLE idempotency_keys (
    user_id     text        COLLATE "C" NOT NULL,
    request_id  uuid        NOT NULL,
    order_id    uuid        NOT NULL,
    created_at  timestamptz NOT NULL,
    bucket      int         NOT NULL,
    route_epoch bigint      NOT NULL,
    fingerprint bytea       NOT NULL,
    expires_at  timestamptz,
    PRIMARY KEY (user_id, request_id)
) WITH (fillfactor = 85);
COMMENT ON TABLE idempotency_keys IS 'Which order a request made. A key expires 72 h after its order settled, never before.';
CREATE INDEX idempotency_keys_expiring ON idempotency_keys (expires_at) WHERE expires_at IS NOT NULL;

CREATE TRIGGER fence BEFORE INSERT OR UPDATE OR DELETE ON orders FOR EACH ROW EXECUTE FUNCTION ordermesh.fence();
ALTER TABLE orders ENABLE ALWAYS TRIGGER fence;
CREATE TRIGGER fence BEFORE INSERT OR UPDATE OR DELETE ON order_journal FOR EACH ROW EXECUTE FUNCTION ordermesh.fence();
ALTER TABLE order_journal ENABLE ALWAYS TRIGGER fence;
CREATE TRIGGER fence BEFORE INSERT OR UPDATE OR DELETE ON outbox FOR EACH ROW EXECUTE FUNCTION ordermesh.fence();
ALTER TABLE outbox ENABLE ALWAYS TRIGGER fence;
CREATE TRIGGER fence BEFORE INSERT OR UPDATE OR DELETE ON idempotency_keys FOR EACH ROW EXECUTE FUNCTION ordermesh.fence();
ALTER TABLE idempotency_keys ENABLE ALWAYS TRIGGER fence;

-- Makes one partition when it is missing. Made aside and attached, since that lets reads and writes of the parent go on.
CREATE FUNCTION ordermesh.ensure_partition(p_parent text, p_suffix text, p_column text, p_from timestamptz, p_to timestamptz)
    RETURNS boolean
    LANGUAGE plpgsql AS $$
DECLARE
    child text := p_parent || '_' || p_suffix;
BEGIN
    IF to_regclass('ordermesh.' || child) IS NOT NULL THEN
        RETURN false;
    END IF;
    EXECUTE format(
        'CREATE TABLE ordermesh.%I (LIKE ordermesh.%I INCLUDING DEFAULTS INCLUDING CONSTRAINTS, '
        'CONSTRAINT %I CHECK (%I >= %L AND %I < %L)) WITH (fillfactor = 85)',
        child, p_parent, child || '_range', p_column, p_from, p_column, p_to);
    EXECUTE format(
        'ALTER TABLE ordermesh.%I ATTACH PARTITION ordermesh.%I FOR VALUES FROM (%L) TO (%L)', p_parent, child, p_from, p_to);
    RETURN true;
END $$;

-- Makes the partitions of orders and journal for the month of an instant. Returns how many were missing.
CREATE FUNCTION ordermesh.ensure_month(p_at timestamptz) RETURNS int
    LANGUAGE plpgsql AS $$
DECLARE
    first timestamptz := date_trunc('month', p_at, 'UTC');
    next timestamptz := date_trunc('month', first + interval '32 days', 'UTC');
    suffix text := to_char(first AT TIME ZONE 'UTC', 'YYYY_MM');
BEGIN
    RETURN ordermesh.ensure_partition('orders', suffix, 'created_at', first, next)::int
         + ordermesh.ensure_partition('order_journal', suffix, 'created_at', first, next)::int;
END $$;

-- Makes what is missing: months from an hour ago to three ahead, days of the outbox to seven ahead. Returns how many.
CREATE FUNCTION ordermesh.ensure_partitions() RETURNS int
    LANGUAGE plpgsql AS $$
DECLARE
    here timestamptz := ordermesh.clock();
    month timestamptz;
    day timestamptz;
    made int := 0;
BEGIN
    -- Two processes that start together would make the same table.
    PERFORM pg_advisory_xact_lock(72, 0);
    -- An id is made a moment before its row, by a clock that may be slow by seconds: so the first hour keeps the last month.
    month := date_trunc('month', here - interval '1 hour', 'UTC');
    WHILE month <= here + interval '3 months' LOOP
        made := made + ordermesh.ensure_month(month);
        month := date_trunc('month', month + interval '32 days', 'UTC');
    END LOOP;
    FOR ahead IN 0..7 LOOP
        day := date_trunc('day', here, 'UTC') + ahead * interval '24 hours';
        made := made + ordermesh.ensure_partition(
            'outbox', to_char(day AT TIME ZONE 'UTC', 'YYYY_MM_DD'), 'occurred_at', day, day + interval '24 hours')::int;
    END LOOP;
    RETURN made;
END $$;

INSERT INTO schema_migrations (name) VALUES ('0002_orders');
