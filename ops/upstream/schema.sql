-- The ledger of one simulated upstream. Every statement can be repeated: it runs at each start.

-- What was executed, or refused for good. Two rows with one key are a double execution.
CREATE TABLE IF NOT EXISTS executions (
    seq           INTEGER PRIMARY KEY AUTOINCREMENT,
    key           TEXT    NOT NULL,
    order_id      TEXT    NOT NULL,
    leg           INTEGER NOT NULL,
    attempt       INTEGER NOT NULL,
    user_id       TEXT    NOT NULL,
    amount_minor  INTEGER NOT NULL,
    currency_code TEXT    NOT NULL,
    verdict       TEXT    NOT NULL CHECK (verdict IN ('SUCCEEDED', 'FAILED')),
    upstream_ref  TEXT    NOT NULL UNIQUE,
    at            TEXT    NOT NULL
);
CREATE INDEX IF NOT EXISTS executions_by_key ON executions (key);
CREATE INDEX IF NOT EXISTS executions_by_order ON executions (order_id);

-- What a probe is told about a key: its first success, else its last refusal.
CREATE VIEW IF NOT EXISTS outcomes AS
SELECT key, order_id, leg, user_id, verdict, upstream_ref, amount_minor, currency_code, at
  FROM (SELECT *, row_number() OVER (PARTITION BY key ORDER BY verdict DESC, CASE verdict WHEN 'FAILED' THEN -seq ELSE seq END) AS rank
          FROM executions)
 WHERE rank = 1;

-- What will be executed at due_at; until then a probe hears IN_PROGRESS, or NOT_FOUND when hidden.
CREATE TABLE IF NOT EXISTS pending (
    seq           INTEGER PRIMARY KEY AUTOINCREMENT,
    key           TEXT    NOT NULL,
    order_id      TEXT    NOT NULL,
    leg           INTEGER NOT NULL,
    attempt       INTEGER NOT NULL,
    user_id       TEXT    NOT NULL,
    amount_minor  INTEGER NOT NULL,
    currency_code TEXT    NOT NULL,
    due_at        TEXT    NOT NULL,
    hidden        INTEGER NOT NULL
);
CREATE INDEX IF NOT EXISTS pending_by_due ON pending (due_at);
CREATE INDEX IF NOT EXISTS pending_by_key ON pending (key);

-- What was taken back, once per key.
CREATE TABLE IF NOT EXISTS reversals (
    key          TEXT PRIMARY KEY,
    original_key TEXT NOT NULL,
    order_id     TEXT NOT NULL,
    upstream_ref TEXT NOT NULL UNIQUE,
    at           TEXT NOT NULL
);
CREATE INDEX IF NOT EXISTS reversals_by_order ON reversals (order_id);

-- Faults in force; they outlive the process.
CREATE TABLE IF NOT EXISTS faults (
    fault_id       INTEGER PRIMARY KEY AUTOINCREMENT,
    kind           TEXT    NOT NULL,
    order_id       TEXT    NOT NULL,
    user_id_prefix TEXT    NOT NULL,
    key            TEXT    NOT NULL,
    method         TEXT    NOT NULL,
    probability    REAL    NOT NULL,
    seed           INTEGER NOT NULL,
    duration_s     REAL    NOT NULL,
    max_strikes    INTEGER NOT NULL,
    strike_count   INTEGER NOT NULL
);
