"""One instance: its folder, its record and its end. How it is started is in `starting`.

``<home>/instances/<supervisor id>/<instance id>/`` has ``instance.json``, the disk, the client key and logs.
The record is written before QEMU is started and again with the process, so whenever we are killed the VM is
found: by the record, or by the mark in its argument list.
"""

import os
import re
import shutil
import signal
from contextlib import suppress
from pathlib import Path
from typing import Final

import anyio
import anyio.to_thread
import msgspec

from claude_vm.drivers.api import InstanceRecord, InstanceSpec, InstanceStatus, Owner
from claude_vm.drivers.errors import DriverError
from claude_vm.drivers.process import ProcessIdentity, find_marked
from claude_vm.drivers.qemu.arguments import SLOTS
from claude_vm.drivers.qemu.snapshots import files_of, make_overlay, plain
from claude_vm.drivers.qemu.spawn import end, reap, tail
from claude_vm.drivers.qemu.store import find_generation

HOST_ADDRESS: Final = "10.0.2.2"
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


def instances_folder(owner: Owner) -> Path:
    """Where an owner's instances are."""
    return owner.home / "instances" / owner.supervisor_id


def folder_of(owner: Owner, instance_id: str) -> Path:
    """Where an instance is, or would be.

    Raises:
        DriverError: That is no instance id.
    """
    if not _ID.fullmatch(instance_id):
        raise DriverError(f"{instance_id!r} is no instance id")
    return instances_folder(owner) / instance_id


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


async def clone(owner: Owner, spec: InstanceSpec) -> None:
    """Make the folder and the disk.

    Raises:
        DriverError: The template is gone, the disk is full or would shrink, there are too many mounts.
    """
    folder = folder_of(owner, spec.instance_id)
    if len(spec.mounts) > SLOTS:
        raise DriverError(f"{len(spec.mounts)} mounts", hint=f"this driver has {SLOTS} at most")
    generation = find_generation(owner.home, spec.template, spec.generation)
    own = generation.stored.record.disk_gib
    if spec.disk_gib < own:
        raise DriverError(
            f"the template's disk has {own} GiB and can't shrink to {spec.disk_gib}",
            hint=f"use a disk of {own} GiB or more, or run `claude-vm setup --disk {spec.disk_gib}`",
        )
    try:
        folder.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        folder.mkdir(mode=0o700)
        save(folder, Saved(spec))
        # Now that the folder names the generation, nobody removes it any more: was it in time?
        find_generation(owner.home, spec.template, spec.generation)
        await make_overlay(folder / "disk.qcow2", generation.disk, "qcow2", None)
    except OSError as error:
        raise DriverError(f"can't make the instance's folder: {error}") from error


async def delete(owner: Owner, instance_id: str) -> None:
    """End the VM at once and remove everything; unknown ids are fine.

    Raises:
        DriverError: A process does not die, or a file can't be removed.
    """
    folder = folder_of(owner, instance_id)
    await end_all(owner, instance_id, load(folder))
    files = files_of(owner, folder)
    try:
        for path in (files.monitor, files.helper):
            path.unlink(missing_ok=True)
        await anyio.to_thread.run_sync(_remove, folder)
    except OSError as error:
        raise DriverError(f"can't remove the instance {instance_id}: {error}") from error


def _remove(folder: Path) -> None:
    """Remove a folder that may be gone, or half gone."""
    with suppress(FileNotFoundError):
        shutil.rmtree(folder)


async def end_all(owner: Owner, instance_id: str, saved: Saved | None) -> None:
    """End the instance's process: the recorded one, and without a sure record any that bears its mark."""
    if saved is not None and saved.process is not None:
        await end(saved.process)
        return
    if saved is not None and not saved.spawning:
        return
    for identity in await anyio.to_thread.run_sync(_marked, owner, instance_id):
        await end(identity)


def _marked(owner: Owner, instance_id: str | None = None) -> list[ProcessIdentity]:
    return [identity for _, identity in marked(owner) if instance_id in {None, _}]


def marked(owner: Owner) -> list[tuple[str, ProcessIdentity]]:
    """Return the VM processes that bear the owner's mark, with the ids of their instances."""
    found = []
    for pid, argv in find_marked(owner.mark):
        names = [
            word.removeprefix(f"guest={owner.mark}:")
            for word in argv
            if word.startswith(f"guest={owner.mark}:")
        ]
        identity = ProcessIdentity.of(pid)
        if identity is not None and names and _ID.fullmatch(names[0]):
            found.append((names[0], identity))
    return found


def status(owner: Owner, instance_id: str) -> InstanceStatus:
    """Tell what an instance is, by its record and its process."""
    if not _ID.fullmatch(instance_id):
        return InstanceStatus.ABSENT
    folder = folder_of(owner, instance_id)
    saved = load(folder)
    if saved is not None and saved.process is not None:
        return InstanceStatus.RUNNING if saved.process.is_alive() else InstanceStatus.STOPPED
    if (saved is None or saved.spawning) and _marked(owner, instance_id):
        return InstanceStatus.RUNNING
    return InstanceStatus.STOPPED if folder.is_dir() else InstanceStatus.ABSENT


def records(owner: Owner) -> list[InstanceRecord]:
    """Return everything that bears the owner's mark: folders and processes."""
    running = dict(marked(owner))
    names = set(running)
    root = instances_folder(owner)
    if root.is_dir():
        names |= {path.name for path in root.iterdir() if _ID.fullmatch(path.name)}
    found = []
    for name in sorted(names):
        identity = running.get(name)
        state = InstanceStatus.STOPPED if identity is None else InstanceStatus.RUNNING
        found.append(InstanceRecord(name, owner.supervisor_id, state, identity.pid if identity else None))
    return found


async def wait_stopped(owner: Owner, instance_id: str) -> str:
    """Return why the VM ended, once it has."""
    folder = folder_of(owner, instance_id)
    saved = load(folder)
    if saved is None:
        return "it does not exist"
    process = saved.process
    if process is None:
        found = await anyio.to_thread.run_sync(_marked, owner, instance_id)
        if not found:
            return "it was not running"
        process = found[0]
    await process.wait()
    return _reason(reap(process.pid), files_of(owner, folder).log)


def _reason(wait_status: int | None, log: Path) -> str:
    """Say in a few words how a QEMU ended. Nobody but its parent knows its status."""
    words = tail(log).splitlines()[-1:]
    said = f": {words[0][:300]}" if words else ""
    if wait_status is None:
        return f"QEMU ended{said}"
    code = os.waitstatus_to_exitcode(wait_status)
    if code < 0:
        return f"QEMU was killed ({signal.Signals(-code).name}){said}"
    return "the guest shut down" if code == 0 else f"QEMU failed (exit status {code}){said}"


def users(home: Path) -> list[tuple[str, tuple[str, str]]]:
    """Return the instances of all supervisors of this home, each with its template and generation."""
    found = []
    for path in (home / "instances").glob("*/*/instance.json"):
        saved = load(path.parent)
        if saved is not None:
            found.append((path.parent.name, (saved.spec.template, saved.spec.generation)))
    return found


def uses(home: Path) -> set[tuple[str, str]]:
    """Return the templates and generations that instances use."""
    return {used for _, used in users(home)}
