"""How an instance comes up: restored from a snapshot, or booted; and how its QEMU is started ahead.

A QEMU that is started ahead has opened all it needs (disk, memory, the mounts' directories, its port) and
waits, paused, for the state of its snapshot. `VmStart.run` then only tells it where that is.
"""

import os
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager

import msgspec

from claude_vm.drivers import files
from claude_vm.drivers.api import Access, Progress, Reachable
from claude_vm.drivers.errors import BootError, DriverError
from claude_vm.drivers.process import ProcessIdentity
from claude_vm.drivers.vm.arguments import Ram, VmPlan, VmSize
from claude_vm.drivers.vm.disk import make_overlay
from claude_vm.drivers.vm.hypervisor import Toolchain
from claude_vm.drivers.vm.identity import new_identity
from claude_vm.drivers.vm.instance import InstanceFolder, VmRecord
from claude_vm.drivers.vm.machine import (
    HELPER_S,
    LOAD_S,
    Machine,
    attached,
    boot_again,
    boot_limit_s,
)
from claude_vm.drivers.vm.phases import VmPhase
from claude_vm.drivers.vm.snapshots import ensure_snapshot
from claude_vm.drivers.vm.store import Snapshot, VmTemplates


class _RestoreError(BootError):
    """The snapshot can't be read, or the guest in it does not wake up: booting may still work."""


class VmStart:
    """The start of a cloned instance: `ahead`, `run`, or one after the other, each by an object of its own.

    Raises:
        DriverError: There is no such instance, or its template is gone.
    """

    def __init__(
        self, tools: Toolchain, folder: InstanceFolder, templates: VmTemplates, progress: Progress
    ) -> None:
        self._tools = tools
        self._folder = folder
        self._progress = progress
        self._saved = folder.known()
        self._spec = spec = self._saved.spec
        self._size = VmSize(spec.cpus, spec.memory_mib)
        self._generation = templates.find(spec.template, spec.generation)
        self._tried = bool(self._saved.waiting)

    async def ahead(self) -> None:
        """Start its QEMU, which then waits for its snapshot's state; return when it waits.

        Raises:
            DriverError: It runs already, or it has no snapshot and none can be made, or QEMU does not start.
        """
        if self._saved.spawning or self._saved.process is not None:
            raise DriverError(f"the instance {self._folder.instance_id} was started already")
        snapshot = await ensure_snapshot(self._tools, self._generation, self._size, self._progress)
        # Its greeting on the monitor tells that it has opened all that it was given.
        async with self._launched(snapshot, waiting=snapshot.key) as machine:
            status = await machine.step("start", lambda: machine.monitor.execute("query-status"), HELPER_S)
            if status["status"] != "inmigrate":
                raise BootError(f"QEMU does not wait for a state: {status['status']}")

    async def run(self, reachable: Reachable, *, ram_clones: bool) -> Access:
        """Restore or boot it; return how to reach it. See `Driver.start`.

        Raises:
            DriverError: It does not come up. A VM that did start may still run: delete the instance.
        """
        if self._saved.waiting:
            try:
                return await self._go_on(reachable)
            except _RestoreError as error:
                self._progress(VmPhase.BAD_SNAPSHOT, error.message)
        snapshot = await self._snapshot() if ram_clones else None
        if snapshot is not None:
            try:
                return await self._restore(snapshot, reachable)
            except _RestoreError as error:
                self._progress(VmPhase.BAD_SNAPSHOT, error.message)
        return await boot_again(lambda: self._boot(reachable), self._progress)

    async def _go_on(self, reachable: Reachable) -> Access:
        """Let the QEMU go on that was started ahead.

        Raises:
            _RestoreError: It has died meanwhile, or it can't read the state.
            DriverError: The guest does not become this instance.
        """
        snapshot = self._generation.snapshot(self._saved.waiting)
        process = self._saved.process
        if process is None or not process.is_alive() or snapshot is None:
            raise _RestoreError("the QEMU that was started ahead is gone")
        self._progress(VmPhase.RESTORE, "started ahead")
        self._folder.save(VmRecord(self._spec, process=process))  # from here on nobody else may tell it to
        async with AsyncExitStack() as stack:
            try:
                machine = await stack.enter_async_context(attached(process, self._folder.files))
            except BootError as error:
                raise _RestoreError(error.message, detail=error.detail) from error
            await _load(machine, snapshot)
            return await self._settle_in(machine, reachable, restored=True)

    async def _snapshot(self) -> Snapshot | None:
        """Return the snapshot to start from; None where there is none and none can be made."""
        try:
            return await ensure_snapshot(self._tools, self._generation, self._size, self._progress)
        except DriverError as error:
            self._progress(VmPhase.NO_SNAPSHOT, error.message)
        return None

    async def _restore(self, snapshot: Snapshot, reachable: Reachable) -> Access:
        async with self._launched(snapshot) as machine:
            await _load(machine, snapshot)
            return await self._settle_in(machine, reachable, restored=True)

    async def _boot(self, reachable: Reachable) -> Access:
        async with self._launched(None) as machine:
            await machine.wait_for_helper(boot_limit_s(self._tools.host))
            return await self._settle_in(machine, reachable, restored=False)

    @asynccontextmanager
    async def _launched(self, snapshot: Snapshot | None, *, waiting: str = "") -> AsyncIterator[Machine]:
        """Start a QEMU with a new disk, for as long as the block lasts. What a former try has left, ends."""
        folder, spec = self._folder, self._spec
        if self._tried:
            await folder.end()
        self._tried = True
        backing = self._generation.disk if snapshot is None else snapshot.disk
        await make_overlay(self._tools.programs, folder.disk, backing, "qcow2")
        folder.save(VmRecord(spec, spawning=True))

        def spawned(process: ProcessIdentity) -> None:
            folder.save(VmRecord(spec, process=process, waiting=waiting))

        self._progress(VmPhase.BOOT if snapshot is None else VmPhase.RESTORE, self._tools.host.accelerator)
        async with self._tools.hypervisor.launch(
            self._tools.host,
            self._guest(snapshot),
            folder.files,
            spawned=spawned,
            progress=self._progress,
            root_guest=self._generation.stored.uid == 0,
        ) as machine:
            yield machine

    def _guest(self, snapshot: Snapshot | None) -> VmPlan:
        stored = self._generation.stored
        name = f"{self._tools.hypervisor.mark}:{self._folder.instance_id}"
        return msgspec.structs.replace(
            stored.guest(name, self._size, self._folder.disk),
            slots=self._spec.mounts,
            ram=None if snapshot is None else Ram(str(snapshot.ram), shared=False),
            incoming=snapshot is not None,
            # QEMU's user is who owns what the guest writes. Only root can choose.
            run_as=(stored.uid, stored.gid) if os.geteuid() == 0 and stored.uid != 0 else None,
        )

    async def _settle_in(self, machine: Machine, reachable: Reachable, *, restored: bool) -> Access:
        """Make a running guest this instance: identity, disk, mounts, clock.

        Its SSH port is open since its helper answers. Who connects waits there until it has its identity.
        """
        self._progress(VmPhase.IDENTITY, "")
        hypervisor, spec = self._tools.hypervisor, self._spec
        record = self._generation.stored.record
        identity = new_identity(spec.instance_id)
        key = self._folder.path / "client_key"
        files.replace(key, identity.client_key.private.encode())
        port = await machine.step("port", machine.monitor.ssh_port, HELPER_S)
        access = Access(
            address="127.0.0.1",
            port=port,
            user=record.user,
            home=record.home,
            host_key=identity.host_key.public,
            client_key=key,
            restored=restored,
            pid=machine.process.pid,
        )
        reachable(access)
        await machine.identify(identity, record.user, hypervisor.authorized_keys())
        if spec.disk_gib > record.disk_gib:
            await machine.resize_disk(spec.disk_gib << 30, hypervisor.drive)
        if spec.mounts:
            self._progress(VmPhase.MOUNTS, str(len(spec.mounts)))
            await machine.mount(spec.mounts)
        await machine.step("clock", lambda: machine.channel.set_clock(timeout_s=HELPER_S), HELPER_S + 1)
        for console in hypervisor.consoles:
            await machine.monitor.bound_console(console)
        await hypervisor.settle(machine)
        return access


async def _load(machine: Machine, snapshot: Snapshot) -> None:
    """Read the state into a machine that waits for it.

    Raises:
        _RestoreError: It can't be read, or the guest does not wake up.
    """
    try:
        await machine.step("restore", lambda: machine.monitor.load(snapshot.state), LOAD_S)
        await machine.wait_for_helper(HELPER_S)
    except BootError as error:
        raise _RestoreError(error.message, detail=error.detail) from error
