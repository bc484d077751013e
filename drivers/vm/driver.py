"""A driver of virtual machines: the `Driver` Protocol over the modules beside this one and a hypervisor."""

import os
import sys
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, suppress
from typing import Final

import anyio
import anyio.to_thread
import msgspec

from claude_vm.drivers.api import (
    Access,
    Capabilities,
    Diagnostic,
    GuestFile,
    InstanceRecord,
    InstanceSpec,
    InstanceStatus,
    Progress,
    Reachable,
    TemplateRecord,
    TemplateSpec,
    tell_no_progress,
    tell_nobody,
)
from claude_vm.drivers.errors import DriverError, GuestError
from claude_vm.drivers.images.debian import images as cached_images
from claude_vm.drivers.images.debian import remove_image
from claude_vm.drivers.images.rootfs import guest_programs
from claude_vm.drivers.programs import Programs
from claude_vm.drivers.templates import discard
from claude_vm.drivers.vm import accelerator
from claude_vm.drivers.vm.arguments import SLOTS, QemuBuild
from claude_vm.drivers.vm.channel import Channel
from claude_vm.drivers.vm.hypervisor import Hypervisor, Toolchain
from claude_vm.drivers.vm.instance import Instances
from claude_vm.drivers.vm.machine import HELPER_S, NeverBootedError
from claude_vm.drivers.vm.phases import VmPhase
from claude_vm.drivers.vm.snapshots import end_build
from claude_vm.drivers.vm.start import VmStart
from claude_vm.drivers.vm.store import VmTemplates
from claude_vm.drivers.vm.template import build

_FILES_S: Final = 30.0

_INSTRUCTIONS: Final = """\
Folders that are mounted from the host (`findmnt -t 9p`) take no FIFOs and no unix sockets (ENXIO): make those
in /tmp. File locks in such folders, and so SQLite's, hold within this machine only.
"""


class VmDriver:
    """Makes VMs with a hypervisor, as the user who runs it; see `claude_vm.drivers.api.Driver`."""

    def __init__(self, hypervisor: Hypervisor, programs: Programs) -> None:
        self.name = hypervisor.name
        self._hypervisor = hypervisor
        self._programs = programs
        self._home = hypervisor.owner.home
        self._instances = Instances(hypervisor)
        self._templates = VmTemplates(self._home, hypervisor.name)
        self._host: tuple[object, QemuBuild] | None = None
        self._host_lock = anyio.Lock()
        self._channels: dict[str, Channel] = {}

    def look_in(self, programs: Programs) -> None:
        """Look for programs there from now on, unless some lack there that were found before."""
        needs = self._hypervisor.needs()
        if all(map(programs.find, needs)) or not all(map(self._programs.find, needs)):
            self._programs = programs

    async def diagnose(self) -> Sequence[Diagnostic]:
        """Return what is missing on this host. Never raises."""
        problems = self._hypervisor.problems(self._programs)
        if problems:
            return problems
        try:
            await self._tools()
        except DriverError as error:
            return [Diagnostic(error.message, error.hint or "see the message", fatal=True)]
        choice = accelerator.choose(self._home)
        if choice.name == "tcg":
            return [
                Diagnostic(
                    f"no hardware acceleration: {choice.reason}", "enable KVM on this host", fatal=False
                )
            ]
        return []

    async def capabilities(self) -> Capabilities:
        """Return what this driver can do here."""
        choice = accelerator.choose(self._home)
        first = (VmPhase.RESTORE, VmPhase.BOOT) if _ram_clones() else (VmPhase.BOOT,)
        return Capabilities(
            choice.name,
            choice.reason,
            ram_clones=_ram_clones(),
            max_mounts=SLOTS,
            host_address=self._hypervisor.host_address,
            prestart=_ram_clones(),  # it is a snapshot's state that such a QEMU waits for
            phases=(*first, *self._hypervisor.phases, VmPhase.IDENTITY, VmPhase.MOUNTS),
            instructions=_INSTRUCTIONS,
        )

    async def clone(self, spec: InstanceSpec) -> None:
        """Make the disk and the folder of a new instance.

        Raises:
            DriverError: See the Protocol.
        """
        await self._instances.folder(spec.instance_id).clone(spec, self._templates, self._programs)

    async def prestart(self, instance_id: str) -> None:
        """Start an instance's QEMU, which then waits.

        Raises:
            DriverError: It does not come so far, or can't do that here.
        """
        if not _ram_clones():
            raise DriverError("this host has no RAM clones, so there is nothing to start ahead")
        tools = await self._tools()
        await VmStart(tools, self._instances.folder(instance_id), self._templates, tell_no_progress).ahead()

    async def start(self, instance_id: str, progress: Progress, reachable: Reachable = tell_nobody) -> Access:
        """Restore or boot an instance.

        Raises:
            DriverError: It does not come up.
        """
        tools = await self._tools()
        start = VmStart(tools, self._instances.folder(instance_id), self._templates, progress)
        return await start.run(reachable, ram_clones=_ram_clones())

    async def put_files(self, instance_id: str, files: Sequence[GuestFile]) -> None:
        """Write files into a running guest.

        Raises:
            DriverError: The guest does not answer, or says why it can't.
        """
        await self._channel(instance_id).put_files(files, timeout_s=_FILES_S)

    async def set_clock(self, instance_id: str) -> None:
        """Set the guest's clock to the host's.

        Raises:
            DriverError: The guest does not answer.
        """
        try:
            with anyio.fail_after(HELPER_S):
                await self._channel(instance_id).set_clock(timeout_s=HELPER_S)
        except TimeoutError:
            raise GuestError(f"the guest does not answer (clock, {HELPER_S:g} s)") from None

    async def poll(self, instance_id: str) -> InstanceStatus:
        """Return the instance's status. Never raises."""
        return await anyio.to_thread.run_sync(self._instances.status, instance_id)

    async def taken_mib(self, instance_id: str) -> int:
        """Return what the VM takes of the host's memory. Never raises."""
        with suppress(DriverError):
            return await anyio.to_thread.run_sync(self._instances.folder(instance_id).taken_mib)
        return 0

    async def wait_stopped(self, instance_id: str) -> str:
        """Return why the VM ended, once it has.

        Raises:
            DriverError: That is no instance id.
        """
        return await self._instances.folder(instance_id).wait_stopped()

    async def delete(self, instance_id: str) -> None:
        """End the VM and remove all that belongs to it.

        Raises:
            DriverError: Something could not be removed.
        """
        channel = self._channels.pop(instance_id, None)
        if channel is not None:
            await channel.aclose()
        await self._instances.folder(instance_id).delete()

    async def list_instances(self) -> Sequence[InstanceRecord]:
        """Return everything that bears the owner's mark."""
        return await anyio.to_thread.run_sync(self._instances.records)

    async def build_template(self, spec: TemplateSpec, progress: Progress) -> TemplateRecord:
        """Build a new generation and make it the current one.

        A first VM that doesn't boot under KVM proves that KVM does not work here; then all goes on without.

        Raises:
            DriverError: With the failing tool's last output.
        """
        await self._remove_dead_builds()
        # What is left of an image's maker stands in no build's way, and `collect_garbage` tells of it.
        with suppress(DriverError, OSError):
            await self._hypervisor.sweep()
        tools = await self._tools()
        try:
            built = await build(tools, self._templates, spec, progress)
        except NeverBootedError as error:
            if tools.host.accelerator != "kvm":
                raise
            accelerator.condemn(self._home, error.message)
            progress(VmPhase.NO_KVM, error.message)
            host = await self._find_host(tools.programs)
            built = await build(msgspec.structs.replace(tools, host=host), self._templates, spec, progress)
        await self.touch_template(spec.name)
        return built.record

    async def templates(self) -> Sequence[TemplateRecord]:
        """Return the current generation of each template, by name."""
        return [
            msgspec.structs.replace(
                found.stored.record,
                last_used_at=self._templates.last_used(found.stored.record.name),
                stale=found.stored.record.guest != guest_programs(),
            )
            for found in self._templates.current()
        ]

    async def touch_template(self, name: str) -> None:
        """Record that the template is used now."""
        with suppress(OSError):
            self._templates.touch(name)

    async def delete_template(self, name: str) -> None:
        """Remove all generations of a template.

        Raises:
            TemplateInUseError: With the instances that use it.
        """
        await self._templates.delete(name, self._instances.users)

    async def collect_garbage(self, *, images: bool = False) -> Sequence[str]:
        """Remove what nothing uses any more.

        Raises:
            DriverError: Something could not be removed.
        """
        removed = await self._remove_dead_builds()
        removed += await self._templates.discard_unused(self._instances.users)
        if images:
            removed += await self._remove_images()
        swept = await self._hypervisor.sweep()
        return [*removed, *(f"interrupted {name}" for name in swept)]

    async def _remove_images(self) -> list[str]:
        cache = self._home / "cache"
        # A build that goes on uses an image that no generation names yet.
        if cache.is_symlink() or self._templates.are_built():
            return []
        kept = self._templates.images()
        unused = [i.key for i in await anyio.to_thread.run_sync(cached_images, cache) if i.key not in kept]
        for key in unused:
            await remove_image(cache, key, self._programs)
        return [f"image {key}" for key in unused]

    async def aclose(self) -> None:
        """Close the connections to guests; the VMs go on."""
        for channel in self._channels.values():
            await channel.aclose()
        self._channels.clear()

    async def _remove_dead_builds(self) -> list[str]:
        removed = []
        for folder in await anyio.to_thread.run_sync(self._templates.dead_builds):
            await end_build(self._hypervisor, folder)
            with suppress(FileNotFoundError):
                await anyio.to_thread.run_sync(discard, folder)
            removed.append(f"interrupted build {folder.name}")
        return removed

    def _channel(self, instance_id: str) -> Channel:
        if instance_id not in self._channels:
            self._channels[instance_id] = Channel(self._instances.folder(instance_id).files.helper)
        return self._channels[instance_id]

    async def _tools(self) -> Toolchain:
        """Return what VMs are made with now; what is under way goes on with what it began with.

        Raises:
            DriverError: Something is missing, or does not answer.
        """
        programs = self._programs
        return Toolchain(self._hypervisor, programs, await self._find_host(programs))

    async def _find_host(self, programs: Programs) -> QemuBuild:
        """Return what is installed, asked anew when that, or what it can do here, has become another."""
        choice = accelerator.choose(self._home)
        seen = (choice.name, *(_version(programs.find(name)) for name in self._hypervisor.needs()))
        async with self._host_lock:
            if self._host is None or self._host[0] != seen:
                self._host = seen, await self._hypervisor.find_host(choice.name, programs)
            return self._host[1]


def _version(program: str | None) -> tuple[str, int, int] | None:
    """Return what tells a program from what another client finds, and from what was installed later."""
    try:
        found = None if program is None else os.stat(program)  # noqa: PTH116 - asked at each start
    except OSError:
        return None
    return None if found is None or program is None else (program, found.st_mtime_ns, found.st_size)


BOOT_ONLY: Final = ("CLAUDE_VM_RAM_CLONES", "off")
"""The environment variable, and its value, that makes every instance boot, to measure what clones save."""


def _ram_clones() -> bool:
    """Private copies of a memory file have been tried on Linux only."""
    name, off = BOOT_ONLY
    return sys.platform == "linux" and os.environ.get(name) != off


@asynccontextmanager
async def open_vm_driver(hypervisor: Hypervisor, programs: Programs) -> AsyncIterator[VmDriver]:
    """Open a hypervisor's driver for its owner; leaving the block stops no VM."""
    with suppress(OSError):  # who only looks needs none, and what needs one says what is wrong
        hypervisor.owner.home.mkdir(mode=0o700, parents=True, exist_ok=True)
    driver = VmDriver(hypervisor, programs)
    try:
        yield driver
    finally:
        with anyio.CancelScope(shield=True):
            await driver.aclose()
