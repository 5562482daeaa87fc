-- What a claim reads: nothing of an upstream that is held or not asked for, and of the leased timers only those.

SET search_path = ordermesh, public;

-- The lock keeps writers of timers out for as long as the build takes: 1.4 s for half a million unsettled orders.
CREATE INDEX order_timers_of_upstream ON order_timers (class, upstream, due_at) WHERE lease_token IS NULL;
CREATE INDEX order_timers_leased ON order_timers (class, due_at) WHERE lease_token IS NOT NULL;

INSERT INTO schema_migrations (name) VALUES ('0005_claims');
