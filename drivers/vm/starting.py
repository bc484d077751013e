"""How an instance comes up: restored from a snapshot, or booted; and how its QEMU is started ahead.

A QEMU that is started ahead has opened all it needs (disk, memory, the mounts' directories, its port) and
waits, paused, for the state of its snapshot. `start` then only tells it where that is.
"""

import os
from contextlib import AsyncExitStack
from pathlib import Path

import msgspec

from claude_vm.drivers.api import Access, InstanceSpec, Progress, Reachable
from claude_vm.drivers.errors import BootError, DriverError
from claude_vm.drivers.process import ProcessIdentity
from claude_vm.drivers.vm.arguments import Guest, Host, Ram
from claude_vm.drivers.vm.channel import Channel
from claude_vm.drivers.vm.hypervisor import Estate
from claude_vm.drivers.vm.identity import new_identity, write_private
from claude_vm.drivers.vm.instance import Saved, end_all, folder_of, load, save
from claude_vm.drivers.vm.machine import (
    BOOTS,
    HELPER_S,
    LOAD_S,
    Machine,
    attached,
    boot_limit_s,
    kernel_crashed,
    set_clock,
)
from claude_vm.drivers.vm.slots import slot_of
from claude_vm.drivers.vm.snapshots import ensure_snapshot, make_overlay
from claude_vm.drivers.vm.store import Generation, Snapshot, find_generation


class _RestoreError(BootError):
    """The snapshot can't be read, or the guest in it does not wake up: booting may still work."""


async def prestart(host: Host, estate: Estate, instance_id: str) -> None:
    """Start a cloned instance's QEMU, which then waits for its snapshot's state; return when it waits.

    Raises:
        DriverError: It runs already, or it has no snapshot and none can be made, or QEMU does not start.
    """
    saved = _known(estate, instance_id)
    if saved.spawning or saved.process is not None:
        raise DriverError(f"the instance {instance_id} was started already")
    spec = saved.spec
    folder = folder_of(estate, instance_id)
    generation = find_generation(estate.home, spec.template, spec.generation, estate.kind)
    snapshot = await ensure_snapshot(host, estate, generation, spec.cpus, spec.memory_mib, progress=_silent)

    def spawned(process: ProcessIdentity) -> None:
        save(folder, Saved(spec, process=process, waiting=snapshot.key))

    guest = await _prepare(estate, saved, generation, snapshot)
    files = estate.files(folder)
    # Its greeting on the monitor tells that it has opened all that it was given.
    async with estate.hypervisor.launch(
        host, guest, files, spawned=spawned, progress=_silent, root_guest=generation.stored.uid == 0
    ) as machine:
        status = await machine.step("start", lambda: machine.monitor.execute("query-status"), HELPER_S)
        if status["status"] != "inmigrate":
            raise BootError(f"QEMU does not wait for a state: {status['status']}")


async def start(
    host: Host,
    estate: Estate,
    instance_id: str,
    progress: Progress,
    reachable: Reachable,
    *,
    ram_clones: bool,
) -> tuple[Access, Channel]:
    """Restore or boot an instance; return how to reach it, and its helper's channel. See `Driver.start`.

    Raises:
        DriverError: It does not come up. A VM that did start may still run: delete the instance.
    """
    saved = _known(estate, instance_id)
    spec = saved.spec
    folder = folder_of(estate, instance_id)
    generation = find_generation(estate.home, spec.template, spec.generation, estate.kind)
    if saved.waiting:
        try:
            return await _go_on(estate, saved, generation, progress=progress, reachable=reachable)
        except _RestoreError as error:
            progress("the snapshot does not work", error.message)
            await end_all(estate, instance_id, load(folder))
    snapshot: Snapshot | None = None
    if ram_clones:
        try:
            snapshot = await ensure_snapshot(
                host, estate, generation, spec.cpus, spec.memory_mib, progress=progress
            )
        except DriverError as error:
            progress("no snapshot can be made", error.message)
    if snapshot is not None:
        try:
            return await _start(
                host, estate, saved, generation, snapshot, progress=progress, reachable=reachable
            )
        except _RestoreError as error:
            progress("the snapshot does not work", error.message)
            await end_all(estate, instance_id, load(folder))
    for _ in range(BOOTS - 1):
        try:
            return await _start(host, estate, saved, generation, None, progress=progress, reachable=reachable)
        except BootError as error:
            if not kernel_crashed(error):
                raise
            progress("booting again", "the guest's kernel crashed while it came up")
            await end_all(estate, instance_id, load(folder))
    return await _start(host, estate, saved, generation, None, progress=progress, reachable=reachable)


def _silent(_phase: str, _detail: str) -> None:
    """Take progress that nobody wants."""


def _known(estate: Estate, instance_id: str) -> Saved:
    saved = load(folder_of(estate, instance_id))
    if saved is None:
        raise DriverError(f"the instance {instance_id} does not exist")
    return saved


async def _prepare(estate: Estate, saved: Saved, generation: Generation, snapshot: Snapshot | None) -> Guest:
    """Make the disk, write down that a QEMU may run from now on, and return what it shall be."""
    spec = saved.spec
    folder = folder_of(estate, spec.instance_id)
    files = estate.files(folder)
    disk = folder / estate.hypervisor.disk
    await make_overlay(estate.programs, disk, generation.disk if snapshot is None else snapshot.disk, "qcow2")
    save(folder, Saved(spec, spawning=True))
    guest = _guest(estate, generation, spec, disk, snapshot)
    return msgspec.structs.replace(guest, serial=str(files.serial), empty=str(files.empty))


async def _start(
    host: Host,
    estate: Estate,
    saved: Saved,
    generation: Generation,
    snapshot: Snapshot | None,
    *,
    progress: Progress,
    reachable: Reachable,
) -> tuple[Access, Channel]:
    spec = saved.spec
    folder = folder_of(estate, spec.instance_id)

    def spawned(process: ProcessIdentity) -> None:
        save(folder, Saved(spec, process=process))

    guest = await _prepare(estate, saved, generation, snapshot)
    progress("restoring" if snapshot else "booting", host.accelerator)
    async with estate.hypervisor.launch(
        host,
        guest,
        estate.files(folder),
        spawned=spawned,
        progress=progress,
        root_guest=generation.stored.uid == 0,
    ) as machine:
        if snapshot is None:
            await machine.wait_for_helper(boot_limit_s(host))
        else:
            await _restore(machine, snapshot)
        access = await _settle_in(
            estate,
            machine,
            spec,
            generation,
            progress=progress,
            reachable=reachable,
            restored=snapshot is not None,
        )
    return access, machine.channel


async def _go_on(
    estate: Estate, saved: Saved, generation: Generation, *, progress: Progress, reachable: Reachable
) -> tuple[Access, Channel]:
    """Let a QEMU go on that was started ahead.

    Raises:
        _RestoreError: It has died meanwhile, or it can't read the state.
        DriverError: The guest does not become this instance.
    """
    spec = saved.spec
    folder = folder_of(estate, spec.instance_id)
    snapshot = generation.snapshot(saved.waiting)
    process = saved.process
    if process is None or not process.is_alive() or snapshot is None:
        raise _RestoreError("the QEMU that was started ahead is gone")
    progress("restoring", "started ahead")
    save(folder, Saved(spec, process=process))  # from here on nobody else may tell it to
    async with AsyncExitStack() as stack:
        try:
            machine = await stack.enter_async_context(attached(process, estate.files(folder)))
        except BootError as error:
            raise _RestoreError(error.message, detail=error.detail) from error
        await _restore(machine, snapshot)
        access = await _settle_in(
            estate, machine, spec, generation, progress=progress, reachable=reachable, restored=True
        )
        return access, machine.channel


async def _restore(machine: Machine, snapshot: Snapshot) -> None:
    try:
        await machine.step("restore", lambda: machine.monitor.load(snapshot.state), LOAD_S)
        await machine.wait_for_helper(HELPER_S)
    except BootError as error:
        raise _RestoreError(error.message, detail=error.detail) from error


async def _settle_in(
    estate: Estate,
    machine: Machine,
    spec: InstanceSpec,
    generation: Generation,
    *,
    progress: Progress,
    reachable: Reachable,
    restored: bool,
) -> Access:
    """Make a running guest this instance: identity, disk, mounts, clock.

    Its SSH port is open since its helper answers; who connects waits there until the guest has its identity.
    """
    progress("identity", "")
    hypervisor = estate.hypervisor
    record = generation.stored.record
    identity = new_identity(spec.instance_id)
    key = folder_of(estate, spec.instance_id) / "client_key"
    write_private(key, identity.client_key.private)
    port = await machine.step("port", machine.monitor.ssh_port, HELPER_S)
    access = Access(
        address="127.0.0.1",
        port=port,
        user=record.user,
        home=record.home,
        host_key=identity.host_key.public,
        client_key=key,
        host_address=hypervisor.host_address,
        restored=restored,
        pid=machine.process.pid,
    )
    reachable(access)
    await machine.identify(identity, record.user, hypervisor.authorized_keys(estate.owner))
    if spec.disk_gib > record.disk_gib:
        size = spec.disk_gib << 30
        await machine.step(
            "disk", lambda: machine.monitor.execute("block_resize", size=size, **hypervisor.drive), HELPER_S
        )
        await machine.step(
            "disk", lambda: machine.channel.request("resize", timeout_s=HELPER_S, bytes=size), HELPER_S + 1
        )
    if spec.mounts:
        progress("mounts", str(len(spec.mounts)))
        await machine.mount(spec.mounts)
    await machine.step("clock", lambda: set_clock(machine.channel), HELPER_S + 1)
    for console in hypervisor.consoles:
        await machine.monitor.bound_console(console)
    await hypervisor.settle(machine)
    return access


def _guest(
    estate: Estate, generation: Generation, spec: InstanceSpec, disk: Path, snapshot: Snapshot | None
) -> Guest:
    stored = generation.stored
    # QEMU's user is who owns what the guest writes. Only root can choose.
    run_as = (stored.uid, stored.gid) if os.geteuid() == 0 and stored.uid != 0 else None
    return Guest(
        name=f"{estate.mark}:{spec.instance_id}",
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
        uid=stored.uid,
        user=stored.record.user,
        home=stored.record.home,
    )
