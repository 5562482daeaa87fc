"""archive_svc: the life of the shards' partitions, from before their first row on.

Owns which months and days exist on each shard, and what is kept of the old ones in S3. Operators call it.
It must never decide an order's status, and never take a month away that is not proven to be elsewhere.
"""
