"""Lima's folder, one of our own: a user's instances, defaults and overrides are neither read nor touched.

``<home>/lima`` is the ``LIMA_HOME`` of a data folder, with one folder for each instance of all supervisors:
``<supervisor id>.<instance id>``, and ``build.<hex>`` while a template is built. Lima puts sockets into them,
and writes their paths into QEMU's options as they are. So a data folder whose path is too long, or has a
character that would mean something there, has its instances in a folder of ``/var/tmp`` instead. Anybody may
have made one of that name before us, with records that name processes to be ended. So nothing is read from a
folder, or made in it, that is not ours; once it is, nobody can put another in its place.

Source: Lima's `pkg/limatype/dirnames` and `filenames` (v2.2): names, longest socket, reserved names.
"""

import os
import re
import stat
import sys
from hashlib import sha256
from pathlib import Path
from typing import Final

from claude_vm.drivers import files
from claude_vm.drivers.api import Owner
from claude_vm.drivers.errors import DriverError, words_of
from claude_vm.drivers.locks import locked
from claude_vm.drivers.vm.identity import new_key

ELSEWHERE: Final = Path("/var/tmp")  # noqa: S108 - a folder of ours is made in it, and checked
CONFIG: Final = "_config"
KEY: Final = "user"
BUILD: Final = "build"

_LONGEST_SOCKET: Final = "ssh.sock.1234567890123456"
_LONGEST_NAME: Final = 24 + 1 + 12
_PATH_MAX: Final = 104 if sys.platform == "darwin" else 108
_HARMLESS: Final = re.compile(r"[A-Za-z0-9/._+@-]+")


def lima_home(home: Path) -> Path:
    """Return the ``LIMA_HOME`` of a data folder, without links, as Lima itself sees it. It need not exist."""
    usual = os.path.realpath(home / "lima")
    longest = len(os.fsencode(usual)) + 1 + _LONGEST_NAME + 1 + len(_LONGEST_SOCKET)
    if longest < _PATH_MAX and _HARMLESS.fullmatch(usual):
        return Path(usual)
    digest = sha256(os.fsencode(os.path.realpath(home))).hexdigest()[:8]
    return ELSEWHERE / f"claude-vm-{os.getuid()}-{digest}"


def is_ours(folder: Path) -> bool:
    """Tell whether this is a real folder of ours, which nobody else may write to. It may be missing."""
    try:
        found = folder.lstat()
    except OSError:
        return False
    return stat.S_ISDIR(found.st_mode) and found.st_uid == os.getuid() and not found.st_mode & 0o022


def checked(home: Path) -> Path:
    """Return the ``LIMA_HOME`` of a data folder, as `lima_home` does. It need not exist.

    Raises:
        DriverError: It exists, and others have made it or may write to it.
    """
    folder = lima_home(home)
    if os.path.lexists(folder) and not is_ours(folder):
        elsewhere = "set CLAUDE_VM_HOME to a folder with a short path, without special characters"
        found = folder.lstat()
        way_out = ""
        if found.st_uid == os.getuid():  # nobody can move what is another's in a folder such as /var/tmp
            close = f"close it with: chmod go-w {folder}"  # it may have VMs that run
            way_out = f"{close if stat.S_ISDIR(found.st_mode) else 'move it away'}, or "
        raise DriverError(
            f"{folder} is not our folder, or others may write to it", hint=f"{way_out}{elsewhere}"
        )
    return folder


def make(home: Path) -> Path:
    """Make the ``LIMA_HOME`` of a data folder, with the key that Lima logs in with, and return it.

    Lima would make the key itself, by a program, at its first start of all: several at once would race.

    Raises:
        DriverError: It can't be made, or belongs to somebody else.
    """
    folder = lima_home(home)
    config = folder / CONFIG
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        checked(home)
        config.mkdir(mode=0o700, exist_ok=True)
        if not _has_key(config):
            _make_key(config)
    except OSError as error:
        raise DriverError(f"Lima's folder {folder} can't be made: {error.strerror}") from error
    return folder


def _has_key(config: Path) -> bool:
    return all((config / name).exists() for name in (KEY, f"{KEY}.pub"))


def _make_key(config: Path) -> None:
    """Make the key whole or not at all; of several makers the first one wins. The public half comes first.

    What is left of another pair goes before, so that there are never two halves that don't belong together.
    """
    with locked(config / f".{KEY}.lock"):
        if _has_key(config):
            return
        (config / KEY).unlink(missing_ok=True)
        key = new_key()
        for name, text in ((f"{KEY}.pub", f"{key.public} lima\n"), (KEY, key.private)):
            files.replace(config / name, text.encode())


def public_key(home: Path) -> str:
    """Return the public key of the one that Lima logs in with.

    Raises:
        DriverError: There is none, or it is not ours.
    """
    path = checked(home) / CONFIG / f"{KEY}.pub"
    try:
        return path.read_text(encoding="ascii").strip()
    except (OSError, ValueError) as error:
        raise DriverError(f"Lima's key {path} can't be read: {words_of(error)}") from error


def instance_name(supervisor_id: str, instance_id: str) -> str:
    """Return Lima's name of an instance."""
    return f"{supervisor_id}.{instance_id}"


def folder_of(owner: Owner, folder: Path) -> Path:
    """Return Lima's folder for a VM that is run for `folder`: itself, or one for a template's build.

    Raises:
        DriverError: Others could write to what it lies in.
    """
    root = checked(owner.home)
    if folder.parent == root:
        return folder
    return root / f"{BUILD}.{folder.name.rpartition('-')[2]}"
