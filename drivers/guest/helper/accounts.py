"""The guest's users, from its files: the library's module would ask services that may not answer yet."""

from .files import read
from .requests import RequestError


def account(name: str) -> tuple[int, int, str]:
    """Return (uid, gid, home) of a user."""
    for line in read("/etc/passwd").splitlines():
        parts = line.split(":")
        if parts[0] == name and len(parts) == 7:
            return int(parts[2]), int(parts[3]), parts[5]
    raise RequestError(f"no user {name}")


def groups(name: str) -> list[int]:
    """Return the further groups of a user."""
    rows = [line.split(":") for line in read("/etc/group").splitlines()]
    return [int(row[2]) for row in rows if len(row) == 4 and name in row[3].split(",")]
