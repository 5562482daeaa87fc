"""Care for the projection: months are built again, compared and repaired, while everything runs.

Whatever is done is an operation, a row in the shard's database that says how far it is; whoever leads the
shard carries it on. Nothing here is needed for a right page: a month that is not served is read from its
shard.
"""
