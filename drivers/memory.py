"""What processes take of this host's memory."""

import os
from contextlib import suppress

import psutil

MIB = 1 << 20


def taken_mib(pid: int) -> int:
    """Return what a process takes, in MiB, together with the one that leads its session; 0 when it is gone.

    Pages that several processes share count in parts (PSS), so the clones of one template have its memory
    between them; where the system does not tell that, what is a process's own counts. The leader is a VM's
    host agent, where it has one, else the VM itself.
    """
    found = 0
    with suppress(OSError):
        for each in {pid, os.getsid(pid)}:
            with suppress(psutil.Error):
                taken = psutil.Process(each).memory_full_info()
                found += getattr(taken, "pss", taken.uss)
    return -(-found // MIB)


def available_mib() -> int:
    """Return what programs of this host can get without swapping, in MiB."""
    return int(psutil.virtual_memory().available) // MIB
