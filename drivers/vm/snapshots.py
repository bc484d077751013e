"""Snapshots: a VM that has booted and been warmed up once, so that its clones only need to read it.

The memory is a file that the VM writes as it runs (shared), the devices' state is half a megabyte beside it.
A clone maps the file privately: what it doesn't change, all clones share.
"""

import shlex
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack, suppress
from pathlib import Path
from typing import Final

import anyio
import msgspec

from claude_vm.drivers.api import GuestFile, Mount, Progress
from claude_vm.drivers.errors import DriverError, GuestError
from claude_vm.drivers.images.lock import hold
from claude_vm.drivers.process import ProcessIdentity, find_marked
from claude_vm.drivers.templates import building_folder
from claude_vm.drivers.vm.arguments import Ram, VmSize
from claude_vm.drivers.vm.disk import make_overlay
from claude_vm.drivers.vm.hypervisor import Hypervisor, Toolchain
from claude_vm.drivers.vm.identity import new_identity
from claude_vm.drivers.vm.machine import HELPER_S, Machine, boot_again, boot_limit_s
from claude_vm.drivers.vm.phases import VmPhase
from claude_vm.drivers.vm.spawn import end
from claude_vm.drivers.vm.store import Generation, Snapshot, Stored

Customise = Callable[[Machine], Awaitable[None]]

_SETTLE_S: Final = 180.0
_WARM_S: Final = 120.0
_QUIT_S: Final = 120.0
_SAVE_S: Final = 120.0
_WARM_KEY: Final = "/run/claude-vm/ssh/warm"

# What a session is likely to run first. Its pages are then in every clone's memory.
_WARM_UP: Final = (
    "git --version; python3 -c pass; ls -la /; cat /proc/loadavg; "
    "if command -v claude; then claude --version; fi; true"
)


async def ensure_snapshot(
    tools: Toolchain, generation: Generation, size: VmSize, progress: Progress
) -> Snapshot:
    """Return the snapshot of this size, made now if there is none (as long as a boot takes).

    Raises:
        DriverError: It can't be made.
    """
    key = tools.snapshot_key(generation.stored, size)
    found = generation.snapshot(key)
    if found is not None:
        return found
    snapshots = generation.folder / "snapshots"
    await anyio.Path(snapshots).mkdir(mode=0o700, exist_ok=True)
    async with hold(snapshots / f".{key}.lock", lambda: progress(VmPhase.SNAPSHOT_AWAITED, "")):
        found = generation.snapshot(key)
        if found is not None:
            return found
        progress(VmPhase.SNAPSHOT, f"{size.cpus} CPUs, {size.memory_mib} MiB; once for this size")
        with building_folder(snapshots) as building:
            await make_overlay(tools.programs, building / "disk.qcow2", generation.disk, "qcow2")
            await Preparation(tools, generation.stored, size, building, progress).take(building)
            (building / "lock").unlink()
            building.rename(snapshots / key)
    found = generation.snapshot(key)
    if found is None:
        raise DriverError("the snapshot vanished while it was made")
    return found


class Preparation:
    """A VM on ``building/disk.qcow2`` that is booted once, to be saved."""

    def __init__(
        self,
        tools: Toolchain,
        stored: Stored,
        size: VmSize,
        building: Path,
        progress: Progress,
        *,
        slots: tuple[Mount, ...] = (),
    ) -> None:
        hypervisor = tools.hypervisor
        name = f"{hypervisor.mark}:build:{building.name}"
        guest = stored.guest(name, size, building / "disk.qcow2")
        self._guest = msgspec.structs.replace(guest, slots=slots)
        self._files = hypervisor.files(building)
        self._tools = tools
        self._user = stored.record.user
        self._progress = progress
        self._started: list[ProcessIdentity] = []

    async def take(self, folder: Path, customise: Customise | None = None) -> None:
        """Boot, customise and warm it up, and leave ``ram`` and ``state`` in `folder`.

        No VM is left, however the call ends.

        Raises:
            DriverError: With the console's last lines, or those of the program that failed.
        """
        self._guest = msgspec.structs.replace(self._guest, ram=Ram(str(folder / "ram"), shared=True))
        try:
            async with AsyncExitStack() as stack:
                self._progress(VmPhase.BOOT, "")
                machine = await boot_again(lambda: self._boot(stack), self._progress)
                await _settle(machine)
                if customise is not None:
                    await customise(machine)
                self._progress(VmPhase.WARM_UP, "")
                await _warm_up(machine, self._user)
                self._progress(VmPhase.SAVE, "")
                await _save(machine, folder / "state")
        finally:
            with anyio.CancelScope(shield=True):
                await self._clean()

    async def _boot(self, kept: AsyncExitStack) -> Machine:
        """Return a machine whose guest answers; it is open until the end of `kept`."""
        await self._end()
        hypervisor, host = self._tools.hypervisor, self._tools.host
        async with AsyncExitStack() as stack:
            machine = await stack.enter_async_context(
                hypervisor.launch(
                    host,
                    self._guest,
                    self._files,
                    spawned=self._started.append,
                    progress=self._progress,
                    root_guest=True,
                )
            )
            await machine.wait_for_helper(boot_limit_s(host))
            kept.push_async_exit(stack.pop_all())
        return machine

    async def _end(self) -> None:
        await self._tools.hypervisor.end(self._files)
        while self._started:
            await end(self._started.pop())

    async def _clean(self) -> None:
        await self._end()
        for path in (self._files.serial, self._files.log):
            path.unlink(missing_ok=True)
        with suppress(OSError):
            self._files.empty.rmdir()
        self._tools.hypervisor.tidy(self._files)


async def _save(machine: Machine, state: Path) -> None:
    await machine.channel.request("seal", timeout_s=_SAVE_S)
    await machine.step("snapshot", lambda: machine.monitor.save(state), _SAVE_S)
    await machine.monitor.quit()
    with anyio.move_on_after(_QUIT_S):
        await machine.process.wait()


async def _settle(machine: Machine) -> None:
    """Wait for the boot's end: what it still did would be done again in every clone."""
    with suppress(GuestError):
        # Its status says whether all units are well, which is not the question.
        await machine.run("boot", ["systemctl", "is-system-running", "--wait"], timeout_s=_SETTLE_S)


async def _warm_up(machine: Machine, user: str) -> None:
    """Log in once over SSH, inside the guest, and run what sessions run first."""
    identity = new_identity("i-template")
    await machine.identify(identity, user)
    hosts = f"127.0.0.1 {identity.host_key.public}\n".encode()
    files = [
        GuestFile(_WARM_KEY, identity.client_key.private.encode(), 0o600, "root"),
        GuestFile(f"{_WARM_KEY}.hosts", hosts, 0o600, "root"),
    ]
    await machine.channel.put_files(files, timeout_s=HELPER_S)
    known = f"UserKnownHostsFile={_WARM_KEY}.hosts"
    ssh = ["ssh", "-F", "none", "-i", _WARM_KEY, *("-o", known, "-o", "BatchMode=yes")]
    login = [*ssh, f"{user}@127.0.0.1", f"bash -lc {shlex.quote(_WARM_UP)}"]
    await machine.run("warming up", login, timeout_s=_WARM_S)
    await machine.run("cleaning up", ["rm", "-f", _WARM_KEY, f"{_WARM_KEY}.hosts"], timeout_s=HELPER_S)


async def end_build(hypervisor: Hypervisor, folder: Path) -> None:
    """Kill the VM of a dead build, and remove what it has elsewhere.

    Raises:
        DriverError: It does not die.
    """
    files = hypervisor.files(folder)
    await hypervisor.end(files)
    for found in await anyio.to_thread.run_sync(find_marked, folder.name):
        process = ProcessIdentity.of(found.pid)
        if process is not None and any("qemu-system" in word for word in found.argv):
            await end(process)
    hypervisor.tidy(files)
