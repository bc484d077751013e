"""A stand-in for limactl: what a driver sees of Lima, with real QEMU and real SSH beneath.

No package registry has limactl, so most machines that test this project lack it. The stand-in keeps the
same files, states, exit statuses, outputs and log lines as the real one, for the commands that a driver
needs: ``create start stop delete list shell clone rename protect unprotect info`` and ``--version``. It has
the QEMU driver on Linux, in plain mode; what it lacks it refuses with a message that has `MISSING` in it.

The suite `tests/lima_contract` runs against both; where they differ, the stand-in is wrong. It never says
that it is Lima: its version ends with ``+standin``.

Only the standard library, and no asyncio: the start of this program is in the path of a clone. PyYAML reads
what isn't JSON.

Source: Lima 2.2's behaviour, observed and read.
"""

MISSING = "the stand-in for limactl does not have this"

VERSION = "2.2.0+standin"
