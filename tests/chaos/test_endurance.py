"""Very many sessions leave nothing in the daemon: no memory, no descriptors, no threads. Simulated VMs."""

import os

import pytest
from claude_vm_tests_endurance import endure

pytestmark = pytest.mark.timeout(3000)

SESSIONS = 1000 if "CHAOS_KILLS" in os.environ else 150
"""All of them are for `make chaos`."""


def test_the_daemon_is_as_it_was_after_many_sessions(user):
    seen = endure(user, SESSIONS)
    growth = seen.growth_percent
    print(f"sessions {SESSIONS:,} simulated: supervisor memory growth {growth:.1f} %")  # noqa: T201
    assert seen.failed == 0
    assert seen.descriptors[-1] <= seen.descriptors[1] + 2, seen
    assert seen.threads[-1] <= seen.threads[1] + 1, seen
    assert growth < 5, seen
