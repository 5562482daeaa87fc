-- What an erasure does to statements, on each shard.

-- name: recall
-- Recall the statements of a user; how many, NULL when it was done before.
-- $1: erasure; $2: user; $3: the shard whose archive it is; $4: until when by its clock, NULL when the erasure is over.
SELECT ordermesh.recall_statements($1, $2, $3, $4);
