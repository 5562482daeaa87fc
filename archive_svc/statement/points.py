"""The fault points of a statement's way, each with what is true when the process dies there."""

from chassis.faults import declare

AFTER_CLAIM = declare("statement.after_claim", "A worker has its turn at a statement; nothing is read.")
AFTER_PLAN = declare("statement.after_plan", "What to read is known; nothing is read.")
AFTER_LEG = declare("statement.after_leg", "Some months are read; the others are not.")
AFTER_RENDER = declare("statement.after_render", "The file lies on this machine; nothing is stored.")
AFTER_PUT = declare("statement.after_put", "The file is stored; its row does not know.")
AFTER_READY = declare("statement.after_ready", "The statement is ready, and its mail is to be sent.")
AFTER_SENT = declare("statement.after_sent", "A mail was taken, and its row says so.")
AFTER_SEND = declare("statement.after_send", "A mail server took the mail; its row does not know.")
