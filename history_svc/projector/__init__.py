"""Carries every change of every shard into the read model, and keeps the shards' outboxes short.

Owns the cursors, the watermarks and the quarantine of each shard, and the documents. Nobody calls it. It must
never write an order, and never say of a change that it is searchable before it is. A shard that is slow or
away delays no other.
"""
