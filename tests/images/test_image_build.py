"""The real thing: an image from Debian's packages, looked at from outside and booted.

It is kept for the next run, as images are: it says nothing new until what it is made of changes.
"""

import os
import re
import shutil
import socket
import subprocess
import time
from pathlib import Path

import anyio
import msgspec
import pytest

from claude_vm.drivers.images.debian import ImageSpec, ensure_image, images, remove_image
from claude_vm.drivers.process import find_marked

needed = ("mmdebstrap", "mke2fs", "debugfs", "qemu-system-x86_64", "qemu-img")
missing = [
    name for name in needed if shutil.which(name, path=f"{os.environ['PATH']}:/usr/sbin:/sbin") is None
]
pytestmark = [
    pytest.mark.vm,
    pytest.mark.timeout(600),
    pytest.mark.skipif(bool(missing), reason=f"not installed: {', '.join(missing)}"),
    pytest.mark.skipif(os.uname().machine != "x86_64", reason="the host's architecture is not x86-64"),
]

# A uid that no range of subordinate ids has, and a gid that Debian gives to a group of its own.
SPEC = ImageSpec(uid=70_001, gid=20)
UNUSED_S = 7 * 24 * 3600


@pytest.fixture
def anyio_backend():
    return "asyncio"


@pytest.fixture(scope="module")
def image():
    """A built image. Those that no run has used for a week are removed."""
    cache = Path.home() / ".cache" / "claude-vm-tests"
    before = set(scratch_folders())
    image = anyio.run(ensure_image, cache, SPEC, lambda _phase, _detail: None)
    assert set(scratch_folders()) <= before
    assert [path.name for path in (cache / "images").iterdir() if path.name.endswith(".partial")] == []
    os.utime(image.disk.parent)
    for other in images(cache):
        if time.time() - other.disk.parent.stat().st_mtime > UNUSED_S:
            anyio.run(remove_image, cache, other.key)
    return image


def scratch_folders():
    return list(Path("/var/tmp").glob("claude-vm-image-*"))


def look(image, request):
    """Ask debugfs about the disk."""
    argv = ["debugfs", "-R", request, os.fspath(image.disk)]
    environ = os.environ | {"PATH": f"{os.environ['PATH']}:/usr/sbin:/sbin"}
    return subprocess.run(argv, capture_output=True, text=True, check=True, env=environ).stdout


def test_the_user_has_the_ids_of_the_host_and_a_password_that_is_not_locked(image):
    assert "claude:x:70001:20::/home/claude:/bin/bash\n" in look(image, "cat /etc/passwd")
    assert re.search(r"^claude:\*:", look(image, "cat /etc/shadow"), re.MULTILINE)
    assert look(image, "cat /etc/sudoers.d/claude-vm") == "claude ALL=(ALL:ALL) NOPASSWD: ALL\n"


def test_nothing_in_it_is_an_identity(image):
    assert look(image, "cat /etc/machine-id") == "uninitialized\n"
    assert "ssh_host_" not in look(image, "ls /etc/ssh")


def test_apt_is_as_debian_leaves_it(image):
    assert "trixie-security" in look(image, "cat /etc/apt/sources.list")
    assert "mmdebstrap" not in look(image, "ls /etc/apt/apt.conf.d") + look(image, "ls /etc/dpkg/dpkg.cfg.d")
    assert "Packages" not in look(image, "ls /var/lib/apt/lists")
    assert "EXTERNALLY-MANAGED" not in look(image, "ls /usr/lib/python3.13")


def test_what_the_builder_had_mounted_is_not_in_it(image):
    for folder in ("/proc", "/sys", "/mnt", "/tmp"):
        assert re.findall(r"\(\d+\) +(\S+)", look(image, f"ls {folder}")) in ([".", ".."], ["..", "."]), (
            folder
        )


def test_the_guest_says_which_terminals_and_locales_it_knows(image):
    assert {"xterm-256color", "tmux-256color", "linux"} <= set(image.terminfo)
    assert "C.utf8" in image.locales


def test_it_takes_less_than_a_gibibyte(image):
    assert image.size_bytes < 1 << 30
    assert image.disk.stat().st_size == 6 << 30


class Guest:
    """A booted image with a root shell on its serial port."""

    def __init__(self, console):
        self._console = console
        self._text = b""

    def wait_for(self, pattern):
        while (match := re.search(pattern, self._text)) is None:
            chunk = self._console.recv(65536)
            assert chunk, f"the VM ended: {self._text[-2000:].decode(errors='replace')}"
            self._text += chunk
        self._text = self._text[match.end() :]
        return match

    def run(self, command):
        """Run a command; return its output. The marks are spelled so that their echo doesn't match."""
        self._console.sendall(f"echo BE''GIN; {command}; echo E''ND\n".encode())
        return self.wait_for(rb"BEGIN\r\n((?s:.*?))END\r\n")[1].decode().replace("\r", "")


@pytest.fixture(scope="module")
def guest(image, tmp_path_factory):
    """The image, booted from an overlay."""
    folder = tmp_path_factory.mktemp("vm")
    ours, theirs = socket.socketpair()
    overlay = folder / "overlay.qcow2"
    subprocess.run(
        ["qemu-img", "create", "-q", "-f", "qcow2", "-F", "raw", "-b", image.disk, overlay], check=True
    )
    # fmt: off
    argv = [
        "qemu-system-x86_64", "-machine", "q35", "-accel", "tcg,thread=multi", "-cpu", "max",
        "-smp", "2", "-m", "1024",
        "-nodefaults", "-display", "none", "-no-reboot", "-kernel", image.kernel, "-initrd", image.initrd,
        "-append", f"{image.kernel_arguments} systemd.debug_shell=ttyS0",
        "-drive", f"file={overlay},if=virtio,format=qcow2", "-netdev", "user,id=net",
        "-device", "virtio-net-pci,netdev=net,romfile=", "-device", "virtio-rng-pci",
        "-device", "virtio-serial-pci",
        "-chardev", "null,id=helper", "-device", "virtserialport,chardev=helper,name=org.claude-vm.helper",
        "-chardev", f"socket,id=console,fd={theirs.fileno()}", "-serial", "chardev:console",
    ]
    # fmt: on
    ours.settimeout(300)
    with ours, theirs, subprocess.Popen(argv, pass_fds=[theirs.fileno()]) as vm:
        theirs.close()
        guest = Guest(ours)
        try:
            guest.wait_for(rb"# ")
            yield guest
        finally:
            vm.kill()


def test_it_boots_without_a_failed_unit(guest):
    assert guest.run("systemctl is-system-running --wait").strip() == "running"


def test_the_helper_runs_and_sshd_does_not(guest):
    assert guest.run("systemctl is-active claude-vm-helper").strip() == "active"
    assert guest.run("systemctl is-enabled ssh.service").strip() == "masked"


def test_the_network_is_there_without_a_daemon(guest):
    assert "10.0.2.15/24" in guest.run("ip -color=never -br address show eth0")
    assert "default via 10.0.2.2" in guest.run("ip -color=never route")


def test_the_home_directory_belongs_to_the_user_whatever_its_uid(guest):
    assert guest.run("stat -c '%u:%g %A' /home/claude /home/lima.linux/.bashrc") == (
        "70001:20 drwxr-xr-x\n70001:20 -rw-r--r--\n"
    )


def test_the_user_becomes_root_without_a_password(guest):
    assert guest.run("setpriv --reuid 70001 --regid 20 --clear-groups sudo -n id -u").strip() == "0"


def test_a_login_shell_has_the_paths_that_people_expect(guest):
    told = guest.run(
        "su - claude -c 'echo $PATH; echo $LANG $NODE_EXTRA_CA_CERTS [$IS_SANDBOX]'"
    ).splitlines()
    assert told[0].startswith("/home/claude/.local/bin:")
    assert "/usr/sbin" in told[0].split(":")
    assert told[1] == "C.UTF-8 /etc/ssl/certs/ca-certificates.crt []"


def test_the_modules_of_mounts_and_devices_are_there(guest):
    modules = guest.run("cut -d' ' -f1 /proc/modules").split()
    assert {"9p", "9pnet_virtio", "virtio_net", "virtio_rng"} <= set(modules)
    assert guest.run("cat /sys/class/virtio-ports/*/name").strip() == "org.claude-vm.helper"
    assert guest.run("stat -c %a /dev/fuse /dev/net/tun").split() == ["666", "666"]


def test_git_accepts_a_project_that_belongs_to_somebody_else(guest):
    commands = (
        "git init -q /tmp/other && chown -R 1234 /tmp/other && git -C /tmp/other status --short && echo fine"
    )
    assert guest.run(commands).splitlines()[-1] == "fine"


@pytest.mark.anyio
async def test_a_real_build_that_is_cancelled_leaves_nothing(tmp_path):
    before = set(scratch_folders())
    seen = []
    async with anyio.create_task_group() as tasks:

        def progress(phase, detail):
            if "installing essential packages" in detail:
                seen.extend(set(scratch_folders()) - before)
                tasks.cancel_scope.cancel()

        tasks.start_soon(ensure_image, tmp_path, msgspec.structs.replace(SPEC, uid=1), progress)
    assert len(seen) == 1
    assert not seen[0].exists()
    assert os.fspath(seen[0]) not in Path("/proc/mounts").read_text()
    assert find_marked(os.fspath(seen[0])) == []
    assert [path.name for path in (tmp_path / "images").iterdir() if path.is_dir()] == []
