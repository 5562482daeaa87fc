"""The stubs of every ordermesh API: what callers install and import.

Generated from protos/ by `make proto`; the import path equals the proto package.
"""
