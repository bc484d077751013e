"""The templates of virtual machines: what their generations have, and snapshots of them.

::

    <home>/templates/<name>/<kind>/<generation>/template.json
    <home>/templates/<name>/<kind>/<generation>/disk.qcow2        over the cached image
    <home>/templates/<name>/<kind>/<generation>/snapshots/<key>/  ram, state, disk.qcow2 if it has its own

See `claude_vm.drivers.templates`: a snapshot, too, appears by a rename, complete, and is never changed.
"""

import hashlib
import json
from contextlib import suppress
from pathlib import Path

import msgspec

from claude_vm.drivers.api import TemplateRecord
from claude_vm.drivers.errors import TemplateMissingError
from claude_vm.drivers.files import sync
from claude_vm.drivers.templates import Templates
from claude_vm.drivers.vm.arguments import Arguments, QemuBuild, Ram, VmPlan, VmSize


class Stored(msgspec.Struct, frozen=True):
    """``template.json``: the record, and what a VM of this template needs to know."""

    record: TemplateRecord
    uid: int
    gid: int
    kernel: str
    initrd: str
    kernel_arguments: str

    def guest(self, name: str, size: VmSize, disk: Path) -> VmPlan:
        """Return a VM of this template on a disk."""
        return VmPlan(
            name=name,
            cpus=size.cpus,
            memory_mib=size.memory_mib,
            disk=str(disk),
            kernel=self.kernel,
            initrd=self.initrd,
            kernel_arguments=self.kernel_arguments,
            uid=self.uid,
            user=self.record.user,
            home=self.record.home,
        )

    def snapshot_key(self, arguments: Arguments, host: QemuBuild, size: VmSize) -> str:
        """Return the name of the snapshots of this size that a QEMU with these arguments can read.

        Anything that may change how a saved state is read makes another one; then there is no snapshot, and
        the VM boots.
        """
        guest = VmPlan(
            name="",
            cpus=size.cpus,
            memory_mib=size.memory_mib,
            disk="",
            kernel=self.record.image,
            initrd="",
            kernel_arguments=self.kernel_arguments,
            ram=Ram("", shared=True),
        )
        facts = [list(arguments(host, guest)), host.build, host.cpu, self.uid]
        return hashlib.sha256(json.dumps(facts).encode()).hexdigest()[:16]


class Snapshot(msgspec.Struct, frozen=True):
    """A saved guest: its memory, the state of its devices, and the disk that both belong to."""

    disk: Path
    ram: Path
    state: Path

    @property
    def key(self) -> str:
        """The name under which `Generation.snapshot` finds it."""
        return self.state.parent.name


class Generation(msgspec.Struct, frozen=True):
    """One immutable generation of a template."""

    folder: Path
    stored: Stored

    @property
    def disk(self) -> Path:
        """The disk, to be used as a backing file only."""
        return self.folder / "disk.qcow2"

    def snapshot(self, key: str) -> Snapshot | None:
        """Return the snapshot of this key, if there is one."""
        folder = self.folder / "snapshots" / key
        if not (folder / "state").exists():
            return None
        own = folder / "disk.qcow2"
        return Snapshot(own if own.exists() else self.disk, folder / "ram", folder / "state")


class VmTemplates(Templates[Generation]):
    """The templates of a hypervisor in a data folder."""

    def read(self, folder: Path) -> Generation:
        """Return the generation in a folder; see `Templates.read`."""
        return Generation(folder, msgspec.json.decode((folder / "template.json").read_bytes(), type=Stored))

    def images(self) -> set[str]:
        """Return the keys of the images that generations are made of."""
        found = set()
        for folder in self._root.glob(f"*/{self.kind}/[0-9]*"):
            with suppress(TemplateMissingError):
                found.add(self.find(folder.parent.parent.name, folder.name).stored.record.image)
        return found


def size_bytes(folder: Path) -> int:
    """What the files of a folder take on the disk; sparse files count what they hold."""
    return sum(path.lstat().st_blocks * 512 for path in folder.rglob("*"))


def sync_tree(folder: Path) -> None:
    """Make what is in a folder survive a crash of the host."""
    for path in folder.rglob("*"):
        if path.is_file():
            sync(path)


def plain(record: msgspec.Struct) -> bytes:
    """Return a record as readable JSON."""
    return msgspec.json.format(msgspec.json.encode(record))
