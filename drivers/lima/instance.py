"""An instance's folder as Lima wants it, made by hand: a linked clone, in milliseconds.

The disk is an overlay or a link, kernel and initrd are links, and ``lima.yaml`` comes last, because with it
the folder is an instance. What a former start has left there, such as files with process ids, is removed
first: Lima would take it for a running one.
"""

import os
import re
import socket
import struct
from collections.abc import Collection
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Final

from claude_vm.drivers import files
from claude_vm.drivers.errors import DriverError, words_of
from claude_vm.drivers.lima.arguments import kernel_arguments
from claude_vm.drivers.lima.document import LimaInstance, document
from claude_vm.drivers.lima.events import CONSOLES, PHASES, STATES
from claude_vm.drivers.vm.arguments import QemuBuild, VmPlan

STAND_IN: Final = "start-qemu"
LOG: Final = "limactl.log"
_STALE: Final = (".pid", ".sock", ".tmp")
_INSTANCE_ID: Final = re.compile(rb"instance-id: (iid-[0-9]{1,20})\n")
_QCOW2: Final = b"QFI\xfb"


def furnish(folder: Path, host: QemuBuild, guest: VmPlan, port: int, script: str) -> None:
    """Make a folder an instance of Lima's that starts this guest, with `script` as its QEMU.

    Raises:
        DriverError: It can't be made.
    """
    try:
        folder.mkdir(mode=0o700, exist_ok=True)
        for path in folder.iterdir():
            if path.suffix in _STALE:
                path.unlink()
        for name in (LOG, PHASES, STATES, *CONSOLES):
            (folder / name).unlink(missing_ok=True)
        disk = folder / "disk"
        if Path(guest.disk) != disk:
            _link(disk, guest.disk)
        _link(folder / "kernel", guest.kernel)
        _link(folder / "initrd", guest.initrd)
        (folder / "kernel.cmdline").write_text(kernel_arguments(guest), encoding="utf-8")
        files.replace(folder / STAND_IN, script.encode(), 0o700)
        told = LimaInstance(
            architecture=host.architecture,
            cpus=guest.cpus,
            memory_mib=guest.memory_mib,
            disk_bytes=disk_size(disk),
            image=guest.disk,
            ssh_port=port,
            uid=guest.uid,
            user=guest.user,
            home=guest.home,
        )
        files.replace(folder / "lima.yaml", document(told))
    except OSError as error:
        raise DriverError(f"Lima's instance {folder.name} can't be made: {words_of(error)}") from error


def _link(path: Path, target: str) -> None:
    path.unlink(missing_ok=True)
    path.symlink_to(target)


def disk_size(path: Path) -> int:
    """Return how many bytes a guest sees of a disk (qcow2, or raw).

    Raises:
        OSError: It can't be read.
    """
    with path.open("rb") as file:
        head = file.read(32)
        if head[:4] == _QCOW2:
            size: int = struct.unpack(">Q", head[24:32])[0]
            return size
        return file.seek(0, os.SEEK_END)


def boot_name(folder: Path) -> str:
    """Return Lima's name of this very start, for which it waits in the guest; empty without one.

    It stands in the disk for cloud-init, as plain text in one of its blocks.
    """
    with suppress(OSError):
        found = _INSTANCE_ID.search((folder / "cidata.iso").read_bytes())
        if found is not None:
            return found[1].decode()
    return ""


def free_port(given: Collection[int] = ()) -> int:
    """Return a TCP port of the loopback that nobody uses at this moment, and none that was `given` already.

    Raises:
        DriverError: There is none.
    """
    with ExitStack() as refused:  # held until the end, so that the next one is another
        while True:
            probe = refused.enter_context(socket.socket(socket.AF_INET, socket.SOCK_STREAM))
            try:
                probe.bind(("127.0.0.1", 0))
            except OSError as error:
                raise DriverError(f"there is no free port: {error.strerror}") from error
            port: int = probe.getsockname()[1]
            if port not in given:
                return port
