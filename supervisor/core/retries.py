"""How long to wait before what failed is tried again: deletions, and the making of warm instances."""

MAX_DELAY_S = 60.0
"""Longest pause between two tries, in seconds. The first is 1 s, each further one twice as long."""

LEAK_AFTER = 5
"""People are told of an instance that can't be deleted after so many tries (after 15 s of pauses)."""


def delay_s(failures: int) -> float:
    """Return the pause in seconds after so many failed tries (1 or more)."""
    return MAX_DELAY_S if failures > 6 else float(2 ** (failures - 1))
