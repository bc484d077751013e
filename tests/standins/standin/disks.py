"""Disks that are not an instance's own: made by ``disk create``, attached by ``additionalDisks``.

A disk belongs to one running instance at a time: a link beside it names the instance's folder. One that is
killed, or ends before its guest could be reached, leaves the link, and takes it again at its next start.
"""

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

from . import names
from .errors import LimaError, NotFoundError
from .images import image_format, virtual_size
from .instance import Instance, inspect
from .log import LOG, quoted
from .sizes import format_size, parse_size
from .table import table

_LOCK = "in_use_by"


class Disk:
    """One disk, as it is now. `owner` is the folder of the instance that has it."""

    def __init__(self, name: str) -> None:
        problem = names.problem_with(name)
        if problem is not None:
            raise LimaError(problem)
        self.name = name
        self.folder = names.home() / "_disks" / name
        self.data = self.folder / "datadisk"
        lock = self.folder / _LOCK
        self.owner = lock.readlink() if lock.is_symlink() else None

    def unlock(self) -> None:
        (self.folder / _LOCK).unlink()

    def lock(self, folder: Path) -> None:
        """Give the disk to an instance.

        Raises:
            LimaError: another one has it.
        """
        if self.owner is not None and self.owner != folder:
            raise LimaError(f"in use by instance {quoted(self.owner.name)}")
        (self.folder / _LOCK).unlink(missing_ok=True)
        (self.folder / _LOCK).symlink_to(folder)

    def listing(self) -> dict[str, Any]:
        return {
            "name": self.name,
            "size": virtual_size(self.data),
            "format": image_format(self.data),
            "dir": str(self.folder),
            "instance": self.owner.name if self.owner else "",
            "instanceDir": str(self.owner or ""),
            "mountPoint": f"/mnt/lima-{self.name}",
        }


def attach(found: Instance) -> list[Path]:
    """Give an instance its disks, and return their files.

    Raises:
        LimaError: one is not there, or is another's.
    """
    files = []
    for wanted in found.settings()["additionalDisks"]:
        disk = Disk(wanted["name"])
        if not disk.data.exists():
            reason = f"stat {disk.data}: no such file or directory"
            LOG.error(f"could not load disk {quoted(disk.name)}: {quoted(reason)}")
            raise LimaError(reason)
        LOG.info(f"Mounting disk {quoted(disk.name)} on {quoted('/mnt/lima-' + disk.name)}")
        try:
            disk.lock(found.folder)
        except LimaError as error:
            LOG.error(f"could not attach disk {quoted(disk.name)}: {error}")
            raise
        files.append(disk.data)
    return files


def release(found: Instance) -> None:
    """Take an instance's disks from it. Nothing here fails."""
    for wanted in (found.config or {}).get("additionalDisks", ()):
        disk = Disk(wanted["name"])
        if not disk.data.exists():
            LOG.warning(f"Disk {quoted(disk.name)} does not exist")
            continue
        try:
            disk.unlock()
        except OSError:
            hint = f"To use, run `limactl disk unlock {disk.name}`"
            LOG.warning(f"Failed to unlock disk {quoted(disk.name)}. {hint}")


def create(name: str, size: str, kind: str) -> None:
    """Make a disk. Whatever `kind` says, it is a qcow2 file: that is what Lima 2.2 makes.

    Raises:
        LimaError: there is one already, or it can't be made so.
    """
    if not size:
        raise LimaError('required flag(s) "size" not set')
    count = parse_size(size)
    if kind not in ("qcow2", "raw"):
        raise LimaError(f"disk format {quoted(kind)} not supported, use `qcow2` or `raw` instead")
    disk = Disk(name)
    if disk.folder.exists():
        raise LimaError(f"disk {quoted(name)} already exists ({quoted(disk.folder)})")
    LOG.info(f"Creating {kind} disk {quoted(name)} with size {format_size(count)}")
    for folder in (names.home(), disk.folder.parent, disk.folder):
        folder.mkdir(mode=0o700, exist_ok=True)
    subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", disk.data, str(count)], check=True)


def list_disks(wanted: list[str], *, as_json: bool) -> None:
    """Print all disks, or some."""
    root = names.home() / "_disks"
    every = sorted(path.name for path in root.iterdir()) if root.is_dir() else []
    for name in wanted:
        if name not in every:
            LOG.warning(f"No disk matching {name} found.")
    found = [Disk(name).listing() for name in (wanted or every) if name in every]
    if as_json:
        lines = [json.dumps(one, separators=(",", ":")) for one in found]
    else:
        if not found:
            LOG.warning("No disk found. Run `limactl disk create DISK --size SIZE` to create a disk.")
        rows = [["NAME", "SIZE", "FORMAT", "DIR", "IN-USE-BY"]]
        rows += [[d["name"], format_size(d["size"]), d["format"], d["dir"], d["instance"]] for d in found]
        lines = table(rows)
    sys.stdout.write("".join(line + "\n" for line in lines))


def delete(wanted: list[str], *, force: bool) -> None:
    """Remove disks that no instance has or names, or any by force.

    Raises:
        LimaError: a running instance has one.
    """
    for name in wanted:
        disk = Disk(name)
        if not disk.data.exists():
            LOG.warning(f"Ignoring non-existent disk {quoted(name)}")
            continue
        if not force:
            if disk.owner is not None:
                raise LimaError(
                    f"cannot delete disk {quoted(name)} in use by instance {quoted(disk.owner.name)}"
                )
            users = _users(name)
            if users:
                references = "[" + " ".join(map(quoted, users)) + "]"
                reason = f"disk is referenced by one or more non-running instances: {references}"
                LOG.warning(f"Skipping deleting disk {quoted(name)}, {reason}")
                LOG.warning(f"To delete anyway, run {quoted(f'limactl disk delete --force {name}')}")
                continue
        shutil.rmtree(disk.folder)
        LOG.info(f"Deleted {quoted(name)} ({quoted(disk.folder)})")


def unlock(wanted: list[str]) -> None:
    """Take disks from instances that died with them."""
    for name in wanted:
        disk = Disk(name)
        if not disk.data.exists():
            LOG.warning(f"Ignoring non-existent disk {quoted(name)}")
        elif disk.owner is None:
            LOG.warning(f"Ignoring unlocked disk {quoted(name)}")
        else:
            disk.unlock()
            LOG.info(f"Unlocked disk {quoted(name)} ({quoted(disk.folder)})")


def _users(name: str) -> list[str]:
    users = []
    for instance in names.instance_names():
        try:
            config = inspect(instance).config
        except NotFoundError:
            continue
        if config and any(disk["name"] == name for disk in config["additionalDisks"]):
            users.append(instance)
    return users
