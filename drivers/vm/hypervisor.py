"""What starts VMs and where it keeps them: all in which the drivers for QEMU's virtual machines differ."""

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import Protocol

import msgspec

from claude_vm.drivers.api import Diagnostic, Owner, Phase, Progress
from claude_vm.drivers.images.debian import RootfsSource
from claude_vm.drivers.process import ProcessIdentity
from claude_vm.drivers.programs import BuildEnvironment, Programs
from claude_vm.drivers.vm.arguments import QemuBuild, VmPlan, VmSize
from claude_vm.drivers.vm.machine import Files, Machine
from claude_vm.drivers.vm.store import Stored

Spawned = Callable[[ProcessIdentity], None]
"""Is told a VM's process before anything else can fail. Never waits."""


class Hypervisor(Protocol):
    """What starts the VMs of one owner."""

    @property
    def owner(self) -> Owner:
        """Whose VMs and templates these are."""
        ...

    @property
    def name(self) -> str:
        """The name of its driver, and of the folder of its templates' generations."""
        ...

    @property
    def disk(self) -> str:
        """The name of a VM's disk in its folder."""
        ...

    @property
    def drive(self) -> Mapping[str, str]:
        """How the monitor's ``block_resize`` calls the disk."""
        ...

    @property
    def consoles(self) -> Sequence[str]:
        """The ids of the devices whose output goes into files."""
        ...

    @property
    def host_address(self) -> str:
        """What guests call the host's loopback."""
        ...

    @property
    def phases(self) -> Sequence[Phase]:
        """Those by which `launch` tells how far it is."""
        ...

    @property
    def kernel_arguments(self) -> str:
        """What is added to an image's own."""
        ...

    @property
    def needs(self) -> Sequence[str]:
        """The names of the programs without which no VM starts."""
        ...

    @property
    def mark(self) -> str:
        """What the name of each of these VMs begins with, under this hypervisor and no other."""
        ...

    async def find_host(self, accelerator: str, programs: Programs) -> QemuBuild:
        """Ask what is installed what it is.

        Raises:
            DriverError: Something is missing, or does not answer.
        """
        ...

    def image_source(self, accelerator: str, image: str, build_env: BuildEnvironment) -> RootfsSource | None:
        """Return what a template's image is made of; None for Debian's packages. `image` is what was asked.

        Raises:
            DriverError: It can't be made of that.
        """
        ...

    def problems(self, programs: Programs) -> Sequence[Diagnostic]:
        """Return what is missing or may not be used, as far as nothing has to be started to know it."""
        ...

    def arguments(self, host: QemuBuild, guest: VmPlan) -> Sequence[str]:
        """Return what decides whether a saved state fits a VM: QEMU's argument list, as far as it is ours."""
        ...

    def folder(self, instance_id: str) -> Path:
        """Return where an instance is, or would be.

        Raises:
            DriverError: Others could write to what it lies in.
        """
        ...

    def folders(self) -> Sequence[tuple[str, Path]]:
        """Return the names and folders of the owner's instances."""
        ...

    def everybody(self) -> Sequence[tuple[str, Path]]:
        """Return the names and folders of the instances of all owners of this home."""
        ...

    def files(self, folder: Path) -> Files:
        """Return the files of a VM that is run for this folder: an instance's, or a build's.

        Raises:
            DriverError: Others could write to what they lie in.
        """
        ...

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
        ...

    def authorized_keys(self) -> Sequence[str]:
        """Return public keys that may log in beside the supervisor's own."""
        ...

    async def settle(self, machine: Machine) -> None:
        """Do what is left once a guest has its identity.

        Raises:
            DriverError: The guest does not do it.
        """
        ...

    async def end(self, files: Files) -> None:
        """End what runs beside the VM's own process, which may have ended or not.

        Raises:
            DriverError: It does not die.
        """
        ...

    async def sweep(self) -> Sequence[str]:
        """Remove what killed makers of images have left beside the images' own folder; return it.

        Raises:
            DriverError: It can't be removed.
        """
        ...

    def tidy(self, files: Files) -> None:
        """Remove what a VM that has ended leaves outside of its folder. What isn't there is fine.

        Raises:
            OSError: It can't be removed.
        """
        ...


class Toolchain(msgspec.Struct, frozen=True):
    """What VMs are made with: a hypervisor, where its programs are looked for, and what these are here."""

    hypervisor: Hypervisor
    programs: Programs
    host: QemuBuild

    def snapshot_key(self, stored: Stored, size: VmSize) -> str:
        """Return the key of the snapshots of this size that this host's QEMU can read."""
        return stored.snapshot_key(self.hypervisor.arguments, self.host, size)
