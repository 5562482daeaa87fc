"""Carries the spans of processes into Elasticsearch, and on a laptop and in the tests their lines too.

One small process takes spans over OTLP/HTTP and tails log files, and writes both into data streams in the
same words. In production Filebeat carries the lines (`deploy/filebeat`), and spans come by an OpenTelemetry
collector on each host (`deploy/otelcol`), whose own exporter writes them in other words. The shipper keeps
one batch in memory at most, reads no further while Elasticsearch is away, and loses nothing when it is
killed: how far it came is on disk, and a repeat writes nothing twice.
"""
