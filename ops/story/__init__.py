"""The story of one order: its journal, its spans and the lines about it, from wherever they are kept.

Journals come from the mesh, spans and lines from Elasticsearch; lines of a stack without it from its log
files.
"""
