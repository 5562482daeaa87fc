"""Rows of an archived month as Parquet, and back. The only place that knows pyarrow; it does no I/O.

Arrow may end the process over a footer that was altered, so it sees none whose SHA-256 is not the right one.
Everything here blocks and uses the processor, most of it without the interpreter's lock: call it in a thread.
Importing it takes about 70 MB and 0.15 s, so only a process that archives or reads archives does.
"""
