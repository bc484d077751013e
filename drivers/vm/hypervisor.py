"""What starts VMs and where it keeps them: all in which the drivers for QEMU's virtual machines differ."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import ClassVar

import msgspec

from claude_vm.drivers.api import Diagnostic, Owner, Phase, Progress
from claude_vm.drivers.images.debian import RootfsSource
from claude_vm.drivers.process import ProcessIdentity
from claude_vm.drivers.programs import BuildEnvironment, Programs
from claude_vm.drivers.vm import accelerator
from claude_vm.drivers.vm.arguments import QemuBuild, VmPlan, VmSize
from claude_vm.drivers.vm.machine import Files, Machine
from claude_vm.drivers.vm.store import Stored

Spawned = Callable[[ProcessIdentity], None]
"""Is told a VM's process before anything else can fail. Never waits."""


class Hypervisor(ABC):
    """What starts the VMs of one owner. The methods that do nothing here are optional.

    `name` is that of its driver, and of the folder of its templates' generations. `disk` is the name of a
    VM's disk in its folder, and `drive` how the monitor's ``block_resize`` calls it. `consoles` are the ids
    of the devices whose output goes into files. `host_address` is what guests call the host's loopback.
    `phases` are those by which `launch` tells how far it is. `kernel_arguments` are added to an image's own.
    `mark` is what the name of each of these VMs begins with, under this hypervisor and no other.
    """

    name: ClassVar[str]
    disk: ClassVar[str]
    drive: ClassVar[Mapping[str, str]]
    consoles: ClassVar[Sequence[str]]
    host_address: ClassVar[str]
    phases: ClassVar[Sequence[Phase]] = ()
    kernel_arguments: ClassVar[str] = ""

    def __init__(self, owner: Owner) -> None:
        self.owner = owner
        self.mark = owner.mark

    @staticmethod
    def needs() -> Sequence[str]:
        """Return the names of the programs without which no VM starts.

        Raises:
            DriverError: We have no machine for this architecture.
        """
        return accelerator.programs()

    async def find_host(self, accelerator_name: str, programs: Programs) -> QemuBuild:
        """Ask what is installed what it is.

        Raises:
            DriverError: Something is missing, or does not answer.
        """
        return await accelerator.find_host(accelerator_name, programs)

    @abstractmethod
    def image_source(
        self, accelerator_name: str, image: str, build_env: BuildEnvironment
    ) -> RootfsSource | None:
        """Return what a template's image is made of; None for Debian's packages. `image` is what was asked.

        Raises:
            DriverError: It can't be made of that.
        """

    def problems(self, programs: Programs) -> Sequence[Diagnostic]:  # noqa: ARG002 - for those who look
        """Return what is missing or may not be used, as far as nothing has to be started to know it."""
        return ()

    @abstractmethod
    def arguments(self, host: QemuBuild, guest: VmPlan) -> Sequence[str]:
        """Return what decides whether a saved state fits a VM: QEMU's argument list, as far as it is ours."""

    @abstractmethod
    def folder(self, instance_id: str) -> Path:
        """Return where an instance is, or would be.

        Raises:
            DriverError: Others could write to what it lies in.
        """

    @abstractmethod
    def folders(self) -> Sequence[tuple[str, Path]]:
        """Return the names and folders of the owner's instances."""

    @abstractmethod
    def everybody(self) -> Sequence[tuple[str, Path]]:
        """Return the names and folders of the instances of all owners of this home."""

    @abstractmethod
    def files(self, folder: Path) -> Files:
        """Return the files of a VM that is run for this folder: an instance's, or a build's.

        Raises:
            DriverError: Others could write to what they lie in.
        """

    @abstractmethod
    def launch(
        self,
        host: QemuBuild,
        guest: VmPlan,
        files: Files,
        *,
        spawned: Spawned,
        progress: Progress,
        root_guest: bool,
    ) -> AbstractAsyncContextManager[Machine]:
        """Start a VM and connect to its monitor, for as long as the block lasts; the VM goes on after it.

        What `guest` has from where it runs is set here, and its slots' directories opened.

        Raises:
            MountChangedError: A slot's directory is not the one that is meant.
            BootError: It does not start.
        """

    def authorized_keys(self) -> Sequence[str]:
        """Return public keys that may log in beside the supervisor's own."""
        return ()

    async def settle(self, machine: Machine) -> None:  # noqa: B027 - nothing may be left
        """Do what is left once a guest has its identity.

        Raises:
            DriverError: The guest does not do it.
        """

    async def end(self, files: Files) -> None:  # noqa: B027 - nothing else may run
        """End what runs beside the VM's own process, which may have ended or not.

        Raises:
            DriverError: It does not die.
        """

    async def sweep(self) -> Sequence[str]:
        """Remove what killed makers of images have left beside the images' own folder; return it.

        Raises:
            DriverError: It can't be removed.
        """
        return ()

    def tidy(self, files: Files) -> None:
        """Remove what a VM that has ended leaves outside of its folder. What isn't there is fine.

        Raises:
            OSError: It can't be removed.
        """
        for path in (files.monitor, files.helper):
            path.unlink(missing_ok=True)


class Toolchain(msgspec.Struct, frozen=True):
    """What VMs are made with: a hypervisor, where its programs are looked for, and what these are here."""

    hypervisor: Hypervisor
    programs: Programs
    host: QemuBuild

    def snapshot_key(self, stored: Stored, size: VmSize) -> str:
        """Return the key of the snapshots of this size that this host's QEMU can read."""
        return stored.snapshot_key(self.hypervisor.arguments, self.host, size)
