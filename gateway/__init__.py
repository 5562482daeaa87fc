"""The REST door for mobile apps and browsers: `/v1`, OpenAPI, JWT, rate limits and event streams.

Owns no data: every answer comes from the mesh, through shard_proxy and over mTLS. Called by anybody who has a
token. It must never open a database, and never tell anybody more than the catalogue of problems says.
"""
