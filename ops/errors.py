"""The error of the local stack: one sentence that a person can act on.

Every command prints the sentence and exits non-zero; a traceback would mean a defect of ours, never of the
machine.
"""


class OpsError(Exception):
    """Something about this machine or this state directory stands in the way; the message says what to do."""


class PortBusy(OpsError):
    """Something else listens on a port of ours."""
