"""QEMU, started by us: its process is our child, and gets its sockets and directories from us."""

from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Final

import msgspec

from claude_vm.drivers.api import Diagnostic, Owner, Progress
from claude_vm.drivers.errors import DriverError
from claude_vm.drivers.images.debian import RootfsSource
from claude_vm.drivers.programs import BuildEnvironment, Programs
from claude_vm.drivers.qemu.arguments import arguments
from claude_vm.drivers.vm import accelerator
from claude_vm.drivers.vm.arguments import QemuBuild, VmPlan
from claude_vm.drivers.vm.hypervisor import Spawned
from claude_vm.drivers.vm.machine import Files, Machine, attached
from claude_vm.drivers.vm.slots import opened
from claude_vm.drivers.vm.spawn import confined, listen, spawn

_MONITOR_FD: Final = 10
_HELPER_FD: Final = 11
_SLOTS_FD: Final = 12


class Qemu:
    """Starts QEMU itself; see `claude_vm.drivers.vm.hypervisor.Hypervisor`.

    ``<home>/instances/<supervisor id>/<instance id>/`` is an instance's folder.
    """

    name = "qemu"
    disk = "disk.qcow2"
    drive: Final[Mapping[str, str]] = {"node_name": "disk"}
    consoles = ("serial",)
    host_address = "10.0.2.2"
    phases = ()
    kernel_arguments = ""

    def __init__(self, owner: Owner) -> None:
        self.owner = owner
        self.mark = owner.mark
        self._root = owner.home / "instances" / owner.supervisor_id

    @property
    def needs(self) -> Sequence[str]:
        """The names of QEMU's programs."""
        return accelerator.programs()

    async def find_host(self, accelerator_name: str, programs: Programs) -> QemuBuild:
        """Ask the installed QEMU what it is.

        Raises:
            DriverError: There is none, or it does not answer as QEMU does.
        """
        return await accelerator.find_host(accelerator_name, programs)

    def image_source(
        self,
        accelerator_name: str,  # noqa: ARG002 - the Protocol's
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

    def problems(self, programs: Programs) -> Sequence[Diagnostic]:  # noqa: ARG002 - the Protocol's
        """Return nothing: all that QEMU needs is asked for by `find_host`."""
        return ()

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
        """Start QEMU; see the Protocol.

        Raises:
            MountChangedError: A slot's directory is not the one that is meant.
            BootError: QEMU does not start.
        """
        files.empty.mkdir(mode=0o700, exist_ok=True)
        for log in (files.serial, files.log):
            log.unlink(missing_ok=True)
        with (
            opened(guest.slots, _SLOTS_FD) as (slots, directories),
            listen(files.monitor) as monitor,
            listen(files.helper) as helper,
        ):
            guest = msgspec.structs.replace(
                guest,
                serial=str(files.serial),
                empty=str(files.empty),
                monitor=_MONITOR_FD,
                helper=_HELPER_FD,
                slots=slots,
            )
            argv = confined(arguments(host, guest), root_guest=root_guest)
            sockets = [(monitor.fileno(), _MONITOR_FD), (helper.fileno(), _HELPER_FD)]
            process = spawn(argv, files.log, [*sockets, *directories])
        spawned(process)
        async with attached(process, files) as machine:
            yield machine

    def authorized_keys(self) -> Sequence[str]:
        """Return nothing: nobody but the supervisor logs in."""
        return ()

    async def settle(self, machine: Machine) -> None:
        """Do nothing: nobody else waits for the guest."""

    async def end(self, files: Files) -> None:
        """Do nothing: a VM has no other process."""

    async def sweep(self) -> Sequence[str]:
        """Return nothing: images are made without a VM."""
        return ()

    def tidy(self, files: Files) -> None:
        """Remove the sockets.

        Raises:
            OSError: They can't be removed.
        """
        for path in (files.monitor, files.helper):
            path.unlink(missing_ok=True)
