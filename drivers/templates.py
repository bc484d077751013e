"""Templates on disk, of whatever driver: immutable generations beneath the data folder.

::

    <home>/templates/<name>/<kind>/current -> <generation>
    <home>/templates/<name>/<kind>/last-used             its time is what counts
    <home>/templates/<name>/<kind>/<generation>/         what it is, and its files
    <home>/templates/<name>/<kind>/.building-<hex>/      a build; dead when nobody holds its `lock`

``kind`` is a driver's name: what one has made, another can't use.

A generation appears by a rename, complete; then nothing in it is ever opened for writing, and it goes only
when no instance names it. What is half built is locked by its builder, and the kernel releases the lock of a
builder that dies.
"""

import secrets
import shutil
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Final, Generic, TypeVar

import anyio.to_thread
import msgspec

from claude_vm.drivers import locks
from claude_vm.drivers.directories import remove_tree
from claude_vm.drivers.errors import TemplateInUseError, TemplateMissingError, words_of

BUILDING: Final = ".building-"
TRASH: Final = ".trash-"

G = TypeVar("G")


class Use(msgspec.Struct, frozen=True):
    """An instance, and the generation that it was cloned from."""

    instance_id: str
    template: str
    generation: str


Users = Callable[[], Sequence[Use]]
"""Returns who uses generations at that moment, of all supervisors of the home."""


class Templates(ABC, Generic[G]):
    """The templates of a kind in a data folder, whose generations are each a `G`."""

    def __init__(self, home: Path, kind: str) -> None:
        self._root = home / "templates"
        self.kind = kind

    def folder(self, name: str) -> Path:
        """Where the generations of a template are."""
        return self._root / name / self.kind

    @abstractmethod
    def read(self, folder: Path) -> G:
        """Return the generation in a folder.

        Raises:
            OSError: It is not there, or something of it is missing.
            msgspec.MsgspecError: It is damaged.
        """

    def find(self, name: str, generation: str) -> G:
        """Return a generation of a template; ``current`` is a name of one.

        Raises:
            TemplateMissingError: It is not there, or not readable as one.
        """
        try:
            # Its own name even through "current": what is kept must go on meaning the same generation.
            return self.read((self.folder(name) / generation).resolve(strict=True))
        except (OSError, msgspec.MsgspecError) as error:
            raise TemplateMissingError(
                f"the template {name} ({generation}) does not exist",
                detail=words_of(error),
                hint="run `claude-vm setup`",
            ) from error

    def current(self) -> list[G]:
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
        folder = self.folder(name)
        if using := await _remove(folder, users, name):
            instances = tuple(sorted({use.instance_id for use in using}))
            raise TemplateInUseError(f"the template {name} is in use", instances=instances)
        with suppress(OSError):
            folder.parent.rmdir()

    async def discard_unused(self, users: Users) -> list[str]:
        """Remove the generations that are neither current nor used; return what they were."""
        removed = []
        for folder in sorted(self._root.glob(f"*/{self.kind}/[0-9]*")):
            name = folder.parent.parent.name
            current = (folder.parent / "current").resolve() == folder.resolve()
            if not current and not await _remove(folder, users, name, folder.name):
                removed.append(f"template {name}, generation {folder.name}")
        return removed

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


async def _remove(folder: Path, users: Users, name: str, generation: str = "") -> list[Use]:
    """Remove the folder of a template, or of a generation, unless somebody uses that; return who does.

    Somebody may have cloned it while it was set aside; then it goes back.
    """

    def using() -> list[Use]:
        return [use for use in users() if use.template == name and generation in {"", use.generation}]

    if (found := using()) or not folder.is_dir():
        return found
    trash = _set_aside(folder)
    if found := using():
        trash.rename(folder)
    else:
        await anyio.to_thread.run_sync(discard, trash)
    return found


def _set_aside(folder: Path) -> Path:
    """Take a folder out of everybody's sight, by a rename that can be undone; return where it is now."""
    trash = folder.with_name(f"{TRASH}{secrets.token_hex(4)}")
    folder.rename(trash)
    return trash


def discard(folder: Path) -> None:
    """Remove a folder so that nobody ever sees half of it. A sweep may be at the same trash."""
    remove_tree(folder if folder.name.startswith(TRASH) else _set_aside(folder))


def _is_being_built(folder: Path) -> bool:
    """Tell whether somebody holds its lock. One that has not made the file yet is a moment old."""
    try:
        return locks.is_locked(folder / "lock")
    except FileNotFoundError:
        with suppress(OSError):
            return time.time() - folder.stat().st_mtime < 60
        return True
