"""The names of the drivers, for all that has to know no more of them."""

from typing import Final

LIMA: Final = "lima"
QEMU: Final = "qemu"
SIM: Final = "sim"
AUTO: Final = "auto"
"""The best one that this host can use."""

ISOLATING: Final = (LIMA, QEMU)
"""Drivers whose guests can't hurt the host, in the order in which ``auto`` prefers them."""

ALL: Final = (*ISOLATING, SIM)
"""All drivers. One is there even when this host can't use it: it may have left something to sweep."""

NAMES: Final = (AUTO, *ALL)

WORDS: Final = {
    AUTO: "what this host has",
    LIMA: "Lima",
    QEMU: "QEMU",
    SIM: "simulated VMs, which isolate nothing",
}
"""What each name means, for people who choose."""
