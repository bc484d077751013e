"""A driver of virtual machines: the `Driver` Protocol over the modules beside this one and a hypervisor."""

import os
import sys
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Final

import anyio
import anyio.to_thread
import msgspec

from claude_vm.drivers.api import (
    Access,
    Capabilities,
    GuestFile,
    InstanceRecord,
    InstanceSpec,
    InstanceStatus,
    Owner,
    Problem,
    Progress,
    Reachable,
    TemplateRecord,
    TemplateSpec,
    tell_nobody,
)
from claude_vm.drivers.errors import DriverError, GuestError, TemplateInUseError
from claude_vm.drivers.images.debian import images as cached_images
from claude_vm.drivers.images.debian import remove_image
from claude_vm.drivers.images.rootfs import guest_programs
from claude_vm.drivers.programs import Programs
from claude_vm.drivers.vm import accelerator, instance, starting, store
from claude_vm.drivers.vm.arguments import SLOTS, Host
from claude_vm.drivers.vm.channel import Channel
from claude_vm.drivers.vm.hypervisor import Estate, Hypervisor
from claude_vm.drivers.vm.machine import HELPER_S, NeverBootedError, set_clock
from claude_vm.drivers.vm.snapshots import end_build
from claude_vm.drivers.vm.template import build

_FILES_S: Final = 30.0


class VmDriver:
    """Makes VMs with a hypervisor, as the user who runs it; see `claude_vm.drivers.api.Driver`."""

    def __init__(self, owner: Owner, hypervisor: Hypervisor, programs: Programs) -> None:
        self.name = hypervisor.name
        self._estate = Estate(owner, hypervisor, programs)
        self._home = owner.home
        self._host: tuple[object, Host] | None = None
        self._host_lock = anyio.Lock()
        self._channels: dict[str, Channel] = {}

    def look_in(self, programs: Programs) -> None:
        """Look for programs there from now on, unless some lack there that were found before."""
        needs = self._estate.hypervisor.needs
        if all(map(programs.find, needs)) or not all(map(self._estate.programs.find, needs)):
            self._estate = msgspec.structs.replace(self._estate, programs=programs)

    async def diagnose(self) -> Sequence[Problem]:
        """Return what is missing on this host. Never raises."""
        estate = self._estate
        problems = estate.hypervisor.problems(estate.programs)
        if problems:
            return problems
        try:
            await self._find_host(estate)
        except DriverError as error:
            return [Problem(error.message, error.hint or "see the message", fatal=True)]
        choice = accelerator.choose(self._home)
        if choice.name == "tcg":
            return [
                Problem(f"no hardware acceleration: {choice.reason}", "enable KVM on this host", fatal=False)
            ]
        return []

    async def capabilities(self) -> Capabilities:
        """Return what this driver can do here."""
        choice = accelerator.choose(self._home)
        return Capabilities(
            choice.name,
            choice.reason,
            ram_clones=_ram_clones(),
            max_mounts=SLOTS,
            prestart=_ram_clones(),  # it is a snapshot's state that such a QEMU waits for
        )

    async def clone(self, spec: InstanceSpec) -> None:
        """Make the disk and the folder of a new instance.

        Raises:
            DriverError: See the Protocol.
        """
        await instance.clone(self._estate, spec)

    async def prestart(self, instance_id: str) -> None:
        """Start an instance's QEMU, which then waits.

        Raises:
            DriverError: It does not come so far, or can't do that here.
        """
        if not _ram_clones():
            raise DriverError("this host has no RAM clones, so there is nothing to start ahead")
        estate = self._estate
        await starting.prestart(await self._find_host(estate), estate, instance_id)

    async def start(self, instance_id: str, progress: Progress, reachable: Reachable = tell_nobody) -> Access:
        """Restore or boot an instance.

        Raises:
            DriverError: It does not come up.
        """
        estate = self._estate
        host = await self._find_host(estate)
        access, channel = await starting.start(
            host, estate, instance_id, progress, reachable, ram_clones=_ram_clones()
        )
        self._channels[instance_id] = channel
        return access

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
                await set_clock(self._channel(instance_id))
        except TimeoutError:
            raise GuestError(f"the guest does not answer (clock, {HELPER_S:g} s)") from None

    async def poll(self, instance_id: str) -> InstanceStatus:
        """Return the instance's status. Never raises."""
        return await anyio.to_thread.run_sync(instance.status, self._estate, instance_id)

    async def taken_mib(self, instance_id: str) -> int:
        """Return what the VM takes of the host's memory. Never raises."""
        return await anyio.to_thread.run_sync(instance.taken, self._estate, instance_id)

    async def wait_stopped(self, instance_id: str) -> str:
        """Return why the VM ended, once it has.

        Raises:
            DriverError: That is no instance id.
        """
        return await instance.wait_stopped(self._estate, instance_id)

    async def delete(self, instance_id: str) -> None:
        """End the VM and remove all that belongs to it.

        Raises:
            DriverError: Something could not be removed.
        """
        channel = self._channels.pop(instance_id, None)
        if channel is not None:
            await channel.aclose()
        await instance.delete(self._estate, instance_id)

    async def list_instances(self) -> Sequence[InstanceRecord]:
        """Return everything that bears the owner's mark."""
        return await anyio.to_thread.run_sync(instance.records, self._estate)

    async def build_template(self, spec: TemplateSpec, progress: Progress) -> TemplateRecord:
        """Build a new generation and make it the current one.

        A first VM that doesn't boot under KVM proves that KVM does not work here; then all goes on without.

        Raises:
            DriverError: With the failing tool's last output.
        """
        await self._remove_dead_builds()
        # What is left of an image's maker stands in no build's way, and `collect_garbage` tells of it.
        with suppress(DriverError, OSError):
            await self._estate.hypervisor.sweep(self._home)
        estate = self._estate
        host = await self._find_host(estate)
        try:
            built = await build(host, estate, spec, progress)
        except NeverBootedError as error:
            if host.accelerator != "kvm":
                raise
            accelerator.condemn(self._home, error.message)
            progress("KVM does not work here", error.message)
            built = await build(await self._find_host(estate), estate, spec, progress)
        await self.touch_template(spec.name)
        return built.stored.record

    async def templates(self) -> Sequence[TemplateRecord]:
        """Return the current generation of each template, by name."""
        return [
            msgspec.structs.replace(
                found.stored.record,
                last_used_at=store.last_used(self._home, found.stored.record.name, self.name),
                stale=found.stored.record.guest != guest_programs(),
            )
            for found in store.current_generations(self._home, self.name)
        ]

    async def touch_template(self, name: str) -> None:
        """Record that the template is used now."""
        with suppress(OSError):
            store.touch(self._home, name, self.name)

    async def delete_template(self, name: str) -> None:
        """Remove all generations of a template.

        Raises:
            TemplateInUseError: With the instances that use it.
        """
        folder = store.template_folder(self._home, name, self.name)
        self._refuse_used(name)
        if not folder.is_dir():
            return
        trash = store.set_aside(folder)
        try:
            # Somebody may have cloned it in between; then it goes back.
            self._refuse_used(name)
        except TemplateInUseError:
            trash.rename(folder)
            raise
        await anyio.to_thread.run_sync(store.discard, trash)
        with suppress(OSError):
            folder.parent.rmdir()

    async def collect_garbage(self, *, images: bool = False) -> Sequence[str]:
        """Remove what nothing uses any more.

        Raises:
            DriverError: Something could not be removed.
        """
        removed = await self._remove_dead_builds()
        kept: set[str] = set()
        for folder in sorted((self._home / "templates").glob(f"*/{self.name}/[0-9]*")):
            name = folder.parent.parent.name
            current = (folder.parent / "current").resolve() == folder.resolve()
            if not current and await self._discard_unused(name, folder):
                removed.append(f"template {name}, generation {folder.name}")
                continue
            with suppress(DriverError):
                kept.add(store.find_generation(self._home, name, folder.name, self.name).stored.record.image)
        if images:
            removed += await self._remove_images(kept)
        swept = await self._estate.hypervisor.sweep(self._home)
        return [*removed, *(f"interrupted {name}" for name in swept)]

    async def _remove_images(self, kept: set[str]) -> list[str]:
        cache = self._home / "cache"
        # A build that goes on uses an image that no generation names yet.
        if cache.is_symlink() or any((self._home / "templates").glob(f"*/*/{store.BUILDING}*")):
            return []
        unused = [i.key for i in await anyio.to_thread.run_sync(cached_images, cache) if i.key not in kept]
        for key in unused:
            await remove_image(cache, key, self._estate.programs)
        return [f"image {key}" for key in unused]

    async def aclose(self) -> None:
        """Close the connections to guests; the VMs go on."""
        for channel in self._channels.values():
            await channel.aclose()
        self._channels.clear()

    def _refuse_used(self, name: str) -> None:
        users = tuple(
            sorted({user for user, (template, _) in instance.users(self._estate) if template == name})
        )
        if users:
            raise TemplateInUseError(f"the template {name} is in use", instances=users)

    async def _discard_unused(self, name: str, folder: Path) -> bool:
        """Remove a generation unless an instance uses it, also one that is being cloned at this moment."""
        if (name, folder.name) in instance.uses(self._estate):
            return False
        trash = store.set_aside(folder)
        if (name, folder.name) in instance.uses(self._estate):
            trash.rename(folder)
            return False
        await anyio.to_thread.run_sync(store.discard, trash)
        return True

    async def _remove_dead_builds(self) -> list[str]:
        removed = []
        for folder in await anyio.to_thread.run_sync(store.dead_builds, self._home, self.name):
            await end_build(self._estate, folder)
            with suppress(FileNotFoundError):
                await anyio.to_thread.run_sync(store.discard, folder)
            removed.append(f"interrupted build {folder.name}")
        return removed

    def _channel(self, instance_id: str) -> Channel:
        if instance_id not in self._channels:
            folder = instance.folder_of(self._estate, instance_id)
            files = self._estate.files(folder)
            self._channels[instance_id] = Channel(files.helper)
        return self._channels[instance_id]

    async def _find_host(self, estate: Estate) -> Host:
        """Return what is installed, asked anew when that, or what it can do here, has become another.

        Raises:
            DriverError: Something is missing, or does not answer.
        """
        choice = accelerator.choose(self._home)
        seen = (choice.name, *(_version(estate.programs.find(name)) for name in estate.hypervisor.needs))
        async with self._host_lock:
            if self._host is None or self._host[0] != seen:
                host = await estate.hypervisor.find_host(self._home, choice.name, estate.programs)
                self._host = seen, host
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
async def open_vm_driver(owner: Owner, hypervisor: Hypervisor, programs: Programs) -> AsyncIterator[VmDriver]:
    """Open a hypervisor's driver for an owner; leaving the block stops no VM."""
    with suppress(OSError):  # who only looks needs none, and what needs one says what is wrong
        Path(owner.home).mkdir(mode=0o700, parents=True, exist_ok=True)
    driver = VmDriver(owner, hypervisor, programs)
    try:
        yield driver
    finally:
        with anyio.CancelScope(shield=True):
            await driver.aclose()
