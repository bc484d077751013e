"""The guest's files, read and written without following what a program of the guest may have put there."""

import os
import stat

from .requests import RequestError

UserAndGroup = tuple[int, int]


def read(path: str) -> str:
    """Return a small text file."""
    with open(path, encoding="utf-8", errors="replace") as file:
        return file.read(1 << 16)


def replace(path: str, data: bytes, mode: int, owner: UserAndGroup = (0, 0)) -> None:
    """Write a file beside the old one, then take its place: no reader sees a half, no link is followed."""
    temporary = os.path.join(os.path.dirname(path), f".claude-vm-{os.getpid()}.new")
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600)
    try:
        with open(descriptor, "wb") as file:
            file.write(data)
            os.fchown(file.fileno(), *owner)
            os.fchmod(file.fileno(), mode)
        os.rename(temporary, path)
    except OSError:
        os.unlink(temporary)
        raise


def append(path: str, data: bytes, mode: int, owner: UserAndGroup) -> None:
    """Add to a regular file that may exist."""
    flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW | os.O_NONBLOCK
    with open(os.open(path, flags, 0o600), "ab") as file:
        if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
            raise RequestError(f"{path}: not a regular file")
        file.write(data)
        os.fchown(file.fileno(), *owner)
        os.fchmod(file.fileno(), mode)


def make_directories(path: str, owner: UserAndGroup) -> None:
    """Make a directory and its missing parents, owned by `owner`."""
    if not os.path.isdir(path):
        make_directories(os.path.dirname(path), owner)
        os.mkdir(path, 0o755)
        os.chown(path, *owner, follow_symlinks=False)
