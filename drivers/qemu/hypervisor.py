"""QEMU, started by us: its process is our child, and gets its sockets and directories from us."""

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import ClassVar

from claude_vm.drivers.api import Owner, Progress
from claude_vm.drivers.errors import DriverError
from claude_vm.drivers.images.debian import RootfsSource
from claude_vm.drivers.programs import BuildEnvironment
from claude_vm.drivers.qemu.arguments import arguments
from claude_vm.drivers.vm.arguments import QemuBuild, VmPlan
from claude_vm.drivers.vm.hypervisor import Hypervisor, Spawned
from claude_vm.drivers.vm.machine import Files, Machine, attached
from claude_vm.drivers.vm.slots import inherited
from claude_vm.drivers.vm.spawn import confined, spawn


class Qemu(Hypervisor):
    """Starts QEMU itself; see `claude_vm.drivers.vm.hypervisor.Hypervisor`.

    ``<home>/instances/<supervisor id>/<instance id>/`` is an instance's folder.
    """

    name = "qemu"
    disk = "disk.qcow2"
    drive: ClassVar = {"node_name": "disk"}
    consoles = ("serial",)
    host_address = "10.0.2.2"

    def __init__(self, owner: Owner) -> None:
        super().__init__(owner)
        self._root = owner.home / "instances" / owner.supervisor_id

    def image_source(
        self,
        accelerator_name: str,  # noqa: ARG002 - the base class's
        image: str,
        build_env: BuildEnvironment,  # noqa: ARG002
    ) -> RootfsSource | None:
        """Return None: the image is built here.

        Raises:
            DriverError: Another one is wanted.
        """
        if image:
            raise DriverError(
                "the driver qemu can't start from another image",
                hint="use the driver lima, or leave [vm] image unset",
            )
        return None

    def arguments(self, host: QemuBuild, guest: VmPlan) -> Sequence[str]:
        """Return QEMU's argument list."""
        return arguments(host, guest)

    def folder(self, instance_id: str) -> Path:
        """Return where an instance is, or would be."""
        return self._root / instance_id

    def folders(self) -> Sequence[tuple[str, Path]]:
        """Return the names and folders of the owner's instances."""
        return [(path.name, path) for path in self._root.iterdir()] if self._root.is_dir() else []

    def everybody(self) -> Sequence[tuple[str, Path]]:
        """Return the names and folders of the instances of all owners of this home."""
        return [(path.name, path) for path in self._root.parent.glob("*/*")]

    def files(self, folder: Path) -> Files:
        """Return the files of a VM that is run in this folder; its sockets have short names elsewhere."""
        name = folder.name.rpartition("-")[2]
        return Files(folder, self.owner.runtime / f"{name}.m", self.owner.runtime / f"{name}.h")

    @asynccontextmanager
    async def launch(
        self,
        host: QemuBuild,
        guest: VmPlan,
        files: Files,
        *,
        spawned: Spawned,
        progress: Progress,  # noqa: ARG002 - it is there at once
        root_guest: bool,
    ) -> AsyncIterator[Machine]:
        """Start QEMU; see `Hypervisor.launch`.

        Raises:
            MountChangedError: A slot's directory is not the one that is meant.
            BootError: QEMU does not start.
        """
        files.empty.mkdir(mode=0o700, exist_ok=True)
        for log in (files.serial, files.log):
            log.unlink(missing_ok=True)
        with inherited(guest, files) as (told, descriptors):
            argv = confined(arguments(host, told), root_guest=root_guest)
            process = spawn(argv, files.log, descriptors)
        spawned(process)
        async with attached(process, files) as machine:
            yield machine
