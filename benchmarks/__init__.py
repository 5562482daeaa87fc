"""Measurements of what ordermesh costs, each beside what it is built on, on the same machine in the same run.

Nothing shipped imports this. README.md says how it is measured and how to read the figures, RESULTS.md what
one machine measured.
"""
