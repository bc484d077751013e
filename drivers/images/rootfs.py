"""What goes into the guest beside Debian's packages, and the name of the result.

The files lie in ``rootfs/`` beside this module, with the paths that they have in the guest; a few come from
``drivers/guest``. All of them, and all else that decides what an image is, make its key.
"""

import hashlib
import io
import tarfile
from functools import cache
from pathlib import Path
from typing import Final, Literal

import msgspec

Architecture = Literal["amd64", "arm64"]

PACKAGES: Final = (
    "busybox-static",
    "ca-certificates",
    "curl",
    "dbus",
    "e2fsprogs",
    "git",
    "iproute2",
    "iputils-ping",
    "jq",
    "kmod",
    "less",
    "nano",
    "ncurses-base",
    "ncurses-bin",
    "openssh-server",
    "procps",
    "python3",
    "ripgrep",
    "rsync",
    "sudo",
    "systemd",
    "systemd-sysv",
    "udev",
    "vim-tiny",
    "wget",
)

_FORMAT: Final = 1
"""Raised when an image is built in another way that neither the specification nor a file shows."""

_ROOTFS: Final = Path(__file__).parent / "rootfs"
_GUEST: Final = Path(__file__).parent.parent / "guest"
_INITRD: Final = Path(__file__).parent / "initrd.py"
_FROM_GUEST: Final = (
    ("__main__.py", "usr/lib/claude-vm/__main__.py", 0o644),
    *(
        (f"{program}/{path.name}", f"usr/lib/claude-vm/{program}/{path.name}", 0o644)
        for program in ("helper", "holder")
        for path in sorted((_GUEST / program).glob("*.py"))
    ),
    ("session", "usr/lib/claude-vm/session", 0o755),
    ("sshd_config", "etc/ssh/sshd_config", 0o644),
    ("claude-vm-helper.service", "etc/systemd/system/claude-vm-helper.service", 0o644),
)
_PROGRAMS: Final = frozenset({"customize", "init", "session"})
_IGNORED: Final = frozenset({"__pycache__"})


class ImageSpec(msgspec.Struct, frozen=True):
    """What an image is made from. `uid` and `gid` are those of its user, the owner of what it mounts.

    With uid 0 the user is root itself. `disk_gib` is the size of the disk, which takes only what is used;
    a clone may grow it. `packages` are Debian's names, without the kernel.
    """

    uid: int
    gid: int
    suite: str = "trixie"
    architecture: Architecture = "amd64"
    packages: tuple[str, ...] = PACKAGES
    disk_gib: int = 6

    @property
    def user(self) -> str:
        """The name of the guest's user."""
        return "root" if self.uid == 0 else "claude"

    @property
    def home(self) -> str:
        """The home directory of the guest's user."""
        return "/root" if self.uid == 0 else "/home/claude"

    @property
    def variables(self) -> dict[str, str]:
        """What ``customize`` is told of the guest's user."""
        return {
            "GUEST_USER": self.user,
            "GUEST_HOME": self.home,
            "GUEST_UID": str(self.uid),
            "GUEST_GID": str(self.gid),
        }


class TreeFile(msgspec.Struct, frozen=True):
    """One file of the guest: its path without the leading slash."""

    path: str
    mode: int
    data: bytes


def guest_tree(rootfs: Path = _ROOTFS, guest: Path = _GUEST) -> tuple[TreeFile, ...]:
    """Return our files for the guest, by path. Those of `guest` that don't exist are left out."""
    files = [
        TreeFile(str(path.relative_to(rootfs)), 0o755 if path.name in _PROGRAMS else 0o644, path.read_bytes())
        for path in rootfs.rglob("*")
        if path.is_file() and not _IGNORED.intersection(path.parts)
    ]
    files.append(TreeFile("usr/lib/claude-vm/image/initrd.py", 0o755, _INITRD.read_bytes()))
    files += [
        TreeFile(target, mode, (guest / name).read_bytes())
        for name, target, mode in _FROM_GUEST
        if (guest / name).is_file()
    ]
    return tuple(sorted(files, key=lambda file: file.path))


@cache
def guest_programs() -> str:
    """Return a name of our programs that guests have now, which changes with any of them: 20 hex digits."""
    data = [(target, (_GUEST / name).read_bytes()) for name, target, _ in _FROM_GUEST]
    return hashlib.sha256(msgspec.json.encode(data)).hexdigest()[:20]


def image_key(spec: ImageSpec, tree: tuple[TreeFile, ...], source: str = "") -> str:
    """Return the name of the image that these inputs make: 20 hex digits. `source` names another image."""
    inputs = (_FORMAT, spec, tree, *([source] if source else []))
    return hashlib.sha256(msgspec.json.encode(inputs)).hexdigest()[:20]


def tree_archive(tree: tuple[TreeFile, ...]) -> bytes:
    """Return the files as a tar archive, owned by root; the same files give the same bytes.

    Their directories are members as well, so that nothing depends on the umask of whoever unpacks it.
    """
    directories = sorted({str(parent) for file in tree for parent in Path(file.path).parents} - {"."})
    archive = io.BytesIO()
    with tarfile.open(fileobj=archive, mode="w", format=tarfile.PAX_FORMAT) as tar:
        for name in directories:
            member = tarfile.TarInfo(name)
            member.type, member.mode = tarfile.DIRTYPE, 0o755
            tar.addfile(member)
        for file in tree:
            member = tarfile.TarInfo(file.path)
            member.mode, member.size = file.mode, len(file.data)
            tar.addfile(member, io.BytesIO(file.data))
    return archive.getvalue()
