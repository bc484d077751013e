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

import fcntl
import os
import secrets
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Final

import msgspec

from claude_vm.drivers.api import TemplateRecord
from claude_vm.drivers.directories import remove_tree
from claude_vm.drivers.errors import TemplateMissingError, words_of

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


def template_folder(home: Path, name: str, kind: str) -> Path:
    """Where the generations of a template for the hypervisor `kind` are."""
    return home / "templates" / name / kind


def find_generation(home: Path, name: str, generation: str, kind: str) -> Generation:
    """Return a generation of a template; ``current`` is a name of one.

    Raises:
        TemplateMissingError: It is not there, or not readable as one.
    """
    folder = template_folder(home, name, kind) / generation
    try:
        # Its own name even through "current": what is kept must go on meaning the same generation.
        folder = folder.resolve(strict=True)
        stored = msgspec.json.decode((folder / "template.json").read_bytes(), type=Stored)
    except (OSError, msgspec.MsgspecError) as error:
        raise TemplateMissingError(
            f"the template {name} ({generation}) does not exist",
            detail=words_of(error),
            hint="run `claude-vm setup`",
        ) from error
    return Generation(folder, stored)


def current_generations(home: Path, kind: str) -> list[Generation]:
    """Return the current generation of each template, by name."""
    found = []
    for link in sorted((home / "templates").glob(f"*/{kind}/current")):
        with suppress(TemplateMissingError):
            found.append(find_generation(home, link.parent.parent.name, "current", kind))
    return found


def last_used(home: Path, name: str, kind: str) -> float:
    """When a template was used last, as a Unix time; 0 for never."""
    with suppress(OSError):
        return (template_folder(home, name, kind) / "last-used").stat().st_mtime
    return 0.0


def touch(home: Path, name: str, kind: str) -> None:
    """Record that a template is used now."""
    folder = template_folder(home, name, kind)
    if folder.is_dir():
        (folder / "last-used").touch(mode=0o600)


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
    descriptor = os.open(folder / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield folder
    finally:
        # QEMU does not inherit the descriptor, so the lock goes with us.
        shutil.rmtree(folder, ignore_errors=True)
        os.close(descriptor)


def dead_builds(home: Path, kind: str) -> list[Path]:
    """Return the folders of builds whose builder has died, and of removals that were interrupted."""
    builds = (home / "templates").glob(f"*/{kind}/**/{BUILDING}*")
    found = [folder for folder in builds if not _is_locked(folder / "lock")]
    found += (home / "templates").glob(f"*/{TRASH}*")
    found += (home / "templates").glob(f"*/{kind}/{TRASH}*")
    return found


def set_aside(folder: Path) -> Path:
    """Take a folder out of everybody's sight, by a rename that can be undone; return where it is now."""
    trash = folder.with_name(f"{TRASH}{secrets.token_hex(4)}")
    folder.rename(trash)
    return trash


def discard(folder: Path) -> None:
    """Remove a folder so that nobody ever sees half of it. A sweep may be at the same trash."""
    remove_tree(folder if folder.name.startswith(TRASH) else set_aside(folder))


def size_bytes(folder: Path) -> int:
    """What the files of a folder take on the disk; sparse files count what they hold."""
    return sum(path.lstat().st_blocks * 512 for path in folder.rglob("*"))


def _is_locked(path: Path) -> bool:
    """Tell whether somebody holds the lock. A build that has not made its file yet, is a moment old."""
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_CLOEXEC)
    except FileNotFoundError:
        with suppress(OSError):
            return time.time() - path.parent.stat().st_mtime < 60
        return True
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(descriptor)
    return False


def _sync(folder: Path) -> None:
    """Make what is in a folder survive a crash of the host."""
    for path in folder.rglob("*"):
        if path.is_file():
            descriptor = os.open(path, os.O_RDONLY)
            try:
                os.fsync(descriptor)
            finally:
                os.close(descriptor)
