"""Templates on disk: immutable generations, and snapshots of them, beneath the data folder.

::

    <home>/templates/<name>/<kind>/current -> <generation>
    <home>/templates/<name>/<kind>/last-used                      its time is what counts
    <home>/templates/<name>/<kind>/<generation>/template.json
    <home>/templates/<name>/<kind>/<generation>/disk.qcow2        over the cached image
    <home>/templates/<name>/<kind>/<generation>/snapshots/<key>/  ram, state, disk.qcow2 if it has its own
    <home>/templates/<name>/<kind>/.building-<hex>/               a build; dead when nobody holds its `lock`

``kind`` is a hypervisor's name: what one has made, another can't use.

A generation or snapshot appears by a rename, complete; then nothing in it is ever opened for writing, and it
goes only when no instance names it. What is half built is locked by its builder, and the kernel releases the
lock of a builder that dies.
"""

import hashlib
import json
import os
import secrets
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Final

import anyio.to_thread
import msgspec

from claude_vm.drivers import locks
from claude_vm.drivers.api import TemplateRecord
from claude_vm.drivers.directories import remove_tree
from claude_vm.drivers.errors import TemplateInUseError, TemplateMissingError, words_of
from claude_vm.drivers.vm.arguments import Arguments, QemuBuild, Ram, VmPlan, VmSize

BUILDING: Final = ".building-"
TRASH: Final = ".trash-"


class Stored(msgspec.Struct, frozen=True):
    """``template.json``: the record, and what a VM of this template needs to know."""

    record: TemplateRecord
    uid: int
    gid: int
    kernel: str
    initrd: str
    kernel_arguments: str

    def guest(self, name: str, size: VmSize, disk: Path) -> VmPlan:
        """Return a VM of this template on a disk."""
        return VmPlan(
            name=name,
            cpus=size.cpus,
            memory_mib=size.memory_mib,
            disk=str(disk),
            kernel=self.kernel,
            initrd=self.initrd,
            kernel_arguments=self.kernel_arguments,
            uid=self.uid,
            user=self.record.user,
            home=self.record.home,
        )

    def snapshot_key(self, arguments: Arguments, host: QemuBuild, size: VmSize) -> str:
        """Return the name of the snapshots of this size that a QEMU with these arguments can read.

        Anything that may change how a saved state is read makes another one; then there is no snapshot, and
        the VM boots.
        """
        guest = VmPlan(
            name="",
            cpus=size.cpus,
            memory_mib=size.memory_mib,
            disk="",
            kernel=self.record.image,
            initrd="",
            kernel_arguments=self.kernel_arguments,
            ram=Ram("", shared=True),
        )
        facts = [list(arguments(host, guest)), host.build, host.cpu, self.uid]
        return hashlib.sha256(json.dumps(facts).encode()).hexdigest()[:16]


class Use(msgspec.Struct, frozen=True):
    """An instance, and the generation that it was cloned from."""

    instance_id: str
    template: str
    generation: str


Users = Callable[[], Sequence[Use]]
"""Returns who uses generations at that moment, of all supervisors of the home."""


class Snapshot(msgspec.Struct, frozen=True):
    """A saved guest: its memory, the state of its devices, and the disk that both belong to."""

    disk: Path
    ram: Path
    state: Path

    @property
    def key(self) -> str:
        """The name under which `Generation.snapshot` finds it."""
        return self.state.parent.name


class Generation(msgspec.Struct, frozen=True):
    """One immutable generation of a template."""

    folder: Path
    stored: Stored

    @property
    def disk(self) -> Path:
        """The disk, to be used as a backing file only."""
        return self.folder / "disk.qcow2"

    def snapshot(self, key: str) -> Snapshot | None:
        """Return the snapshot of this key, if there is one."""
        folder = self.folder / "snapshots" / key
        if not (folder / "state").exists():
            return None
        own = folder / "disk.qcow2"
        return Snapshot(own if own.exists() else self.disk, folder / "ram", folder / "state")


class Templates:
    """The templates of a kind in a data folder."""

    def __init__(self, home: Path, kind: str) -> None:
        self._root = home / "templates"
        self.kind = kind

    def folder(self, name: str) -> Path:
        """Where the generations of a template are."""
        return self._root / name / self.kind

    def find(self, name: str, generation: str) -> Generation:
        """Return a generation of a template; ``current`` is a name of one.

        Raises:
            TemplateMissingError: It is not there, or not readable as one.
        """
        try:
            # Its own name even through "current": what is kept must go on meaning the same generation.
            folder = (self.folder(name) / generation).resolve(strict=True)
            stored = msgspec.json.decode((folder / "template.json").read_bytes(), type=Stored)
        except (OSError, msgspec.MsgspecError) as error:
            raise TemplateMissingError(
                f"the template {name} ({generation}) does not exist",
                detail=words_of(error),
                hint="run `claude-vm setup`",
            ) from error
        return Generation(folder, stored)

    def current(self) -> list[Generation]:
        """Return the current generation of each template, by name."""
        found = []
        for link in sorted(self._root.glob(f"*/{self.kind}/current")):
            with suppress(TemplateMissingError):
                found.append(self.find(link.parent.parent.name, "current"))
        return found

    def last_used(self, name: str) -> float:
        """When a template was used last, as a Unix time; 0 for never."""
        with suppress(OSError):
            return (self.folder(name) / "last-used").stat().st_mtime
        return 0.0

    def touch(self, name: str) -> None:
        """Record that a template is used now."""
        if self.folder(name).is_dir():
            (self.folder(name) / "last-used").touch(mode=0o600)

    async def delete(self, name: str, users: Users) -> None:
        """Remove all generations of a template; one that isn't there is fine.

        Raises:
            TemplateInUseError: With the instances that use it.
        """
        _refuse_used(name, users())
        folder = self.folder(name)
        if not folder.is_dir():
            return
        trash = _set_aside(folder)
        try:
            # Somebody may have cloned it in between; then it goes back.
            _refuse_used(name, users())
        except TemplateInUseError:
            trash.rename(folder)
            raise
        await anyio.to_thread.run_sync(discard, trash)
        with suppress(OSError):
            folder.parent.rmdir()

    async def discard_unused(self, users: Users) -> list[str]:
        """Remove the generations that are neither current nor used; return what they were."""
        removed = []
        for folder in sorted(self._root.glob(f"*/{self.kind}/[0-9]*")):
            name = folder.parent.parent.name
            current = (folder.parent / "current").resolve() == folder.resolve()
            if not current and await _discard_unused(name, folder, users):
                removed.append(f"template {name}, generation {folder.name}")
        return removed

    def images(self) -> set[str]:
        """Return the keys of the images that generations are made of."""
        found = set()
        for folder in self._root.glob(f"*/{self.kind}/[0-9]*"):
            with suppress(TemplateMissingError):
                found.add(self.find(folder.parent.parent.name, folder.name).stored.record.image)
        return found

    def are_built(self) -> bool:
        """Tell whether a template of any kind is being built."""
        return any(self._root.glob(f"*/*/{BUILDING}*"))

    def dead_builds(self) -> list[Path]:
        """Return the folders of builds whose builder has died, and of removals that were interrupted."""
        builds = self._root.glob(f"*/{self.kind}/**/{BUILDING}*")
        found = [folder for folder in builds if not _is_being_built(folder)]
        found += self._root.glob(f"*/{TRASH}*")
        found += self._root.glob(f"*/{self.kind}/{TRASH}*")
        return found


def new_generation_name() -> str:
    """Return a name for a new generation: newer ones sort later."""
    return time.strftime("%Y%m%d-%H%M%S-", time.gmtime()) + secrets.token_hex(3)


def publish(building: Path, name: str) -> Path:
    """Make a complete build a generation, and the current one; readers see the old or the new, never none."""
    _sync(building)
    generation = building.parent / name
    (building / "lock").unlink(missing_ok=True)
    building.rename(generation)
    link = building.parent / f".current-{secrets.token_hex(4)}"
    link.symlink_to(name)
    link.rename(building.parent / "current")
    return generation


@contextmanager
def building_folder(parent: Path) -> Iterator[Path]:
    """Give a new folder for a build, locked as long as the block lasts, removed unless it was renamed."""
    parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    folder = parent / f"{BUILDING}{secrets.token_hex(4)}"
    folder.mkdir(mode=0o700)
    with locks.locked(folder / "lock"):  # QEMU does not inherit it, so it goes with us
        try:
            yield folder
        finally:
            shutil.rmtree(folder, ignore_errors=True)


def _refuse_used(name: str, users: Sequence[Use]) -> None:
    found = tuple(sorted({use.instance_id for use in users if use.template == name}))
    if found:
        raise TemplateInUseError(f"the template {name} is in use", instances=found)


async def _discard_unused(name: str, folder: Path, users: Users) -> bool:
    """Remove a generation unless an instance uses it, also one that is being cloned at this moment."""

    def used() -> bool:
        return any((use.template, use.generation) == (name, folder.name) for use in users())

    if used():
        return False
    trash = _set_aside(folder)
    if used():
        trash.rename(folder)
        return False
    await anyio.to_thread.run_sync(discard, trash)
    return True


def _set_aside(folder: Path) -> Path:
    """Take a folder out of everybody's sight, by a rename that can be undone; return where it is now."""
    trash = folder.with_name(f"{TRASH}{secrets.token_hex(4)}")
    folder.rename(trash)
    return trash


def discard(folder: Path) -> None:
    """Remove a folder so that nobody ever sees half of it. A sweep may be at the same trash."""
    remove_tree(folder if folder.name.startswith(TRASH) else _set_aside(folder))


def size_bytes(folder: Path) -> int:
    """What the files of a folder take on the disk; sparse files count what they hold."""
    return sum(path.lstat().st_blocks * 512 for path in folder.rglob("*"))


def _is_being_built(folder: Path) -> bool:
    """Tell whether somebody holds its lock. One that has not made the file yet is a moment old."""
    try:
        return locks.is_locked(folder / "lock")
    except FileNotFoundError:
        with suppress(OSError):
            return time.time() - folder.stat().st_mtime < 60
        return True


def _sync(folder: Path) -> None:
    """Make what is in a folder survive a crash of the host."""
    for path in folder.rglob("*"):
        if path.is_file():
            descriptor = os.open(path, os.O_RDONLY)
            try:
                os.fsync(descriptor)
            finally:
                os.close(descriptor)


def plain(record: msgspec.Struct) -> bytes:
    """Return a record as readable JSON."""
    return msgspec.json.format(msgspec.json.encode(record))
