"""Shows a user's orders, newest first, each exactly once and as of now.

Owns nothing that is written: it reads the shards that the proxy names for a user and merges what they say.
Called through shard_proxy only.
It must never write an order, and never answer with a list that is shorter than the truth: what cannot be read
is an error.
"""
