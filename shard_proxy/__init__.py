"""The mesh's one door: finds the shard of every call and passes its bytes on, untouched.

Owns the control database (shards, buckets, VIP users) and the routing of every gRPC call, also of recovery's
and of operators'. Everybody calls it; it calls the lanes. It must never read or change what an order holds,
and never needs the control database to route: it goes on with the last map it saw, from memory or from disk,
and the fences in the shards refuse whatever an old map gets wrong.
"""
