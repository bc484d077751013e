"""An ordinary image with cloud-init becomes a template, by real boots. For ``make test-lima-import``."""

import os
import shutil
from pathlib import Path

import pytest

from claude_vm.drivers.api import InstanceSpec, TemplateSpec
from claude_vm.drivers.images.bootstrap import DISK, INITRD, KERNEL, bootstrap, clean
from claude_vm.drivers.images.rootfs import ImageSpec, TreeFile, guest_tree, tree_archive
from claude_vm.drivers.lima import arguments, hypervisor
from claude_vm.drivers.lima.driver import open_driver
from claude_vm.drivers.lima.home import lima_home
from claude_vm.drivers.lima.importing import Import
from claude_vm.drivers.process import find_marked, run_tool
from claude_vm.drivers.programs import BuildEnvironment
from claude_vm.supervisor.ssh.link import connect

pytestmark = [
    pytest.mark.anyio,
    pytest.mark.vm,
    pytest.mark.timeout(1800),
    pytest.mark.skipif(
        shutil.which("limactl") is None or os.geteuid() == 0,
        reason="limactl is not installed on this host, or refuses to run as root",
    ),
]

ARCHITECTURE = {"x86_64": "amd64", "aarch64": "arm64"}[os.uname().machine]
PACKAGES = (
    "ca-certificates", "cloud-init", "dbus", "e2fsprogs", "iproute2", "kmod", "openssh-server",
    "procps", "python3", "sudo", "systemd", "systemd-sysv", "udev", "busybox-static", "locales",
)  # fmt: skip

# What makes an image ordinary: Debian's own services, cloud-init for Lima to wait for, and none of ours.
# The kernel and the initial RAM disk, which sets the network, are given to QEMU: there is no boot loader.
ORDINARY = """
set -eu
systemctl enable ssh.service
printf 'datasource_list: [NoCloud]\\n' >/etc/cloud/cloud.cfg.d/90-datasource.cfg
printf 'network: {config: disabled}\\n' >/etc/cloud/cloud.cfg.d/91-network.cfg
rm -f /etc/resolv.conf
printf 'nameserver 10.0.2.3\\n' >/etc/resolv.conf
python3 /usr/lib/claude-vm/image/initrd.py /boot/claude-vm-initrd
cp -L /boot/vmlinuz-* /boot/claude-vm-kernel
touch /boot/claude-vm-terminfo /boot/claude-vm-locales
rm -r /usr/lib/claude-vm
useradd --create-home --uid 4711 somebody
"""


@pytest.fixture
async def ordinary(tmp_path):
    """An image as others have it: a qcow2 file, a kernel, an initial RAM disk."""
    spec = ImageSpec(uid=0, gid=0, packages=PACKAGES, disk_gib=4)
    own = [file for file in guest_tree() if "/image/" in file.path]  # nothing that would configure the system
    tree = [
        TreeFile(file.path, 0o755, ORDINARY.encode()) if file.path.endswith("/customize") else file
        for file in own
    ]
    work = tmp_path / ".ordinary.partial"
    work.mkdir()
    try:
        around = BuildEnvironment(own(), os.environ)
        await bootstrap(spec, tree_archive(tuple(tree)), work, lambda *_: None, build_env=around)
    finally:
        await clean(work, own())
    disk = tmp_path / "ordinary.qcow2"
    convert = ["qemu-img", "convert", "-f", "raw", "-O", "qcow2", str(work / DISK), str(disk)]
    await run_tool(convert, timeout_s=300)
    (work / DISK).unlink()
    return disk, work / KERNEL, work / INITRD


async def test_an_ordinary_image_becomes_a_template_of_ours(ordinary, owner, monkeypatch):
    image, kernel, initrd = ordinary
    machine = os.uname().machine
    boot = {
        "kernel": {
            "location": str(kernel),
            "arch": machine,
            "cmdline": f"root=/dev/vda console=ttyS0 net.ifnames=0 {arguments.KERNEL_ARGUMENTS}",
        },
        "initrd": {"location": str(initrd), "arch": machine},
    }

    class Booted(Import):
        def __init__(self, *arguments, **options):
            super().__init__(*arguments, **options, boot=boot)

    monkeypatch.setattr(hypervisor.importing, "Import", Booted)
    sizes = {"cpus": 2, "memory_mib": 768, "disk_gib": 8}
    said = []
    async with open_driver(owner) as driver:
        template = await driver.build_template(
            TemplateSpec(name="t", project="/p", uid=os.getuid(), gid=os.getgid(), image=str(image), **sizes),
            lambda phase, detail: said.append((phase, detail)),
        )
        assert ("importing an image", "installing packages and copying") in said
        instance = "i-0000000001"
        try:
            await driver.clone(InstanceSpec(instance, "t", template.generation, **sizes))
            access = await driver.start(instance, lambda *_: None)
            link = await connect(access, timeout_s=60)
            try:
                words = "id -un; id -u; cat /etc/os-release; pgrep -c cloud-init; getent passwd somebody"
                out = (await link._connection.run(words, encoding=None)).stdout
            finally:
                await link.aclose()
        finally:
            await driver.delete(instance)
        lines = out.decode().splitlines()
        assert lines[:2] == [template.user, str(os.getuid())]
        assert "ID=debian" in lines
        assert lines[-2] == "0"
        assert lines[-1].startswith("somebody:x:4711:")
        await driver.delete_template("t")
    assert [
        path.name for path in lima_home(owner.home).iterdir() if path.name not in {"_config", "_disks"}
    ] == []
    assert list(Path(lima_home(owner.home) / "_disks").iterdir()) == []
    assert find_marked(str(lima_home(owner.home))) == []
