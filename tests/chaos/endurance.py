"""Very many sessions through one daemon, and what it has taken after each hundred."""

import concurrent.futures
from typing import NamedTuple

import psutil

AT_ONCE = 4
STEP = 50


class Seen(NamedTuple):
    """Sizes of a daemon: before the first step, and after each; a step is `STEP` sessions."""

    failed: int
    resident_kib: list[int]
    descriptors: list[int]
    threads: list[int]

    def growth_percent(self, first, last):
        """How much memory grew from one number of sessions to another."""
        return 100 * (self.resident_kib[last // STEP] / self.resident_kib[first // STEP] - 1)


def endure(user, sessions):
    """Run sessions, some at once; the user's daemon must be there already."""
    daemon = psutil.Process(user.daemon_pid())
    seen = Seen(0, [], [], [])

    def look():
        seen.resident_kib.append(daemon.memory_info().rss // 1024)
        seen.descriptors.append(daemon.num_fds())
        seen.threads.append(daemon.num_threads())

    def session(number):
        done = user.run("shell", "--", "sh", "-c", f"echo {number}; exit {number % 7}")
        return (done.returncode, done.stdout) != (number % 7, b"%d\n" % number)

    failed = 0
    look()
    with concurrent.futures.ThreadPoolExecutor(AT_ONCE) as clients:
        for first in range(0, sessions, STEP):
            failed += sum(clients.map(session, range(first, first + STEP)))
            assert user.survey.settle() == []
            look()
    return seen._replace(failed=failed)
