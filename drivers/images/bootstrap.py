"""Make a Debian system's disk, kernel and initrd with mmdebstrap: no loop devices, root only where needed.

A normal user's build runs in a user namespace, in which a range of the user's subordinate ids is root and the
rest of the guest's users. Four things follow from it:

* The namespace can't look into the user's own 0700 folders. So the new system is put together in a scratch
  folder that it can reach (``/var/tmp``), and only the disk file is passed in, as an open descriptor.
* What a killed build leaves in the scratch folder belongs to the subordinate ids; the namespace removes it.
* ``mke2fs -d`` has to run inside, where the ids are the guest's. It must not see what is mounted below the
  new system (``/proc``, ``/sys``), so it looks through a bind mount, which leaves those out.
* Only as many ids exist as the range has. A larger one is set at the guest's first boot, by `init`.

Root builds the same way without that namespace, with one for its mounts alone; in a container where it may
not mount, without mounts.
No hook contains data: paths are relative to the work folder, the rest comes through the environment.
"""

import os
import secrets
import shlex
import shutil
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Final

import anyio

from claude_vm.drivers.api import Progress
from claude_vm.drivers.errors import DriverError, ToolMissingError
from claude_vm.drivers.images.phases import ImagePhase
from claude_vm.drivers.images.rootfs import ImageSpec
from claude_vm.drivers.process import find_marked, kill_group, run_tool
from claude_vm.drivers.programs import BuildEnvironment, Programs, is_proxy, own, user_environment

DISK: Final = "disk.raw"
KERNEL: Final = "kernel"
INITRD: Final = "initrd"
TERMINFO: Final = "terminfo"
LOCALES: Final = "locales"

_ARCHIVE: Final = "files.tar"
_SCRATCH: Final = "scratch"
_TIMEOUT_S: Final = 1800.0
_CLEAN_TIMEOUT_S: Final = 60.0
_PROBE_TIMEOUT_S: Final = 30.0
_CLEAN_TRIES: Final = 5
_FIRST_SUBORDINATE: Final = 100_000
_SUBORDINATES: Final = 65_536
_GIB: Final = 1 << 30
_SCRATCH_BYTES: Final = 2 * _GIB
_CACHE_BYTES: Final = 1 * _GIB
_INSTALL_HINT: Final = "sudo apt-get install mmdebstrap uidmap e2fsprogs debian-archive-keyring"

_MAKE_DISK: Final = """\
set -eu
rm -rf "$1"/var/lib/apt/lists/* "$1"/var/cache/apt/*.bin "$1"/var/cache/apt/archives/*.deb "$1"/tmp/*
rm -f "$1"/etc/apt/apt.conf.d/*mmdebstrap "$1"/etc/dpkg/dpkg.cfg.d/99mmdebstrap
view=$1
if mount --bind "$1" "$1/mnt" 2>/dev/null; then view=$1/mnt; fi
mke2fs -q -F -t ext4 -L root -m 1 -J size=16 -E lazy_itable_init=1,lazy_journal_init=1,nodiscard \
    -d "$view" "/dev/fd/$DISK_FD"
if [ "$view" != "$1" ]; then umount "$view"; fi
"""

# As root mmdebstrap mounts in the host's own namespace; a killed build would leave that behind.
_OWN_MOUNTS: Final = ("--mount", "--propagation", "private", "--")

_HOOKS: Final = (
    f"tar-in {_ARCHIVE} /",
    'chroot "$1" sh /usr/lib/claude-vm/image/customize',
    *(f"download /boot/claude-vm-{name} {name}" for name in (KERNEL, INITRD, TERMINFO, LOCALES)),
    _MAKE_DISK,
)

_DPKG_OPTIONS: Final = (
    "path-exclude=/usr/share/doc/*",
    "path-include=/usr/share/doc/*/copyright",
    "path-exclude=/usr/share/man/*",
    "path-exclude=/usr/share/locale/*",
    # The initrd is ours; the usual one would be made twice, for half a minute.
    "path-exclude=/etc/kernel/postinst.d/initramfs-tools",
)


def command(
    spec: ImageSpec, scratch: Path, program: str = "mmdebstrap", *, root: bool, unshare: str = ""
) -> list[str]:
    """Return the argument list of mmdebstrap. It bears the scratch folder's name, as a mark to find it by.

    Started by `unshare`, what it mounts is seen by nobody else, and is gone when it is.
    """
    packages = (*spec.packages, f"linux-image-{spec.architecture}")
    return [
        *((unshare, *_OWN_MOUNTS) if unshare else ()),
        program,
        f"--mode={'root' if root else 'unshare'}",
        "--variant=minbase",
        "--format=null",
        # It would clean up after the last hook, which is too late: by then the disk has been made.
        "--skip=cleanup",
        f"--architectures={spec.architecture}",
        f"--include={','.join(packages)}",
        '--aptopt=Acquire::Languages "none"',
        *(f"--dpkgopt={option}" for option in _DPKG_OPTIONS),
        *(f"--customize-hook={hook}" for hook in _HOOKS),
        spec.suite,
        # With the null format nothing is written there.
        str(scratch / "nothing"),
    ]


async def bootstrap(
    spec: ImageSpec, archive: bytes, work: Path, progress: Progress, *, build_env: BuildEnvironment
) -> None:
    """Make `DISK`, `KERNEL`, `INITRD`, `TERMINFO` and `LOCALES` in the existing, empty folder `work`.

    Whether it succeeds or not, `clean` has to be called for the folder afterwards.

    Raises:
        ToolMissingError: mmdebstrap, uidmap or e2fsprogs is not installed.
        DriverError: The build failed or there is no room for it.
    """
    environ = build_variables(build_env)
    root = os.geteuid() == 0
    programs = build_env.programs
    mmdebstrap = _need_tools(programs, root=root)
    unshare = (programs.find("unshare") or "") if root else ""
    own_mounts = unshare if unshare and await _may_mount(unshare, environ) else ""
    temporary = scratch_root(build_env)
    scratch, disk = await anyio.to_thread.run_sync(_prepare, spec, archive, work, temporary)
    environ |= {"TMPDIR": str(scratch), "DISK_FD": str(disk), **spec.variables}
    try:
        await run_tool(
            command(spec, scratch, mmdebstrap, root=root, unshare=own_mounts),
            timeout_s=_TIMEOUT_S,
            env=environ,
            cwd=work,
            on_line=lambda line: _tell(line, progress),
            pass_fds=(disk,),
            missing_hint=_INSTALL_HINT,
        )
    except DriverError as error:
        error.hint = error.hint or hint_for(error.detail)
        raise
    finally:
        os.close(disk)


async def clean(work: Path, programs: Programs) -> None:
    """Remove the scratch folder of a build in `work` and end what still runs there, after any interruption.

    Raises:
        DriverError: Something could not be removed.
    """
    scratch = await anyio.to_thread.run_sync(_scratch_of, work)
    if scratch is None:
        return
    for pid, _ in find_marked(str(scratch)):
        kill_group(pid)
    for _ in range(_CLEAN_TRIES):
        # What was killed a moment ago may still be writing its last file.
        if await _remove(scratch, programs):
            break
    else:
        raise DriverError(f"{scratch} can't be removed", hint=_removal(scratch))
    await anyio.Path(work, _SCRATCH).unlink()


def _removal(scratch: Path) -> str:
    """Return how a scratch folder is removed by hand: without what may still be mounted in it."""
    return f"sudo rm -rf --one-file-system {shlex.quote(str(scratch))}"


async def _may_mount(unshare: str, environ: Mapping[str, str]) -> bool:
    """Tell whether we can have mounts of our own: not in most containers, even as root."""
    argv = [unshare, *_OWN_MOUNTS, "true"]
    done = await run_tool(argv, timeout_s=_PROBE_TIMEOUT_S, env=environ, check=False)
    return done.returncode == 0


def _scratch_of(work: Path) -> Path | None:
    """Return the scratch folder that belongs to a work folder, if there is one."""
    try:
        return Path(os.fsdecode((work / _SCRATCH).read_bytes()))
    except FileNotFoundError:
        return None


def build_variables(build_env: BuildEnvironment) -> dict[str, str]:
    """Return the environment for a build: the proxies, and the system's folders on the path."""
    kept = {name: value for name, value in build_env.environ.items() if is_proxy(name)}
    path = f"{build_env.programs.path}:/usr/bin:/bin"
    return kept | {"PATH": path, "HOME": "/nonexistent", "LC_ALL": "C.UTF-8"}


def hint_for(detail: str) -> str:
    """Return what the user can do about a failed build, from what mmdebstrap said."""
    user = user_environment(own())["USER"]
    for signs, hint in (
        (("NO_PUBKEY", "is not signed", "signed-by"), "sudo apt-get install debian-archive-keyring"),
        (("newuidmap", "newgidmap"), "sudo apt-get install uidmap"),
        (
            ("/etc/subuid", "/etc/subgid"),
            f"sudo usermod --add-subuids {_free_ids('uid')} --add-subgids {_free_ids('gid')} {user}",
        ),
        (("unshare", "userns", "user namespace"), "allow user namespaces (sysctl), or run the build as root"),
        (("No space left",), "make room on the disk, then repeat the command"),
        (
            ("Could not resolve", "Temporary failure resolving", "Failed to fetch"),
            "check the network and the proxy",
        ),
    ):
        if any(sign in detail for sign in signs):
            return hint
    return ""


def _free_ids(kind: str, folder: Path = Path("/etc")) -> str:
    """Return a range of subordinate ids that nobody has: with another's one could write to their files."""
    first = _FIRST_SUBORDINATE
    with suppress(OSError, UnicodeError):
        for line in (folder / f"sub{kind}").read_text().splitlines():
            _, start, count = [*line.split(":"), "", ""][:3]
            if start.isdigit() and count.isdigit():
                first = max(first, int(start) + int(count))
    return f"{first}-{first + _SUBORDINATES - 1}"


def scratch_root(build_env: BuildEnvironment) -> Path:
    """Return the folder for temporary files that other users, such as a namespace's, can reach too.

    A guest reaches none of it: the image that is made there is everybody's, and what is left is removed.

    Raises:
        DriverError: There is none.
    """
    guests: list[str] = []
    for candidate in (build_env.environ.get("TMPDIR"), "/var/tmp", "/tmp"):  # noqa: S108 - a folder of ours is made in it
        if not candidate or not _reachable(Path(candidate)):
            continue
        if not build_env.programs.guest_at(candidate):
            return Path(candidate)
        guests.append(candidate)
    why = f": guests can write to {' and '.join(guests)}" if guests else ""
    raise DriverError(
        f"no folder for temporary files{why}",
        hint="make /var/tmp writable for everybody (mode 1777), or set TMPDIR to a folder of no mount",
    )


def _reachable(folder: Path) -> bool:
    """Tell whether we can write in a folder, and strangers can get through it."""
    try:
        resolved = folder.resolve(strict=True)
        passable = all(part.stat().st_mode & 0o001 for part in (resolved, *resolved.parents))
    except OSError:
        return False
    return passable and os.access(resolved, os.W_OK | os.X_OK)


def _need_tools(programs: Programs, *, root: bool) -> str:
    """Say what is missing before anything is downloaded; return where mmdebstrap is."""
    tools = ("mmdebstrap", "mke2fs") if root else ("mmdebstrap", "mke2fs", "newuidmap", "newgidmap")
    found = {tool: programs.find(tool) for tool in tools}
    missing = [tool for tool, path in found.items() if path is None]
    if missing:
        raise ToolMissingError(programs.absence(*missing), hint=_INSTALL_HINT)
    return str(found["mmdebstrap"])


def _prepare(spec: ImageSpec, archive: bytes, work: Path, root: Path) -> tuple[Path, int]:
    """Put the inputs into the work folder; return a new scratch folder in `root` and the open, empty disk."""
    for folder, needed in ((root, _SCRATCH_BYTES), (work, _CACHE_BYTES)):
        free = shutil.disk_usage(folder).free
        if free < needed:
            raise DriverError(
                f"the guest image needs {needed / _GIB:.0f} GiB in {folder} to be built, "
                f"and {free / _GIB:.1f} are free",
                hint="make room on the disk, then repeat the command",
            )
    # Noted before it is made, so that whoever is killed in between leaves nothing unknown.
    scratch = root / f"claude-vm-image-{secrets.token_hex(8)}"
    (work / _SCRATCH).write_bytes(bytes(scratch))
    scratch.mkdir(mode=0o700)
    scratch.chmod(0o711)
    (work / _ARCHIVE).write_bytes(archive)
    disk = os.open(work / DISK, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    os.ftruncate(disk, spec.disk_gib * _GIB)
    # The namespace opens it through a descriptor and is a stranger to it; the folder around it is 0700.
    os.fchmod(disk, 0o666)
    return scratch, disk


async def _remove(scratch: Path, programs: Programs) -> bool:
    """Try once to remove a scratch folder, in the namespace then as ourselves; tell whether it is gone."""
    environ = build_variables(BuildEnvironment(programs, {}))
    remover = programs.find("find") or "/usr/bin/find"
    folders = [str(scratch / name) for name in await anyio.to_thread.run_sync(_entries, scratch)]
    # One file system only, always: a mount that is still there must stay whole.
    if folders and os.geteuid() != 0:
        # Each by its name, as the namespace may not list the scratch folder itself.
        find = ["find", *folders, "-xdev", "-mindepth", "1", "-delete"]
        argv = [programs.need("mmdebstrap", _INSTALL_HINT), "--unshare-helper", *find]
        await run_tool(argv, timeout_s=_CLEAN_TIMEOUT_S, env=environ, check=False)
    argv = [remover, str(scratch), "-xdev", "-delete"]
    await run_tool(argv, timeout_s=_CLEAN_TIMEOUT_S, env=environ, check=False)
    return not await anyio.Path(scratch).exists()


def _entries(folder: Path) -> list[str]:
    """Return the names in a folder; none if it isn't there."""
    try:
        return os.listdir(folder)  # noqa: PTH208 - names are enough
    except FileNotFoundError:
        return []


def _tell(line: str, progress: Progress) -> None:
    """Pass on what mmdebstrap is at."""
    if line.startswith("I: "):
        progress(ImagePhase.IMAGE, line.removeprefix("I: "))
