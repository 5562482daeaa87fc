"""Carries the lines of processes and their spans into Elasticsearch, on a laptop and in the tests.

Production has Filebeat (`deploy/filebeat`) and an OpenTelemetry collector for this. Here one small process
tails the log files of the local stack, takes spans over OTLP/HTTP, and writes both into the same data streams
that those would fill. It keeps one batch in memory at most, reads no further while Elasticsearch is away, and
loses nothing when it is killed: how far it came is on disk, and a repeat writes nothing twice.
"""
