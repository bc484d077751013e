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

from claude_vm.drivers.api import GuestFile, Progress
from claude_vm.drivers.errors import DriverError, GuestError
from claude_vm.drivers.images.lock import hold
from claude_vm.drivers.process import ProcessIdentity, find_marked, run_tool
from claude_vm.drivers.programs import Programs
from claude_vm.drivers.vm.accelerator import DISK_TOOL, INSTALL_HINT
from claude_vm.drivers.vm.arguments import Guest, Host, Ram, Slot, snapshot_key
from claude_vm.drivers.vm.hypervisor import Estate, Hypervisor
from claude_vm.drivers.vm.identity import Identity, new_identity
from claude_vm.drivers.vm.machine import (
    HELPER_S,
    Files,
    Machine,
    boot_limit_s,
    booted,
)
from claude_vm.drivers.vm.spawn import end
from claude_vm.drivers.vm.store import Generation, Snapshot, Stored, building_folder

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


def key_of(hypervisor: Hypervisor, host: Host, stored: Stored, cpus: int, memory_mib: int) -> str:
    """Return the key of the snapshots of this size that this host's QEMU can read."""
    return snapshot_key(
        hypervisor.arguments,
        host,
        cpus=cpus,
        memory_mib=memory_mib,
        image=stored.record.image,
        kernel_arguments=stored.kernel_arguments,
        uid=stored.uid,
    )


async def make_overlay(
    programs: Programs, disk: Path, backing: Path, backing_format: str, size_gib: int | None = None
) -> None:
    """Make a disk that takes what it doesn't have from `backing`, in place of a former one.

    Raises:
        ToolMissingError: There is no program for it.
        DriverError: The disk is full, or the backing file is gone.
    """
    program = programs.need(DISK_TOOL, INSTALL_HINT)
    disk.unlink(missing_ok=True)
    size = [] if size_gib is None else [f"{size_gib}G"]
    argv = [
        program,
        "create",
        "-q",
        "-f",
        "qcow2",
        "-F",
        backing_format,
        "-b",
        str(backing),
        str(disk),
        *size,
    ]
    await run_tool(argv, timeout_s=60, env=programs.environment())


async def ensure_snapshot(
    host: Host, estate: Estate, generation: Generation, cpus: int, memory_mib: int, *, progress: Progress
) -> Snapshot:
    """Return the snapshot of this size, made now if there is none (as long as a boot takes).

    Raises:
        DriverError: It can't be made.
    """
    key = key_of(estate.hypervisor, host, generation.stored, cpus, memory_mib)
    found = generation.snapshot(key)
    if found is not None:
        return found
    snapshots = generation.folder / "snapshots"
    await anyio.Path(snapshots).mkdir(mode=0o700, exist_ok=True)
    async with hold(snapshots / f".{key}.lock", lambda: progress("waiting for another snapshot", "")):
        found = generation.snapshot(key)
        if found is not None:
            return found
        progress("preparing a snapshot", f"{cpus} CPUs, {memory_mib} MiB; once for this size")
        with building_folder(snapshots) as building:
            disk = building / "disk.qcow2"
            await make_overlay(estate.programs, disk, generation.disk, "qcow2")
            await take(
                host,
                estate,
                generation.stored,
                building,
                building,
                cpus=cpus,
                memory_mib=memory_mib,
                progress=progress,
            )
            (building / "lock").unlink()
            building.rename(snapshots / key)
    found = generation.snapshot(key)
    if found is None:
        raise DriverError("the snapshot vanished while it was made")
    return found


async def take(
    host: Host,
    estate: Estate,
    stored: Stored,
    building: Path,
    folder: Path,
    *,
    cpus: int,
    memory_mib: int,
    progress: Progress,
    slots: tuple[Slot, ...] = (),
    customise: Customise | None = None,
) -> None:
    """Boot ``building/disk.qcow2``, customise and warm it up, and leave ``ram`` and ``state`` in `folder`.

    No VM is left, however the call ends.

    Raises:
        DriverError: With the console's last lines, or those of the program that failed.
    """
    hypervisor = estate.hypervisor
    files = estate.files(building)
    guest = Guest(
        name=f"{estate.mark}:build:{building.name}",
        cpus=cpus,
        memory_mib=memory_mib,
        disk=str(building / "disk.qcow2"),
        kernel=stored.kernel,
        initrd=stored.initrd,
        kernel_arguments=stored.kernel_arguments,
        serial=str(files.serial),
        empty=str(files.empty),
        monitor=0,
        helper=0,
        slots=slots,
        ram=Ram(str(folder / "ram"), shared=True),
        uid=stored.uid,
        user=stored.record.user,
        home=stored.record.home,
    )
    started: list[ProcessIdentity] = []

    async def boot(stack: AsyncExitStack) -> Machine:
        await _end(hypervisor, files, started)
        machine = await stack.enter_async_context(
            hypervisor.launch(host, guest, files, spawned=started.append, progress=progress, root_guest=True)
        )
        await machine.wait_for_helper(boot_limit_s(host))
        return machine

    try:
        progress("booting", "")
        async with booted(boot, progress) as machine:
            await _settle(machine)
            if customise is not None:
                await customise(machine)
            progress("warming up", "")
            await _warm_up(machine, stored)
            progress("taking a snapshot", "")
            await machine.channel.request("seal", timeout_s=_SAVE_S)
            await machine.step("snapshot", lambda: machine.monitor.save(folder / "state"), _SAVE_S)
            await machine.monitor.quit()
            with anyio.move_on_after(_QUIT_S):
                await machine.process.wait()
    finally:
        with anyio.CancelScope(shield=True):
            await _end(hypervisor, files, started)
            for path in (files.serial, files.log):
                path.unlink(missing_ok=True)
            with suppress(OSError):
                files.empty.rmdir()
            hypervisor.tidy(files)


async def _end(hypervisor: Hypervisor, files: Files, started: list[ProcessIdentity]) -> None:
    await hypervisor.end(files)
    while started:
        await end(started.pop())


async def run(machine: Machine, what: str, argv: list[str], *, user: str = "root", timeout_s: float) -> str:
    """Run a program in a guest that is being prepared; return the tail of its output.

    Raises:
        DriverError: It fails; with its last lines.
    """
    answer = await machine.step(
        what,
        lambda: machine.channel.request(
            "run", timeout_s=timeout_s + HELPER_S, argv=argv, user=user, limit_s=timeout_s, env={}
        ),
        timeout_s + HELPER_S,
    )
    if answer.status:
        lines = "\n".join(answer.output.splitlines()[-20:])
        raise GuestError(f"{what} failed in the guest (exit status {answer.status})", detail=lines)
    return answer.output


async def _settle(machine: Machine) -> None:
    """Wait for the boot's end: what it still did would be done again in every clone."""
    with suppress(GuestError):
        # Its status says whether all units are well, which is not the question.
        await run(machine, "boot", ["systemctl", "is-system-running", "--wait"], timeout_s=_SETTLE_S)


async def _warm_up(machine: Machine, stored: Stored) -> None:
    """Log in once over SSH, inside the guest, and run what sessions run first."""
    identity = new_identity("i-template")
    user = stored.record.user
    await machine.identify(identity, user)
    await machine.channel.put_files(_warm_files(identity), timeout_s=HELPER_S)
    ssh = [
        "ssh",
        "-F",
        "none",
        "-i",
        _WARM_KEY,
        "-o",
        f"UserKnownHostsFile={_WARM_KEY}.hosts",
        "-o",
        "BatchMode=yes",
    ]
    login = [*ssh, f"{user}@127.0.0.1", f"bash -lc {shlex.quote(_WARM_UP)}"]
    await run(machine, "warming up", login, timeout_s=_WARM_S)
    await run(machine, "cleaning up", ["rm", "-f", _WARM_KEY, f"{_WARM_KEY}.hosts"], timeout_s=HELPER_S)


def _warm_files(identity: Identity) -> list[GuestFile]:
    hosts = f"127.0.0.1 {identity.host_key.public}\n".encode()
    return [
        GuestFile(_WARM_KEY, identity.client_key.private.encode(), 0o600, "root"),
        GuestFile(f"{_WARM_KEY}.hosts", hosts, 0o600, "root"),
    ]


async def end_build(estate: Estate, folder: Path) -> None:
    """Kill the VM of a dead build, and remove what it has elsewhere.

    Raises:
        DriverError: It does not die.
    """
    files = estate.files(folder)
    await estate.hypervisor.end(files)
    for found in await anyio.to_thread.run_sync(find_marked, folder.name):
        process = ProcessIdentity.of(found.pid)
        if process is not None and any("qemu-system" in word for word in found.argv):
            await end(process)
    estate.hypervisor.tidy(files)


def plain(record: msgspec.Struct) -> bytes:
    """Return a record as readable JSON."""
    return msgspec.json.format(msgspec.json.encode(record))
