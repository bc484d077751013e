"""The system calls that the helper makes."""

import ctypes
import fcntl
import os
import socket
import struct
import time
from contextlib import suppress

from . import paths
from .files import read, replace
from .requests import RequestError

BOOT_ID = "/proc/sys/kernel/random/boot_id"

RNDADDENTROPY = 0x40085203
RNDRESEEDCRNG = 0x5207
EXT4_IOC_RESIZE_FS = 0x40086610
MS_RDONLY, MS_NOSUID, MS_NODEV, MS_BIND = 1, 2, 4, 4096
MNT_DETACH = 2


class System:
    """The system calls that the helper makes."""

    def __init__(self) -> None:
        self.libc = ctypes.CDLL(None, use_errno=True)

    def reseed(self, entropy: bytes) -> None:
        """Add bytes to the kernel's random pool, and let it use them at once."""
        random = os.open("/dev/random", os.O_RDWR)
        try:
            fcntl.ioctl(random, RNDADDENTROPY, struct.pack("ii", len(entropy) * 8, len(entropy)) + entropy)
            fcntl.ioctl(random, RNDRESEEDCRNG)
        finally:
            os.close(random)

    def set_clock(self, unix_s: float) -> None:
        """Set the wall clock."""
        time.clock_settime(time.CLOCK_REALTIME, unix_s)

    def set_names(self, hostname: str, machine_id: str) -> None:
        """Set host name, machine id and boot id, in the kernel and in the files that programs read."""
        socket.sethostname(hostname)
        hosts = f"127.0.0.1\tlocalhost\n127.0.1.1\t{hostname}\n::1\tlocalhost ip6-localhost ip6-loopback\n"
        replace("/etc/hosts", hosts.encode(), 0o644)
        replace("/etc/hostname", f"{hostname}\n".encode(), 0o644)
        # Until its first boot is over, systemd has a temporary one mounted over the file.
        with suppress(OSError):
            self.unmount("/etc/machine-id", MNT_DETACH)
        replace("/etc/machine-id", f"{machine_id}\n".encode(), 0o444)
        # The kernel's own is part of the snapshot; programs take it for unique.
        boot = (
            f"{machine_id[:8]}-{machine_id[8:12]}-4{machine_id[13:16]}-a{machine_id[17:20]}-{machine_id[20:]}"
        )
        replace(f"{paths.RUN}/boot_id", f"{boot}\n".encode(), 0o444)
        with suppress(OSError):
            self.unmount(BOOT_ID, MNT_DETACH)
        self.mount(f"{paths.RUN}/boot_id", BOOT_ID, "", MS_BIND, "")

    def mount(self, source: str, target: str, kind: str, flags: int, options: str) -> None:
        """Mount a file system, or bind a file."""
        first, second, third, last = (os.fsencode(text) for text in (source, target, kind, options))
        if self.libc.mount(first, second, third, ctypes.c_ulong(flags), last):
            code = ctypes.get_errno()
            raise OSError(code, os.strerror(code), target)

    def unmount(self, target: str, flags: int = 0) -> None:
        """Unmount a file system."""
        if self.libc.umount2(os.fsencode(target), flags):
            code = ctypes.get_errno()
            raise OSError(code, os.strerror(code), target)

    def resize(self, size: int) -> None:
        """Grow the root file system to a disk of this many bytes, as soon as the disk has them."""
        deadline = time.monotonic() + 10
        while int(read("/sys/block/vda/size")) * 512 < size:
            if time.monotonic() > deadline:
                raise RequestError("the disk did not grow")
            time.sleep(0.01)
        root = os.statvfs("/")
        if root.f_blocks * root.f_frsize > size * 0.98:
            return
        directory = os.open("/", os.O_RDONLY)
        try:
            fcntl.ioctl(directory, EXT4_IOC_RESIZE_FS, struct.pack("Q", size // root.f_bsize))
        finally:
            os.close(directory)


def let_die(pid: int) -> None:
    """Let a process be chosen when memory is short, unlike the helper itself."""
    with open(f"/proc/{pid}/oom_score_adj", "w", encoding="ascii") as score:
        score.write("0")
