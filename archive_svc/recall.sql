-- What an erasure does to statements, on each shard.

-- name: recall
-- Recall the statements of a user; how many, NULL when it was done before.
-- $1: erasure; $2: user; $3: the shard whose archive it is; $4: until when by its clock.
SELECT ordermesh.recall_statements($1, $2, $3, $4);

-- name: recalled_until
-- Until when statements of this shard were recalled because of an erasure; no row when none were. $1: erasure.
SELECT until FROM ordermesh.statement_recalls WHERE erasure_id = $1;

-- name: end_recall
-- Note that an erasure is over, after every shard has recalled its last. $1: erasure.
UPDATE ordermesh.statement_recalls SET until = 'infinity' WHERE erasure_id = $1;
