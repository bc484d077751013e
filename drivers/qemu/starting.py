"""How an instance comes up: restored from a snapshot, or booted; and how its QEMU is started ahead.

A QEMU that is started ahead has opened all it needs (disk, memory, the mounts' directories, its port) and
waits, paused, for the state of its snapshot. `start` then only tells it where that is.
"""

import os
from contextlib import AsyncExitStack
from pathlib import Path

import msgspec

from claude_vm.drivers.api import Access, InstanceSpec, Owner, Progress
from claude_vm.drivers.errors import BootError, DriverError
from claude_vm.drivers.process import ProcessIdentity
from claude_vm.drivers.qemu.arguments import Guest, Host, Ram
from claude_vm.drivers.qemu.channel import Channel
from claude_vm.drivers.qemu.identity import new_identity, write_private
from claude_vm.drivers.qemu.instance import HOST_ADDRESS, Saved, end_all, folder_of, load, save
from claude_vm.drivers.qemu.machine import (
    BOOTS,
    HELPER_S,
    LOAD_S,
    Machine,
    attached,
    boot_limit_s,
    kernel_crashed,
    open_machine,
    set_clock,
)
from claude_vm.drivers.qemu.slots import slot_of
from claude_vm.drivers.qemu.snapshots import ensure_snapshot, files_of, make_overlay
from claude_vm.drivers.qemu.store import Generation, Snapshot, find_generation


class _RestoreError(BootError):
    """The snapshot can't be read, or the guest in it does not wake up: booting may still work."""


async def prestart(host: Host, owner: Owner, instance_id: str) -> None:
    """Start a cloned instance's QEMU, which then waits for its snapshot's state; return when it waits.

    Raises:
        DriverError: It runs already, or it has no snapshot and none can be made, or QEMU does not start.
    """
    saved = _known(owner, instance_id)
    if saved.spawning or saved.process is not None:
        raise DriverError(f"the instance {instance_id} was started already")
    spec = saved.spec
    folder = folder_of(owner, instance_id)
    generation = find_generation(owner.home, spec.template, spec.generation)
    snapshot = await ensure_snapshot(
        host, owner, generation, spec.cpus, spec.memory_mib, progress=lambda *_: None
    )

    def spawned(process: ProcessIdentity) -> None:
        save(folder, Saved(spec, process=process, waiting=snapshot.key))

    guest = await _prepare(owner, saved, generation, snapshot)
    files = files_of(owner, folder)
    # Its greeting on the monitor tells that it has opened all that it was given.
    async with open_machine(
        host, guest, files, spawned=spawned, root_guest=generation.stored.uid == 0
    ) as machine:
        status = await machine.step("start", lambda: machine.monitor.execute("query-status"), HELPER_S)
        if status["status"] != "inmigrate":
            raise BootError(f"QEMU does not wait for a state: {status['status']}")


async def start(
    host: Host, owner: Owner, instance_id: str, progress: Progress, *, ram_clones: bool
) -> tuple[Access, Channel]:
    """Restore or boot an instance; return how to reach it, and its helper's channel.

    Raises:
        DriverError: It does not come up. A VM that did start may still run: delete the instance.
    """
    saved = _known(owner, instance_id)
    spec = saved.spec
    folder = folder_of(owner, instance_id)
    generation = find_generation(owner.home, spec.template, spec.generation)
    if saved.waiting:
        try:
            return await _go_on(owner, saved, generation, progress=progress)
        except _RestoreError as error:
            progress("the snapshot does not work", error.message)
            await end_all(owner, instance_id, load(folder))
    snapshot: Snapshot | None = None
    if ram_clones:
        try:
            snapshot = await ensure_snapshot(
                host, owner, generation, spec.cpus, spec.memory_mib, progress=progress
            )
        except DriverError as error:
            progress("no snapshot can be made", error.message)
    if snapshot is not None:
        try:
            return await _start(host, owner, saved, generation, snapshot, progress=progress)
        except _RestoreError as error:
            progress("the snapshot does not work", error.message)
            await end_all(owner, instance_id, load(folder))
    for _ in range(BOOTS - 1):
        try:
            return await _start(host, owner, saved, generation, None, progress=progress)
        except BootError as error:
            if not kernel_crashed(error):
                raise
            progress("booting again", "the guest's kernel crashed while it came up")
            await end_all(owner, instance_id, load(folder))
    return await _start(host, owner, saved, generation, None, progress=progress)


def _known(owner: Owner, instance_id: str) -> Saved:
    saved = load(folder_of(owner, instance_id))
    if saved is None:
        raise DriverError(f"the instance {instance_id} does not exist")
    return saved


async def _prepare(owner: Owner, saved: Saved, generation: Generation, snapshot: Snapshot | None) -> Guest:
    """Make the disk, write down that a QEMU may run from now on, and return what it shall be."""
    spec = saved.spec
    folder = folder_of(owner, spec.instance_id)
    files = files_of(owner, folder)
    disk = folder / "disk.qcow2"
    await make_overlay(disk, generation.disk if snapshot is None else snapshot.disk, "qcow2")
    save(folder, Saved(spec, spawning=True))
    guest = _guest(owner, generation, spec, disk, snapshot)
    return msgspec.structs.replace(guest, serial=str(files.serial), empty=str(files.empty))


async def _start(
    host: Host,
    owner: Owner,
    saved: Saved,
    generation: Generation,
    snapshot: Snapshot | None,
    *,
    progress: Progress,
) -> tuple[Access, Channel]:
    spec = saved.spec
    folder = folder_of(owner, spec.instance_id)

    def spawned(process: ProcessIdentity) -> None:
        save(folder, Saved(spec, process=process))

    guest = await _prepare(owner, saved, generation, snapshot)
    progress("restoring" if snapshot else "booting", host.accelerator)
    async with open_machine(
        host, guest, files_of(owner, folder), spawned=spawned, root_guest=generation.stored.uid == 0
    ) as machine:
        if snapshot is None:
            await machine.wait_for_helper(boot_limit_s(host))
        else:
            await _restore(machine, snapshot)
        access = await _settle_in(machine, spec, generation, folder, progress, restored=snapshot is not None)
    return access, machine.channel


async def _go_on(
    owner: Owner, saved: Saved, generation: Generation, *, progress: Progress
) -> tuple[Access, Channel]:
    """Let a QEMU go on that was started ahead.

    Raises:
        _RestoreError: It has died meanwhile, or it can't read the state.
        DriverError: The guest does not become this instance.
    """
    spec = saved.spec
    folder = folder_of(owner, spec.instance_id)
    snapshot = generation.snapshot(saved.waiting)
    process = saved.process
    if process is None or not process.is_alive() or snapshot is None:
        raise _RestoreError("the QEMU that was started ahead is gone")
    progress("restoring", "started ahead")
    save(folder, Saved(spec, process=process))  # from here on nobody else may tell it to
    async with AsyncExitStack() as stack:
        try:
            machine = await stack.enter_async_context(attached(process, files_of(owner, folder)))
        except BootError as error:
            raise _RestoreError(error.message, detail=error.detail) from error
        await _restore(machine, snapshot)
        access = await _settle_in(machine, spec, generation, folder, progress, restored=True)
        return access, machine.channel


async def _restore(machine: Machine, snapshot: Snapshot) -> None:
    try:
        await machine.step("restore", lambda: machine.monitor.load(snapshot.state), LOAD_S)
        await machine.wait_for_helper(HELPER_S)
    except BootError as error:
        raise _RestoreError(error.message, detail=error.detail) from error


async def _settle_in(
    machine: Machine,
    spec: InstanceSpec,
    generation: Generation,
    folder: Path,
    progress: Progress,
    *,
    restored: bool,
) -> Access:
    """Make a running guest this instance: identity, disk, mounts, clock.

    Its SSH port is open since its helper answers; nobody needs to try it.
    """
    progress("identity", "")
    record = generation.stored.record
    identity = new_identity(spec.instance_id)
    key = folder / "client_key"
    write_private(key, identity.client_key.private)
    port = await machine.step("port", machine.monitor.ssh_port, HELPER_S)
    await machine.identify(identity, record.user)
    if spec.disk_gib > record.disk_gib:
        size = spec.disk_gib << 30
        await machine.step(
            "disk", lambda: machine.monitor.execute("block_resize", node_name="disk", size=size), HELPER_S
        )
        await machine.step(
            "disk", lambda: machine.channel.request("resize", timeout_s=HELPER_S, bytes=size), HELPER_S + 1
        )
    if spec.mounts:
        progress("mounts", str(len(spec.mounts)))
        await machine.mount(spec.mounts)
    await machine.step("clock", lambda: set_clock(machine.channel), HELPER_S + 1)
    await machine.monitor.bound_console()
    return Access(
        address="127.0.0.1",
        port=port,
        user=record.user,
        home=record.home,
        host_key=identity.host_key.public,
        client_key=key,
        host_address=HOST_ADDRESS,
        restored=restored,
    )


def _guest(
    owner: Owner, generation: Generation, spec: InstanceSpec, disk: Path, snapshot: Snapshot | None
) -> Guest:
    stored = generation.stored
    # QEMU's user is who owns what the guest writes. Only root can choose.
    run_as = (stored.uid, stored.gid) if os.geteuid() == 0 and stored.uid != 0 else None
    return Guest(
        name=f"{owner.mark}:{spec.instance_id}",
        cpus=spec.cpus,
        memory_mib=spec.memory_mib,
        disk=str(disk),
        kernel=stored.kernel,
        initrd=stored.initrd,
        kernel_arguments=stored.kernel_arguments,
        serial="",
        empty="",
        monitor=0,
        helper=0,
        slots=tuple(slot_of(mount) for mount in spec.mounts),
        ram=None if snapshot is None else Ram(str(snapshot.ram), shared=False),
        incoming=snapshot is not None,
        run_as=run_as,
    )
