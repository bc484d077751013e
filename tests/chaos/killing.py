"""Kills a process of a home, or cuts a connection, from outside and at any moment."""

import contextlib
import ctypes
import os
import signal
import socket

import psutil

PIDFD_GETFD = 438
"""The number of the system call: the C library has no function for it everywhere."""

VICTIMS = ("supervisor", "vm", "ssh", "client")


def strike(kind, house, clients, rng):
    """Kill one of a kind, any; return what it was in words, "" if there is none."""
    match kind:
        case "supervisor":
            return _kill(house.daemon_pid(), "the supervisor")
        case "vm":
            return _kill(_any(house.vm_pids(), rng), "a VM")
        case "client":
            return _kill(_any([c.pid for c in clients if c.poll() is None], rng), "a client")
        case "ssh":
            return "an ssh connection" if cut_connection(house.daemon_pid(), rng) else ""
    raise ValueError(kind)


def cut_connection(pid, rng):
    """Break one of the connections that a process has to guests; return whether there was one.

    The socket is taken from that process by the kernel's leave, and shut down beneath whoever uses it.
    """
    if pid is None:
        return False
    with contextlib.suppress(psutil.Error, OSError):
        found = psutil.Process(pid).net_connections(kind="tcp")
        descriptors = [c.fd for c in found if c.status == psutil.CONN_ESTABLISHED]
        if not descriptors:
            return False
        pidfd = os.pidfd_open(pid)
        try:
            copy = ctypes.CDLL(None, use_errno=True).syscall(PIDFD_GETFD, pidfd, rng.choice(descriptors), 0)
        finally:
            os.close(pidfd)
        if copy >= 0:
            with socket.socket(fileno=copy) as taken:
                taken.shutdown(socket.SHUT_RDWR)
            return True
    return False


def _any(pids, rng):
    return rng.choice(sorted(pids)) if pids else None


def _kill(pid, what):
    if pid is None:
        return ""
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)
        return f"{what} ({pid})"
    return ""
