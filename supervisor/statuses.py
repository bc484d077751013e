"""Exit statuses that are not a main command's own."""

FAILED = 1
"""A command other than a session failed."""

USAGE = 2
"""The words were wrong."""

SESSION_FAILED = 125
"""We failed, before or around the main command (feature A4)."""

SIGNALLED = 128
"""Less than the status of what a signal ended: by the signal's number."""

HUNG_UP = SIGNALLED + 1
INTERRUPTED = SIGNALLED + 2
OUTPUT_CLOSED = SIGNALLED + 13
"""Nobody reads the output: a shell tells a death of SIGPIPE so."""
TERMINATED = SIGNALLED + 15

OF_SIGNAL = {"HUP": HUNG_UP, "INT": INTERRUPTED, "QUIT": SIGNALLED + 3, "TERM": TERMINATED}
"""Statuses of what ended by a signal that a client passes on."""
