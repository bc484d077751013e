"""Building a template: the guest image, grown, with Claude Code, certificates and proxies, as a snapshot."""

import os
import re
import shlex
import shutil
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Final

import anyio
import anyio.to_thread
import msgspec

from claude_vm.drivers.api import GuestFile, Mount, Progress, TemplateRecord, TemplateSpec
from claude_vm.drivers.errors import DriverError
from claude_vm.drivers.images.debian import Image, ImageSpec, ensure_image
from claude_vm.drivers.images.rootfs import guest_programs
from claude_vm.drivers.programs import BuildEnvironment
from claude_vm.drivers.templates import building_folder, new_generation_name, publish
from claude_vm.drivers.vm.arguments import VmSize
from claude_vm.drivers.vm.disk import make_overlay
from claude_vm.drivers.vm.hypervisor import Hypervisor, Toolchain
from claude_vm.drivers.vm.machine import HELPER_S, Machine
from claude_vm.drivers.vm.phases import VmPhase
from claude_vm.drivers.vm.snapshots import Preparation
from claude_vm.drivers.vm.store import Stored, VmTemplates, plain, size_bytes, sync_tree

_SETUP: Final = "/run/claude-vm/setup"
_SETUP_FILES: Final = "/run/claude-vm/setup-files"
_TRUST: Final = Path(__file__).parents[1] / "guest" / "trust.py"
_INSTALL_S: Final = 180.0
_CERTIFICATES_S: Final = 300.0
_FILES_AT_ONCE: Final = 4 * 1024 * 1024
_DISK_NEED: Final = 1 << 30
_MEMORY_NEED: Final = 1 << 30
_ARCHITECTURES: Final = {"x86_64": "amd64", "aarch64": "arm64"}


async def build(tools: Toolchain, templates: VmTemplates, spec: TemplateSpec, progress: Progress) -> Stored:
    """Build a generation beside the current one, and make it current at the end.

    Raises:
        DriverError: With the failing tool's last output; then nothing has changed.
    """
    if os.geteuid() != 0:  # QEMU's user owns what the guest writes, and only root can choose that user
        spec = msgspec.structs.replace(spec, uid=os.geteuid(), gid=os.getegid())
    # The folder comes first: it keeps the image from being taken for garbage.
    with building_folder(templates.folder(spec.name)) as building:
        image = await _image(tools, spec, progress)
        _check_space(building, spec, image)
        stored = _stored(tools.hypervisor, spec, image)
        size = VmSize(spec.cpus, spec.memory_mib)
        snapshot = building / "snapshots" / tools.snapshot_key(stored, size)
        snapshot.mkdir(mode=0o700, parents=True)
        await make_overlay(tools.programs, building / "disk.qcow2", image.disk, "raw", spec.disk_gib)
        claude = spec.claude_binary
        slots = () if claude is None else (Mount(str(claude.parent), _SETUP, writable=False),)
        preparation = Preparation(tools, stored, size, building, progress, slots=slots)
        await preparation.take(snapshot, lambda machine: _customise(machine, spec, progress))
        record = msgspec.structs.replace(stored.record, size_bytes=size_bytes(building))
        stored = msgspec.structs.replace(stored, record=record)
        (building / "template.json").write_bytes(plain(stored))
        progress(VmPhase.STORE, "")
        await anyio.to_thread.run_sync(sync_tree, building)
        publish(building, record.generation)
    return stored


def _check_space(folder: Path, spec: TemplateSpec, image: Image) -> None:
    """Refuse a build that would fill the disk.

    A memory file that can't grow kills its VM without a word, so this is said before.

    Raises:
        DriverError: There is too little space, or the template's disk is too small for the guest.
    """
    if spec.disk_gib < image.disk_gib:
        raise DriverError(
            f"a disk of {spec.disk_gib} GiB is too small", hint=f"the guest image needs {image.disk_gib} GiB"
        )
    needed = _DISK_NEED + min(spec.memory_mib << 20, _MEMORY_NEED)
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise DriverError(
            f"the disk has {free / 2**30:.1f} GiB free, and a template needs about {needed / 2**30:.1f} GiB",
            hint=f"make room where {folder.parent} is, or set CLAUDE_VM_HOME to another disk",
        )


async def _image(tools: Toolchain, spec: TemplateSpec, progress: Progress) -> Image:
    hypervisor, host = tools.hypervisor, tools.host
    architecture = _ARCHITECTURES[host.architecture]
    wanted = msgspec.convert({"uid": spec.uid, "gid": spec.gid, "architecture": architecture}, type=ImageSpec)
    build_env = BuildEnvironment(tools.programs, dict(spec.environ))
    source = hypervisor.image_source(host.accelerator, spec.image, build_env)
    return await ensure_image(hypervisor.owner.home / "cache", wanted, progress, source, build_env)


def _stored(hypervisor: Hypervisor, spec: TemplateSpec, image: Image) -> Stored:
    record = TemplateRecord(
        name=spec.name,
        generation=new_generation_name(),
        driver=hypervisor.name,
        project=spec.project,
        created_at=time.time(),
        cpus=spec.cpus,
        memory_mib=spec.memory_mib,
        disk_gib=spec.disk_gib,
        size_bytes=0,
        user=image.user,
        home=image.home,
        claude_version=spec.claude_version,
        image=image.key,
        terminfo=image.terminfo,
        locales=image.locales,
        guest=guest_programs(),
    )
    arguments = f"{image.kernel_arguments} {hypervisor.kernel_arguments}".rstrip()
    return Stored(record, spec.uid, spec.gid, str(image.kernel), str(image.initrd), arguments)


async def _customise(machine: Machine, spec: TemplateSpec, progress: Progress) -> None:
    """Make the image's guest that of the template."""
    await machine.channel.request("resize", timeout_s=HELPER_S, bytes=spec.disk_gib << 30)
    if spec.proxies:
        await machine.channel.put_files(proxy_files(spec.proxies), timeout_s=HELPER_S)
    if spec.ca_certificates:
        progress(VmPhase.CERTIFICATES, str(len(spec.ca_certificates)))
        await _install_certificates(machine, spec.ca_certificates)
    if spec.claude_binary is not None:
        progress(VmPhase.INSTALL_CLAUDE, spec.claude_version or "")
        await machine.mount([Mount(str(spec.claude_binary.parent), _SETUP, writable=False)])
        source, target = f"{_SETUP}/{spec.claude_binary.name}", "/usr/local/bin/claude"
        await machine.run(
            "installing Claude Code", ["install", "-m", "0755", source, target], timeout_s=_INSTALL_S
        )
        await machine.channel.request("unmount", timeout_s=HELPER_S, path=_SETUP)


async def _install_certificates(machine: Machine, certificates: Sequence[str]) -> None:
    """Add certificates to those that the guest trusts."""
    program, bundle = f"{_SETUP_FILES}/trust.py", f"{_SETUP_FILES}/certificates.pem"
    text = "\n".join(certificates).encode("ascii")
    files = [GuestFile(program, _TRUST.read_bytes(), 0o600, "root")]
    for start in range(0, len(text), _FILES_AT_ONCE):
        piece = text[start : start + _FILES_AT_ONCE]
        files.append(GuestFile(bundle, piece, 0o600, "root", append=start > 0))
        await machine.channel.put_files(files, timeout_s=HELPER_S)
        files = []
    argv = ["python3", program, bundle]
    await machine.run("installing certificates", argv, timeout_s=_CERTIFICATES_S)


def proxy_files(proxies: Sequence[tuple[str, str]]) -> list[GuestFile]:
    """Return the files that make a guest use proxies: login shells, and apt.

    Raises:
        DriverError: A name is no environment variable's.
    """
    exports, apt = [], []
    for name, value in proxies:
        if not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", name):
            raise DriverError(f"'{name}' is not the name of an environment variable")
        exports.append(f"export {name}={shlex.quote(value)}\n")
        scheme = name.lower().removesuffix("_proxy")
        if scheme in {"http", "https"} and re.fullmatch(r"[!#-~]+", value):
            apt.append(f'Acquire::{scheme}::Proxy "{value}";\n')
    return [
        GuestFile("/etc/profile.d/claude-vm-proxies.sh", "".join(exports).encode(), 0o644, "root"),
        GuestFile("/etc/apt/apt.conf.d/90claude-vm-proxies", "".join(apt).encode(), 0o644, "root"),
    ]
