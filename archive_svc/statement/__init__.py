"""Statements: documents of all of a user's orders in a period, from the tables and the archive alike.

The operation around a statement and what makes its file know of each other only what stands in `wish`.
"""
