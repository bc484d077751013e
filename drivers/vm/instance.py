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

from claude_vm.drivers.api import InstanceRecord, InstanceSpec, InstanceStatus
from claude_vm.drivers.directories import remove_tree
from claude_vm.drivers.errors import DriverError, words_of
from claude_vm.drivers.memory import taken_mib
from claude_vm.drivers.process import ProcessIdentity, find_marked
from claude_vm.drivers.vm.arguments import SLOTS
from claude_vm.drivers.vm.hypervisor import Estate
from claude_vm.drivers.vm.snapshots import make_overlay, plain
from claude_vm.drivers.vm.spawn import end, reap
from claude_vm.drivers.vm.store import find_generation

_ID: Final = re.compile(r"i-[0-9a-f]{10}")


class Saved(msgspec.Struct, frozen=True):
    """``instance.json``. `spawning` is set while a QEMU may run that `process` does not name yet.

    `waiting` is the key of the snapshot whose state that process waits for; empty once it has been told to
    read it, or when it boots.
    """

    spec: InstanceSpec
    spawning: bool = False
    process: ProcessIdentity | None = None
    waiting: str = ""


def folder_of(estate: Estate, instance_id: str) -> Path:
    """Where an instance is, or would be.

    Raises:
        DriverError: That is no instance id, or others could write there.
    """
    if not _ID.fullmatch(instance_id):
        raise DriverError(f"'{instance_id}' is no instance id")
    return estate.hypervisor.folder(estate.owner, instance_id)


def load(folder: Path) -> Saved | None:
    """Return an instance's record, or None when it has no readable one."""
    with suppress(OSError, msgspec.MsgspecError):
        return msgspec.json.decode((folder / "instance.json").read_bytes(), type=Saved)
    return None


def save(folder: Path, saved: Saved) -> None:
    """Write an instance's record, whole or not at all."""
    new = folder / "instance.json.new"
    new.write_bytes(plain(saved))
    new.rename(folder / "instance.json")


async def clone(estate: Estate, spec: InstanceSpec) -> None:
    """Make the folder and the disk.

    Raises:
        DriverError: The template is gone, the disk is full or would shrink, there are too many mounts.
    """
    folder = folder_of(estate, spec.instance_id)
    if len(spec.mounts) > SLOTS:
        raise DriverError(f"{len(spec.mounts)} mounts", hint=f"this driver has {SLOTS} at most")
    generation = find_generation(estate.home, spec.template, spec.generation, estate.kind)
    own = generation.stored.record.disk_gib
    if spec.disk_gib < own:
        raise DriverError(
            f"the template's disk has {own} GiB and can't shrink to {spec.disk_gib}",
            hint=f"use a disk of {own} GiB or more, or run `claude-vm setup --disk {spec.disk_gib}`",
        )
    try:
        folder.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        folder_of(estate, spec.instance_id)  # if somebody else has just made what it lies in, it is refused
        folder.mkdir(mode=0o700)
        save(folder, Saved(spec))
        # Now that the folder names the generation, nobody removes it any more: was it in time?
        find_generation(estate.home, spec.template, spec.generation, estate.kind)
        await make_overlay(estate.programs, folder / estate.hypervisor.disk, generation.disk, "qcow2")
    except OSError as error:
        raise DriverError(f"can't make the instance's folder: {words_of(error)}") from error


async def delete(estate: Estate, instance_id: str) -> None:
    """End the VM at once and remove everything; unknown ids are fine.

    Raises:
        DriverError: A process does not die, or a file can't be removed.
    """
    folder = folder_of(estate, instance_id)
    await end_all(estate, instance_id, load(folder))
    try:
        estate.hypervisor.tidy(estate.files(folder))
        await anyio.to_thread.run_sync(remove_tree, folder)
    except OSError as error:
        raise DriverError(f"can't remove the instance {instance_id}: {words_of(error)}") from error


async def end_all(estate: Estate, instance_id: str, saved: Saved | None) -> None:
    """End the instance's processes: the recorded one, and without a sure record any that bears its mark."""
    await estate.hypervisor.end(estate.files(folder_of(estate, instance_id)))
    if saved is not None and saved.process is not None:
        await end(saved.process)
        return
    if saved is not None and not saved.spawning:
        return
    for identity in await anyio.to_thread.run_sync(_marked, estate, instance_id):
        await end(identity)


def _marked(estate: Estate, instance_id: str | None = None) -> list[ProcessIdentity]:
    return [identity for _, identity in marked(estate) if instance_id in {None, _}]


def marked(estate: Estate) -> list[tuple[str, ProcessIdentity]]:
    """Return the VM processes that bear the owner's mark, with the ids of their instances."""
    found = []
    for pid, argv in find_marked(estate.mark):
        names = [
            word.removeprefix(f"guest={estate.mark}:")
            for word in argv
            if word.startswith(f"guest={estate.mark}:")
        ]
        identity = ProcessIdentity.of(pid)
        if identity is not None and names and _ID.fullmatch(names[0]):
            found.append((names[0], identity))
    return found


def status(estate: Estate, instance_id: str) -> InstanceStatus:
    """Tell what an instance is, by its record and its process."""
    if not _ID.fullmatch(instance_id):
        return InstanceStatus.ABSENT
    try:
        folder = folder_of(estate, instance_id)
    except DriverError:  # what is there is somebody else's
        return InstanceStatus.RUNNING if _marked(estate, instance_id) else InstanceStatus.ABSENT
    saved = load(folder)
    if saved is not None and saved.process is not None:
        return InstanceStatus.RUNNING if saved.process.is_alive() else InstanceStatus.STOPPED
    if (saved is None or saved.spawning) and _marked(estate, instance_id):
        return InstanceStatus.RUNNING
    return InstanceStatus.STOPPED if folder.is_dir() else InstanceStatus.ABSENT


def taken(estate: Estate, instance_id: str) -> int:
    """Return what the VM takes of the host's memory, in MiB; 0 when it does not run."""
    with suppress(DriverError):
        saved = load(folder_of(estate, instance_id))
        if saved is not None and saved.process is not None and saved.process.is_alive():
            return taken_mib(saved.process.pid)
    return 0


def records(estate: Estate) -> list[InstanceRecord]:
    """Return everything that bears the owner's mark: folders and processes."""
    running = dict(marked(estate))
    names = set(running)
    names |= {name for name, _ in estate.hypervisor.folders(estate.owner) if _ID.fullmatch(name)}
    found = []
    for name in sorted(names):
        identity = running.get(name)
        state = InstanceStatus.STOPPED if identity is None else InstanceStatus.RUNNING
        found.append(
            InstanceRecord(name, estate.owner.supervisor_id, state, identity.pid if identity else None)
        )
    return found


async def wait_stopped(estate: Estate, instance_id: str) -> str:
    """Return why the VM ended, once it has."""
    folder = folder_of(estate, instance_id)
    saved = load(folder)
    if saved is None:
        return "it does not exist"
    process = saved.process
    if process is None:
        found = await anyio.to_thread.run_sync(_marked, estate, instance_id)
        if not found:
            return "it was not running"
        process = found[0]
    await process.wait()
    return _reason(reap(process.pid), estate.files(folder).said())


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


def users(estate: Estate) -> list[tuple[str, tuple[str, str]]]:
    """Return the instances of all supervisors of this home, each with its template and generation."""
    found = []
    for name, folder in estate.hypervisor.everybody(estate.home):
        saved = load(folder)
        if saved is not None:
            found.append((name, (saved.spec.template, saved.spec.generation)))
    return found


def uses(estate: Estate) -> set[tuple[str, str]]:
    """Return the templates and generations that instances use."""
    return {used for _, used in users(estate)}
