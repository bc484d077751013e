"""One instance: its folder, its record and its end. How it is started is in `starting`.

Its folder, which the hypervisor names, has ``instance.json``, the disk, the client key and logs.
The record is written before QEMU is started and again with the process, so whenever we are killed the VM is
found: by the record, or by the mark in its argument list.
"""

import os
import re
import signal
from contextlib import suppress
from pathlib import Path
from typing import Final

import anyio
import anyio.to_thread
import msgspec

from claude_vm.drivers import files
from claude_vm.drivers.api import InstanceRecord, InstanceSpec, InstanceStatus
from claude_vm.drivers.directories import remove_tree
from claude_vm.drivers.errors import DriverError, words_of
from claude_vm.drivers.memory import taken_mib
from claude_vm.drivers.process import ProcessIdentity, find_marked
from claude_vm.drivers.programs import Programs
from claude_vm.drivers.templates import Use
from claude_vm.drivers.vm.arguments import SLOTS
from claude_vm.drivers.vm.disk import make_overlay
from claude_vm.drivers.vm.hypervisor import Hypervisor
from claude_vm.drivers.vm.spawn import end, reap
from claude_vm.drivers.vm.store import VmTemplates, plain

_ID: Final = re.compile(r"i-[0-9a-f]{10}")


class VmRecord(msgspec.Struct, frozen=True):
    """``instance.json``. `spawning` is set while a QEMU may run that `process` does not name yet.

    `waiting` is the key of the snapshot whose state that process waits for; empty once it has been told to
    read it, or when it boots.
    """

    spec: InstanceSpec
    spawning: bool = False
    process: ProcessIdentity | None = None
    waiting: str = ""


class InstanceFolder:
    """Where an instance is, or would be.

    Raises:
        DriverError: That is not an instance id, or others could write there.
    """

    def __init__(self, hypervisor: Hypervisor, instance_id: str) -> None:
        if not _ID.fullmatch(instance_id):
            raise DriverError(f"'{instance_id}' is not an instance id")
        self.instance_id = instance_id
        self.path = hypervisor.folder(instance_id)
        self.files = hypervisor.files(self.path)
        self.disk = self.path / hypervisor.disk
        self._hypervisor = hypervisor

    def load(self) -> VmRecord | None:
        """Return the instance's record, or None when it has no readable one."""
        return _load(self.path)

    def known(self) -> VmRecord:
        """Return the instance's record.

        Raises:
            DriverError: It has none.
        """
        saved = self.load()
        if saved is None:
            raise DriverError(f"the instance {self.instance_id} does not exist")
        return saved

    def save(self, saved: VmRecord) -> None:
        """Write the instance's record, whole or not at all."""
        files.replace(self.path / "instance.json", plain(saved))

    async def clone(self, spec: InstanceSpec, templates: VmTemplates, programs: Programs) -> None:
        """Make the folder and the disk.

        Raises:
            DriverError: The template is gone, the disk is full or would shrink, there are too many mounts.
        """
        if len(spec.mounts) > SLOTS:
            raise DriverError(
                f"{len(spec.mounts)} mounts are too many", hint=f"this driver can mount {SLOTS} directories"
            )
        generation = templates.find(spec.template, spec.generation)
        own = generation.stored.record.disk_gib
        if spec.disk_gib < own:
            raise DriverError(
                f"the template's disk has {own} GiB and can't shrink to {spec.disk_gib}",
                hint=f"use a disk of {own} GiB or more, or run `claude-vm setup --disk {spec.disk_gib}`",
            )
        try:
            self.path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            # If somebody else has just made what it lies in, it is refused.
            self._hypervisor.folder(self.instance_id)
            self.path.mkdir(mode=0o700)
            self.save(VmRecord(spec))
            # Now that the folder names the generation, nobody removes it any more: was it in time?
            templates.find(spec.template, spec.generation)
            await make_overlay(programs, self.disk, generation.disk, "qcow2")
        except OSError as error:
            raise DriverError(f"can't make the instance's folder: {words_of(error)}") from error

    async def delete(self) -> None:
        """End the VM at once and remove everything; what isn't there is fine.

        Raises:
            DriverError: A process does not die, or a file can't be removed.
        """
        await self.end()
        try:
            self._hypervisor.tidy(self.files)
            await anyio.to_thread.run_sync(remove_tree, self.path)
        except OSError as error:
            raise DriverError(f"can't remove the instance {self.instance_id}: {words_of(error)}") from error

    async def end(self) -> None:
        """End its processes: the recorded one, and without a sure record any that bears its mark.

        Raises:
            DriverError: One does not die.
        """
        await self._hypervisor.end(self.files)
        saved = self.load()
        if saved is not None and saved.process is not None:
            await end(saved.process)
        elif saved is None or saved.spawning:
            for process in await anyio.to_thread.run_sync(_marked, self._hypervisor, self.instance_id):
                await end(process)

    def status(self) -> InstanceStatus:
        """Tell what it is, by its record and its process."""
        saved = self.load()
        if saved is not None and saved.process is not None:
            return InstanceStatus.RUNNING if saved.process.is_alive() else InstanceStatus.STOPPED
        if (saved is None or saved.spawning) and _marked(self._hypervisor, self.instance_id):
            return InstanceStatus.RUNNING
        return InstanceStatus.STOPPED if self.path.is_dir() else InstanceStatus.ABSENT

    def taken_mib(self) -> int:
        """Return what the VM takes of the host's memory, in MiB; 0 when it does not run."""
        saved = self.load()
        if saved is not None and saved.process is not None and saved.process.is_alive():
            return taken_mib(saved.process.pid)
        return 0

    async def wait_stopped(self) -> str:
        """Return why the VM ended, once it has."""
        saved = self.load()
        if saved is None:
            return "it does not exist"
        process = saved.process
        if process is None:
            found = await anyio.to_thread.run_sync(_marked, self._hypervisor, self.instance_id)
            if not found:
                return "it was not running"
            process = found[0]
        await process.wait()
        return _reason(reap(process.pid), self.files.said())


class Instances:
    """The instances of an owner under one hypervisor."""

    def __init__(self, hypervisor: Hypervisor) -> None:
        self._hypervisor = hypervisor

    def folder(self, instance_id: str) -> InstanceFolder:
        """Return where an instance is, or would be.

        Raises:
            DriverError: That is not an instance id, or others could write there.
        """
        return InstanceFolder(self._hypervisor, instance_id)

    def status(self, instance_id: str) -> InstanceStatus:
        """Tell what an instance is; anything that is none is absent."""
        try:
            return self.folder(instance_id).status()
        except DriverError:  # what is there is somebody else's
            found = _marked(self._hypervisor, instance_id)
            return InstanceStatus.RUNNING if found else InstanceStatus.ABSENT

    def records(self) -> list[InstanceRecord]:
        """Return everything that bears the owner's mark: folders and processes."""
        hypervisor = self._hypervisor
        running = dict(_all_marked(hypervisor))
        names = running.keys() | {name for name, _ in hypervisor.folders() if _ID.fullmatch(name)}
        found = []
        for name in sorted(names):
            process = running.get(name)
            state = InstanceStatus.STOPPED if process is None else InstanceStatus.RUNNING
            pid = None if process is None else process.pid
            found.append(InstanceRecord(name, hypervisor.owner.supervisor_id, state, pid))
        return found

    def users(self) -> list[Use]:
        """Return what the instances of all supervisors of this home were cloned from."""
        found = []
        for name, folder in self._hypervisor.everybody():
            saved = _load(folder)
            if saved is not None:
                found.append(Use(name, saved.spec.template, saved.spec.generation))
        return found


def _all_marked(hypervisor: Hypervisor) -> list[tuple[str, ProcessIdentity]]:
    """Return the VM processes that bear the owner's mark, with the ids of their instances."""
    found = []
    prefix = f"guest={hypervisor.mark}:"
    for pid, argv in find_marked(hypervisor.mark):
        names = [word.removeprefix(prefix) for word in argv if word.startswith(prefix)]
        process = ProcessIdentity.of(pid)
        if process is not None and names and _ID.fullmatch(names[0]):
            found.append((names[0], process))
    return found


def _marked(hypervisor: Hypervisor, instance_id: str) -> list[ProcessIdentity]:
    return [process for name, process in _all_marked(hypervisor) if name == instance_id]


def _load(folder: Path) -> VmRecord | None:
    with suppress(OSError, msgspec.MsgspecError):
        return msgspec.json.decode((folder / "instance.json").read_bytes(), type=VmRecord)
    return None


def _reason(wait_status: int | None, told: str) -> str:
    """Say in a few words how a QEMU ended. Nobody but its parent knows its status."""
    words = told.splitlines()[-1:]
    said = f": {words[0][:300]}" if words else ""
    if wait_status is None:
        return f"QEMU ended{said}"
    code = os.waitstatus_to_exitcode(wait_status)
    if code < 0:
        return f"QEMU was killed ({signal.Signals(-code).name}){said}"
    return "the guest shut down" if code == 0 else f"QEMU failed (exit status {code}){said}"
