-- Until when a new order may arrive.

SET search_path = ordermesh, public;

-- An order whose id is older than this is not written: its caller gets a new id. So, as much later than a period's end, every order of
-- the period is here or is being written.
CREATE FUNCTION ordermesh.arrives_within() RETURNS interval
    LANGUAGE sql IMMUTABLE PARALLEL SAFE
    RETURN interval '5 s';

INSERT INTO schema_migrations (name) VALUES ('0018_arrival');
