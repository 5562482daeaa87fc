"""Readers who walk whole histories while a load runs, and what proves each page right or wrong.

`book` remembers what was promised to a user, `judge` holds one page against it; both are pure. `readers` and
`walkers` fetch the pages, `changes` alters old orders meanwhile, `figures` says what the walks were worth.
Nothing here writes but through the calls that everybody has; only `grounds` reads the shards, before the load
and after it.
"""
