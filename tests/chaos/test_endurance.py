"""Very many sessions leave nothing in the daemon: no memory, no descriptors, no threads. Simulated VMs.

What is kept of the last thousand ended sessions takes a few KiB each, so memory is flat from there on. For
`make chaos` it is measured over the second thousand; here only roughly, over fifty sessions.
"""

import os

import pytest
from claude_vm_tests_endurance import AT_ONCE, endure

pytestmark = pytest.mark.timeout(3000)

FILLING, SESSIONS = (1000, 2000) if "CHAOS_KILLS" in os.environ else (50, 100)
THREADS = 8 + AT_ONCE
"""What a daemon has by itself, and a worker for each session at once."""


def test_the_daemon_is_as_it_was_after_many_sessions(user):
    seen = endure(user, SESSIONS)
    growth = seen.growth_percent(FILLING, SESSIONS)
    print(  # noqa: T201
        f"sessions {SESSIONS:,} simulated: supervisor memory growth {growth:.1f} % over the last"
        f" {SESSIONS - FILLING:,}, {seen.growth_percent(50, FILLING):.1f} % from 50 to {FILLING:,}"
    )
    assert seen.failed == 0
    assert seen.descriptors[-1] <= seen.descriptors[1] + 2, seen
    assert max(seen.threads) <= THREADS, seen
    assert growth < 5, seen
