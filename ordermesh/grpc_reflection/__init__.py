"""Server reflection, whose v1 the grpcio packages do not carry.
"""
