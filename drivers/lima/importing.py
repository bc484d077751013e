"""A guest image out of somebody else's: an image with cloud-init, or one of Lima's templates, becomes ours.

Lima boots it once, as it is, with a second disk. Its guest installs what ours needs, copies itself to the
second disk, and becomes there, in a changed root, what `claude_vm.drivers.images` builds elsewhere: the same
tree of files, the same `customize`. So all that comes after is the same, and the host needs neither
mmdebstrap nor root.

The instance has a name of its own in our ``LIMA_HOME``, and is gone at the end, however that comes. What a
killed import left, the next one of the same image removes.

Source: Lima's `templates/default.yaml`: ``base``, ``images``, ``additionalDisks`` (v2.2).
"""

import re
import shlex
from collections.abc import Mapping, Sequence
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any, Final

import anyio
import anyio.to_thread

from claude_vm.drivers.api import Progress
from claude_vm.drivers.directories import remove_tree
from claude_vm.drivers.errors import BadImageError, DriverError
from claude_vm.drivers.images.bootstrap import DISK, INITRD, KERNEL, LOCALES, TERMINFO
from claude_vm.drivers.images.lock import hold
from claude_vm.drivers.images.rootfs import ImageSpec
from claude_vm.drivers.lima import arguments, processes
from claude_vm.drivers.lima.document import LimaInstance, settings, written
from claude_vm.drivers.lima.phases import LimaPhase
from claude_vm.drivers.process import run_tool
from claude_vm.drivers.programs import BuildEnvironment, is_proxy, user_environment
from claude_vm.drivers.vm.accelerator import DISK_TOOL, INSTALL_HINT
from claude_vm.drivers.vm.spawn import end

DEFAULT: Final = "template:debian-13"
"""What is imported where no image is named and none can be built."""

_PREFIX: Final = "import."
_KEY_LENGTH: Final = 10
_DISKS: Final = "_disks"
_USER: Final = "importer"
_UID: Final = 59999
_CPUS: Final = 2
_MEMORY_MIB: Final = 2048
_DISK_BYTES: Final = 10 << 30
_START_S: Final = 1800.0
_INSTALL_S: Final = 1800.0
_COMMAND_S: Final = 300.0
_LOCK_S: Final = 0.1
_TEMPLATE: Final = re.compile(r"template:[A-Za-z0-9_][A-Za-z0-9._/-]*")
_ADDRESS: Final = re.compile(r"(https://[^#\s]+)#(sha256:[0-9a-f]{64}|sha512:[0-9a-f]{128})")
_LIMA_ARCHITECTURES: Final = {"amd64": "x86_64", "arm64": "aarch64"}

_CONVERT: Final = """\
set -eu
export DEBIAN_FRONTEND=noninteractive
apt-get -q update
apt-get -q install -y --no-install-recommends $PACKAGES
disk=/dev/vdb
mke2fs -q -F -t ext4 -L root -m 1 -J size=16 -E lazy_itable_init=1,lazy_journal_init=1 $disk
mkdir -p /mnt/target
mount $disk /mnt/target
tar -C / --one-file-system --exclude=./mnt/* --exclude=./tmp/* --exclude=./var/tmp/* \\
    --exclude=./var/lib/cloud --exclude=./var/cache/apt/archives/*.deb --exclude=./var/lib/apt/lists/* \\
    --exclude=./boot/efi/* -cf - . |
    tar -C /mnt/target -xpf -
cd /mnt/target
mkdir -p dev proc sys run tmp mnt boot/efi
# One kernel: the one that has 9p.
rm -rf lib/modules/*cloud* boot/*cloud*
rm -f etc/fstab
for tree in dev proc sys; do mount --bind /$tree $tree; done
tar -C /mnt/target -xpf /tmp/tree.tar
for user in $IMPORTER $GUEST_USER; do
    [ $user = root ] || chroot . userdel -r $user 2>/dev/null || true
done
rm -f etc/sudoers.d/90-cloud-init-users
chroot . apt-get -q purge -y cloud-init netplan.io ifupdown 2>/dev/null || true
export GUEST_USER GUEST_HOME GUEST_UID GUEST_GID
chroot . sh /usr/lib/claude-vm/image/customize
for tree in dev proc sys; do umount $tree; done
mkdir -p /tmp/results
cp boot/claude-vm-* /tmp/results/
chmod 0644 /tmp/results/*
cd /
umount /mnt/target
sync
"""


def check(source: str) -> str:
    """Return an image's name if it is one: a path, an address with its digest, or a template of Lima's.

    Raises:
        DriverError: It is none.
    """
    if _TEMPLATE.fullmatch(source) or _ADDRESS.fullmatch(source):
        return source
    if Path(source).is_absolute():
        if not Path(source).is_file():
            raise DriverError(f"the image {source} does not exist", hint="see [vm] image")
        return source
    raise DriverError(
        f"'{source}' is not an image",
        hint="[vm] image is a path, https://ADDRESS#sha256:DIGEST (64 digits; or sha512), or template:NAME",
    )


def identity(source: str) -> str:
    """Return what tells a source from another one, also from a changed file of the same name."""
    if not Path(source).is_absolute():
        return source
    status = Path(source).stat()
    return f"{source} {status.st_size} {status.st_mtime_ns}"


def document(source: str, spec: ImageSpec, disk: str, *, boot: Mapping[str, Any] | None = None) -> bytes:
    """Return ``lima.yaml`` of the import. `boot` is for an image without a boot loader: kernel, initrd."""
    architecture = _LIMA_ARCHITECTURES[spec.architecture]
    instance = LimaInstance(
        architecture=architecture,
        cpus=_CPUS,
        memory_mib=_MEMORY_MIB,
        disk_bytes=_DISK_BYTES,
        ssh_port=0,
        uid=_UID,
        user=_USER,
        home=f"/home/{_USER}",
    )
    said = settings(instance) | {"additionalDisks": [{"name": disk, "format": False}]}
    found = _ADDRESS.fullmatch(source)
    if _TEMPLATE.fullmatch(source):
        said["base"] = source
    elif found is not None:
        said["images"] = [{"location": found[1], "digest": found[2], "arch": architecture}]
    else:
        said["images"] = [{"location": source, "arch": architecture, **(boot or {})}]
    return written(said)


class Import:
    """One import: an image's source for `claude_vm.drivers.images.debian.ensure_image`.

    `program` is what Lima shall use as QEMU, if it may not choose itself.
    """

    def __init__(
        self,
        source: str,
        limactl: str,
        lima_home: Path,
        build_env: BuildEnvironment,
        *,
        program: Sequence[str] = (),
        boot: Mapping[str, Any] | None = None,
    ) -> None:
        self.identity = identity(check(source))
        self._source = source
        self._limactl = limactl
        self._home = lima_home
        self._surroundings = build_env
        self._program = program
        self._boot = boot

    async def build(self, spec: ImageSpec, archive: bytes, work: Path, progress: Progress) -> None:
        """Make disk, kernel, initrd and lists in the existing, empty folder `work`.

        Raises:
            DriverError: With the last lines of the tool that failed.
        """
        name = self._name(work)
        told = work / "lima.yaml"
        told.write_bytes(document(self._source, spec, name, boot=self._boot))
        progress(LimaPhase.IMPORT, self._source)
        size = f"{spec.disk_gib}GiB"
        await self._run(spec, "disk", "create", name, "--size", size, timeout_s=_COMMAND_S)
        await self._run(spec, "create", "--name", name, str(told), timeout_s=_START_S)
        progress(LimaPhase.IMPORT, "booting it")
        await self._run(spec, "start", name, timeout_s=_START_S)
        progress(LimaPhase.IMPORT, "installing packages and copying")
        await self._convert(spec, name, archive, work)
        await self._run(spec, "stop", name, timeout_s=_COMMAND_S)
        progress(LimaPhase.IMPORT, "storing its disk")
        # Lima 2.2 makes a qcow2 file, also of ``--format raw``. The format is said, never looked for: a guest
        # could write into a raw disk what looks like the header of another format, with a file of the host.
        disk = self._home / _DISKS / name / "datadisk"
        programs = self._surroundings.programs
        convert = ["convert", "-q", "-f", "qcow2", "-O", "raw", str(disk), str(work / DISK)]
        argv = [programs.need(DISK_TOOL, INSTALL_HINT), *convert]
        await run_tool(argv, timeout_s=_COMMAND_S, env=programs.environment())
        told.unlink()

    async def clean(self, work: Path) -> None:
        """End and remove what an import in `work` has, or had when it was killed.

        Raises:
            DriverError: Something could not be removed.
        """
        await _remove(self._home, self._name(work))

    def _name(self, work: Path) -> str:
        """Return Lima's name of an import: the beginning of its image's key, with which `work` begins."""
        return f"{_PREFIX}{work.name.lstrip('.')[:_KEY_LENGTH]}"

    async def _convert(self, spec: ImageSpec, name: str, archive: bytes, work: Path) -> None:
        shell = ("shell", "--workdir", "/", name)
        await self._run(spec, *shell, "tee", "/tmp/tree.tar", data=archive, timeout_s=_COMMAND_S)  # noqa: S108
        packages = " ".join((*spec.packages, f"linux-image-{spec.architecture}"))
        values = {"PACKAGES": packages, "IMPORTER": _USER, **spec.variables}
        script = "".join(f"{key}={shlex.quote(value)}\n" for key, value in values.items()) + _CONVERT
        await self._run(spec, *shell, "sudo", "sh", "-s", data=script.encode(), timeout_s=_INSTALL_S)
        for file in (KERNEL, INITRD, TERMINFO, LOCALES):
            copied = f"{name}:/tmp/results/claude-vm-{file}"
            await self._run(spec, "copy", copied, str(work / file), timeout_s=_COMMAND_S)
            if not (work / file).is_file():
                raise BadImageError(f"the import of {self._source} made no {file}")

    async def _run(self, spec: ImageSpec, *words: str, timeout_s: float, data: bytes | None = None) -> None:
        around = self._surroundings
        architecture = _LIMA_ARCHITECTURES[spec.architecture]
        # The image and its packages come over the network, hence the proxies.
        inherited = user_environment(around.programs) | around.environ
        environ = arguments.environment(inherited, str(self._home), architecture, self._program)
        environ |= {name: value for name, value in around.environ.items() if is_proxy(name)}
        argv = arguments.command(self._limactl, *words)
        await run_tool(argv, timeout_s=timeout_s, env=environ, input=data)


async def sweep(lima_home: Path, cache: Path) -> list[str]:
    """Remove what killed imports have left, and nothing of one that goes on; return their names.

    Raises:
        DriverError: Something could not be removed.
    """
    found = {path.name for folder in (lima_home, lima_home / _DISKS) for path in folder.glob(f"{_PREFIX}*")}
    removed = []
    for name in sorted(found):
        # Whoever makes an image holds its lock.
        locks = list((cache / "images").glob(f".{name.removeprefix(_PREFIX)}*.lock"))
        with anyio.move_on_after(_LOCK_S):
            async with AsyncExitStack() as stack:
                for lock in locks:
                    await stack.enter_async_context(hold(lock))
                with anyio.CancelScope(shield=True):
                    await _remove(lima_home, name)
                removed.append(name)
    return removed


async def _remove(lima_home: Path, name: str) -> None:
    """End an import's instance, and remove it with its disk."""
    folder = lima_home / name
    while found := await anyio.to_thread.run_sync(processes.of_instance, folder):
        for process in found:
            await end(process)
    for rest in (folder, lima_home / _DISKS / name):
        try:
            await anyio.to_thread.run_sync(remove_tree, rest)
        except OSError as error:
            raise DriverError(f"{rest} can't be removed: {error.strerror}") from error
