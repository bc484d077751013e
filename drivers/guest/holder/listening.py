"""What the guest listens at, from the kernel's tables of TCP sockets."""

from collections.abc import Sequence
from contextlib import suppress

TABLES = ("/proc/net/tcp", "/proc/net/tcp6")
EVERY_S = 1.0
"""How often the tables are looked at while somebody wants to know, in seconds. The kernel tells no change."""
TABLE_LIMIT = 1 << 18
"""Bytes of a table that are looked at. Those who listen come first in it."""
MOST_PORTS = 256
_LISTENS = b"0A"
_HERE = frozenset(
    (
        *(b"00000000", b"0100007F", b"0" * 32, b"0" * 24 + b"01000000"),
        b"0000000000000000FFFF00000100007F",
    )
)
"""All addresses and the loopback's, as Linux writes them on processors that begin with the lowest byte."""


def listening_ports(tables: Sequence[str]) -> list[int]:
    """Return the TCP ports that are listened at on all addresses or the loopback, in order."""
    ports: set[int] = set()
    for table in tables:
        data = b""
        with suppress(OSError), open(table, "rb") as file:
            data = file.read(TABLE_LIMIT)
        for line in data.split(b"\n"):
            words = line.split(None, 4)
            if len(words) > 3 and words[3] == _LISTENS:
                address, _, port = words[1].partition(b":")
                if address in _HERE:
                    ports.add(int(port, 16))
    return sorted(ports)[:MOST_PORTS]
