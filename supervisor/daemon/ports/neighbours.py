"""Keeps the guests of other sessions away from a session's published ports.

A guest's connection to this host's loopback comes from its VM's own process. So of each client of a published
port it is found out which socket is at its other end, and whether the VM of another session holds that.

What can't be told is refused: a client that has closed its socket before anybody could look at it. The socket
is looked up before and after the VMs' descriptors: one that is there both times was held all the time, and
nobody has taken it out of a VM's table in between.

Source: sock_diag(7); proc_pid_fd(5); proc_pid_stat(5) and the kernel's include/linux/sched.h for its flags.
"""

import os
import socket
import struct
import sys
import time
from collections.abc import Collection
from contextlib import closing
from pathlib import Path

_SOCK_DIAG = 4
_BY_FAMILY = 20
_REQUEST = 1
_ANY_STATE = 0xFFFFFFFF
_NO_COOKIE = b"\xff" * 8
_HEADER = struct.Struct("=IHHII")
_ID = struct.Struct("!HH16s16s")
_ANSWER = struct.Struct("=BB")
_INODE_AT = _HEADER.size + 68
_LISTEN = 10
_EXITING = 0x4  # PF_EXITING
_PATIENCE = 1.0  # seconds; a VM of some GB takes tenths to give its memory back
_PAUSE = 0.01
_TABLES = {socket.AF_INET: "tcp", socket.AF_INET6: "tcp6"}


def may_enter(client: socket.socket, vms: Collection[int]) -> bool:
    """Tell whether a client of the loopback is none of these processes. For a worker thread; a millisecond.

    Always so where there are none, and on other systems than Linux, which don't tell.
    """
    if not vms or sys.platform != "linux":
        return True
    inode = _peer_inode(client)
    if not inode or any(_holds(pid, inode) for pid in vms):
        return False
    return _peer_inode(client) == inode


def _holds(pid: int, inode: int) -> bool:
    """Tell whether a process has a socket open; also when it does not let us look.

    One that is ending is waited for: it gives up its memory, and with that its user's right to look at its
    descriptors, before it closes them.
    """
    deadline = time.monotonic() + _PATIENCE
    while True:
        try:
            return _has(pid, inode)
        except (FileNotFoundError, ProcessLookupError):  # it has ended
            return False
        except OSError:
            state, exiting = _status(pid)
        if state == "Z":  # its parent has not heard of its end yet
            return False
        if not exiting or time.monotonic() > deadline:
            return True
        time.sleep(_PAUSE)


def _has(pid: int, inode: int) -> bool:
    """Look for a socket among a process's descriptors. Raises: OSError."""
    wanted = f"socket:[{inode}]"
    folder = f"/proc/{pid}/fd"
    for name in os.listdir(folder):  # noqa: PTH208 - some dozens of names, for each connection
        try:
            if os.readlink(f"{folder}/{name}") == wanted:  # noqa: PTH115
                return True
        except FileNotFoundError:  # closed meanwhile
            continue
    return False


def _status(pid: int) -> tuple[str, bool]:
    """Return a process's state, "Z" only when all of its threads have ended, and whether it is ending."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text("utf-8", "replace").rpartition(")")[2].split()
    except OSError:
        return "Z", True
    state, flags, threads = fields[0], int(fields[6]), int(fields[17])
    return ("R" if threads > 1 else state), bool(flags & _EXITING)


def _peer_inode(client: socket.socket) -> int:
    """Return the inode of the socket at the other end; 0 when nobody has it open any more."""
    try:
        here, there = client.getsockname()[:2], client.getpeername()[:2]
        return _asked(client.family, there, here) or _read(client.family, there, here)
    except (OSError, ValueError, struct.error):
        return 0


def _asked(family: int, local: tuple[str, int], remote: tuple[str, int]) -> int:
    """Ask the kernel for one socket; 0 when it does not know it, or does not answer such questions."""
    addresses = [socket.inet_pton(family, address).ljust(16, b"\0") for address, _ in (local, remote)]
    told = struct.pack("=BBBxI", family, socket.IPPROTO_TCP, 0, _ANY_STATE)
    told += _ID.pack(local[1], remote[1], *addresses) + struct.pack("=I", 0) + _NO_COOKIE
    with closing(socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, _SOCK_DIAG)) as kernel:
        kernel.settimeout(1)
        kernel.send(_HEADER.pack(_HEADER.size + len(told), _BY_FAMILY, _REQUEST, 1, 0) + told)
        answer = kernel.recv(4096)
    if (
        _HEADER.unpack_from(answer)[1] != _BY_FAMILY
        or _ANSWER.unpack_from(answer, _HEADER.size)[1] == _LISTEN
    ):
        return 0
    return int(struct.unpack_from("=I", answer, _INODE_AT)[0])


def _read(family: int, local: tuple[str, int], remote: tuple[str, int]) -> int:
    """Find a socket in the system's table, for kernels that can't be asked."""
    ends = tuple(_hexadecimal(family, *end) for end in (local, remote))
    for line in (
        Path(f"/proc/self/net/{_TABLES[socket.AddressFamily(family)]}").read_text("ascii").splitlines()[1:]
    ):
        fields = line.split()
        if (fields[1], fields[2]) == ends:
            return int(fields[9])
    return 0


def _hexadecimal(family: int, address: str, port: int) -> str:
    """Return an address as that table has it: words in the machine's order, the port as a number."""
    data = socket.inet_pton(family, address)
    words = struct.unpack(f"={len(data) // 4}I", data)
    return "".join(f"{word:08X}" for word in words) + f":{port:04X}"
