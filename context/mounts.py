"""Which host directories a session's guest gets, and where."""

import posixpath
import pwd
import stat
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path

from claude_vm.context.errors import MountError
from claude_vm.context.mount_specs import FORMS, MountSpec, parse_spec
from claude_vm.context.opening import opened
from claude_vm.context.overlaps import read_mount_table, writable_ways
from claude_vm.context.project import Project, project_folders
from claude_vm.drivers.api import Mount
from claude_vm.drivers.programs import Guard, nobody_writes

SYSTEM_TREES = (
    *("/bin", "/boot", "/dev", "/etc", "/lib", "/lib32", "/lib64", "/libx32", "/proc", "/run", "/sbin"),
    *("/sys", "/usr"),
)
"""Directories of the guest that it needs, with all beneath them."""

SYSTEM_FOLDERS = (
    *("/", "/home", "/media", "/mnt", "/opt", "/srv", "/tmp", "/var", "/var/cache", "/var/lib"),  # noqa: S108 - the guest's
    *("/var/log", "/var/run", "/var/spool", "/var/tmp"),  # noqa: S108 - likewise
)
"""Directories of the guest that must keep their own content; what lies beneath them may be a mount."""

OPEN_FOLDERS = ("/dev/shm", "/run/media", "/usr/local", "/usr/local/src", "/usr/src")  # noqa: S108 - the guest's
"""Directories in system trees where projects may lie; beneath them, not themselves."""

MOST_SPECS = 100
"""Mounts that are looked at; far more than any driver has."""


def plan_mounts(
    project: Project,
    specs: Sequence[str | MountSpec] = (),
    *,
    guest_home: str,
    home: Path,
    max_mounts: int,
    guard: Guard = nobody_writes,
) -> tuple[Mount, ...]:
    """Return the mounts of a session, parents before what lies in them.

    The project's are its folders (`project_folders`), each writable, at the same path as on the host. `home`
    is the user's own. Each mount has the identity of the directory that was found now.

    Raises:
        MountError: With every problem: a path that is not absolute, does not exist or is no directory, two
            mounts on one guest path, a guest path on a system directory, more than `max_mounts`, a read-only
            directory that the guest could write through another mount. With one if there are more than
            `MOST_SPECS`.
        LinkError: A path leads out of where guests can write, see `claude_vm.context.opening`.
    """
    if len(specs) > MOST_SPECS:
        raise MountError(f"{len(specs)} mounts are too many: at most {MOST_SPECS} are allowed")
    problems: list[str] = []
    wanted = list(_project_mounts(project, guard, problems))
    for spec in specs:
        try:
            parsed = parse_spec(spec) if isinstance(spec, str) else spec
            wanted.append((_located(parsed, guest_home, home, guard), parsed.source))
        except MountError as error:
            problems.append(error.message)
    chosen = _chosen(wanted, guest_home, problems)
    problems.extend(_writable_all_the_same(chosen))
    if len(chosen) > max_mounts:
        problems.append(f"{len(chosen)} directories would be mounted, and this driver can mount {max_mounts}")
    if problems:
        raise MountError.of(problems, "the mounts", hint=f"write a mount as {FORMS}")
    return tuple(sorted(chosen, key=_depth))


def _project_mounts(project: Project, guard: Guard, problems: list[str]) -> Iterator[tuple[Mount, str]]:
    for folder in project_folders(project):
        try:
            mount = _found(folder, str(folder), writable=True, source="the project", guard=guard)
        except MountError as error:
            problems.append(error.message)
            continue
        if mount.host != str(folder):
            problems.append(f"the project: '{folder}' was replaced by a link to '{mount.host}'")
        yield mount, "the project"


def _chosen(wanted: Iterable[tuple[Mount, str]], guest_home: str, problems: list[str]) -> dict[Mount, str]:
    """Return one mount for each guest path, with who asked for it."""
    chosen: dict[str, tuple[Mount, str]] = {}
    for mount, source in wanted:
        refusal = _refusal(mount.guest, guest_home)
        if refusal:
            problems.append(f"{source}: '{mount.guest}' {refusal}")
            continue
        other, first = chosen.setdefault(mount.guest, (mount, source))
        if other.host != mount.host:
            problems.append(
                f"{source}: '{mount.guest}' in the guest would be both '{other.host}' ({first})"
                f" and '{mount.host}'"
            )
        elif other.writable != mount.writable:
            problems.append(f"{source}: '{mount.guest}' would be both read-only and writable ({first})")
    return dict(chosen.values())


def _writable_all_the_same(chosen: Mapping[Mount, str]) -> Iterator[str]:
    """Say which mounts can't be kept read-only, and what helps."""
    if all(mount.writable for mount in chosen):
        return  # as mostly, and the table of the host's mounts may be long
    for mount, way in writable_ways(tuple(chosen), read_mount_table()):
        yield (
            f"{chosen[mount]}: '{mount.host}' can't be read-only: the guest could write it through"
            f" '{way.host}' ({chosen[way]}); leave :ro out, or keep the directory elsewhere"
        )


def _located(spec: MountSpec, guest_home: str, home: Path, guard: Guard) -> Mount:
    """Return the mount with absolute paths, the host's without symlinks.

    Raises:
        MountError: There is no such directory, or no such user.
        LinkError: It leads out of where guests can write.
    """
    host = _expanded(spec, home)
    guest = spec.guest or host
    if guest == "~" or guest.startswith("~/"):
        guest = guest_home + guest[1:]
    for path, side in ((host, "host"), (guest, "guest")):
        if not path.startswith("/"):
            raise MountError(f"{spec.source}: the {side} path '{path}' is not absolute")
    return _found(Path(host), _normalized(guest), writable=spec.writable, source=spec.source, guard=guard)


def _found(path: Path, guest: str, *, writable: bool, source: str, guard: Guard) -> Mount:
    try:
        with opened(path, guard) as found:
            real, status = found.path, found.status
    except (OSError, ValueError) as error:
        raise MountError(f"{source}: '{path}' does not exist on the host") from error
    if not stat.S_ISDIR(status.st_mode):
        raise MountError(f"{source}: '{path}' is not a directory; only directories can be mounted")
    return Mount(str(real), guest, writable, status.st_dev, status.st_ino)


def _expanded(spec: MountSpec, home: Path) -> str:
    first, slash, rest = spec.host.partition("/")
    if not first.startswith("~"):
        return spec.host
    if first == "~":
        return f"{home}{slash}{rest}"
    try:
        folder = pwd.getpwnam(first[1:]).pw_dir
    except (KeyError, ValueError) as error:
        raise MountError(f"{spec.source}: '{spec.host}': there is no user '{first[1:]}'") from error
    return f"{folder}{slash}{rest}"


def _normalized(guest: str) -> str:
    # POSIX leaves a leading // to the system; here it is /.
    return "/" + posixpath.normpath(guest).lstrip("/")


def _refusal(guest: str, guest_home: str) -> str:
    """Return why nothing may be mounted on a guest path; "" when it may."""
    if guest in SYSTEM_FOLDERS:
        return "is a system directory of the guest"
    open_above = any(_beneath(guest, folder) and guest not in OPEN_FOLDERS for folder in OPEN_FOLDERS)
    if not open_above and any(guest == tree or _beneath(guest, tree) for tree in SYSTEM_TREES):
        return "is in a system directory of the guest"
    if guest == guest_home or _beneath(guest_home, guest):
        return "is the guest user's home directory, or contains it"
    if guest == f"{guest_home}/.ssh" or _beneath(guest, f"{guest_home}/.ssh"):
        return "is where the guest keeps its SSH keys"
    return ""


def _beneath(path: str, folder: str) -> bool:
    return path.startswith(folder.rstrip("/") + "/")


def _depth(mount: Mount) -> tuple[int, str]:
    return mount.guest.count("/"), mount.guest
