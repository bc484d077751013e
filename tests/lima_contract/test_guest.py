"""An instance with a guest: when it is called ready, and what goes in and out of it.

The guest is the one of `claude_vm.drivers.images`, with `guest-boot` put into its disk, by which it keeps
Lima's contract as an image with cloud-init does.
"""

import hashlib
import os
import shutil
import subprocess
from pathlib import Path

import anyio
import pytest

from claude_vm.drivers.images.debian import ImageSpec, ensure_image

pytestmark = [pytest.mark.vm, pytest.mark.timeout(900)]

READY_S = 400.0
BOOT = Path(__file__).with_name("guest-boot")
UNIT = """\
[Unit]
After=basic.target
[Service]
Type=oneshot
RemainAfterExit=yes
KillMode=process
ExecStart=/usr/lib/guest-boot
"""


@pytest.fixture(scope="module")
def guest(tmp_path_factory):
    """The image, and its disk with our script."""
    if os.geteuid() == 0:
        pytest.skip("limactl refuses to run as root")
    cache = Path.home() / ".claude-vm" / "cache"
    image = anyio.run(ensure_image, cache, ImageSpec(os.getuid(), os.getgid()), lambda *_: None)
    folder = tmp_path_factory.mktemp("guest")
    disk = folder / "disk.raw"
    subprocess.run(["cp", "--sparse=always", "--reflink=auto", image.disk, disk], check=True)
    disk.chmod(0o600)
    (folder / "unit").write_text(UNIT)
    system = "/etc/systemd/system"
    commands = [
        f"write {BOOT} /usr/lib/guest-boot",
        "sif /usr/lib/guest-boot mode 0100755",
        f"write {folder / 'unit'} {system}/guest-boot.service",
        f"symlink {system}/multi-user.target.wants/guest-boot.service {system}/guest-boot.service",
    ]
    (folder / "commands").write_text("".join(f"{command}\n" for command in commands))
    done = subprocess.run(
        ["/usr/sbin/debugfs", "-w", "-f", folder / "commands", disk], capture_output=True, check=True
    )
    assert b"not found" not in done.stderr, done
    yield image, disk
    shutil.rmtree(folder)


def configuration(lima, guest):
    """Return what an instance with that guest has in its file."""
    image, disk = guest
    arguments = f"root=/dev/vda rw {image.kernel_arguments}"
    return {
        "images": [
            {
                "location": str(disk),
                "kernel": {"location": str(image.kernel), "cmdline": arguments},
                "initrd": {"location": str(image.initrd)},
            }
        ],
        "cpus": 2,
        "memory": "768MiB",
        "disk": f"{image.disk_gib}GiB",
        "user": {"name": image.user, "uid": image.uid, "home": image.home},
        "provision": [{"script": '#!/bin/sh\necho "$PARAM_what" >/run/provisioned\n'}],
        "param": {"what": "ever so much"},
    }


def test_a_guest_that_keeps_lima_s_contract_is_ready_and_can_be_used(lima, guest, waiting):
    lima.env["QEMU_SYSTEM_X86_64"] = (
        "qemu-system-x86_64 -machine q35,vmport=off -accel tcg,thread=multi,tb-size=256 -cpu max"
    )
    folder = lima.create(**configuration(lima, guest))

    with lima.begin("start", "a") as start:
        said = start.communicate(timeout=READY_S)[1].decode()
    try:
        assert start.returncode == 0, said
        assert f"READY. Run `ssh -F `{folder}/ssh.config` lima-a` to open the shell." in said.replace(
            "\\", ""
        )
        expect_ready(lima)
        expect_commands(lima)
        expect_copies(lima)
        expect_end(lima, folder)
    finally:
        lima.delete()


def expect_ready(lima):
    """Expect the events and the log of a start that ended well."""
    assert [event["status"] for event in lima.events()] == [
        {"sshLocalPort": lima.port},
        {"running": True, "sshLocalPort": lima.port},
    ]
    steps = [line for line in lima.phases() if "requirement" in line]
    assert steps == [
        "Waiting for the essential requirement 1 of 2: `ssh`",
        "The essential requirement 1 of 2 is satisfied",
        "Waiting for the essential requirement 2 of 2: `Explicitly start ssh ControlMaster`",
        "The essential requirement 2 of 2 is satisfied",
        "Waiting for the final requirement 1 of 1: `boot scripts must have finished`",
        "The final requirement 1 of 1 is satisfied",
    ]
    assert (lima.home / "a" / "ssh.sock").is_socket()


def expect_commands(lima):
    """Expect `shell` to give words, streams, status and folder to the guest as they are."""

    def shell(*words, **options):
        return lima.run("shell", *words, **options)

    done = shell("a", "sh", "-c", "echo out; echo err >&2; exit 7")
    assert (done.status, done.out, done.err) == (7, "out\n", "err\n")
    words = ["a b", "", "it's", "$HOME", '"', "*", "-x", "--", "ä\n"]
    assert shell("a", "printf", "<%s>", *words).out == "".join(f"<{word}>" for word in words)
    assert shell("a", "--", "echo", "x").out == "x\n"
    assert shell("a", "A=b c", "printenv", "A").out == "b c\n"
    assert shell("--workdir", "/usr/lib", "a", "pwd").out == "/usr/lib\n"
    assert shell("--workdir", "/no/such", "a", "pwd").status == 1
    assert shell("--shell", "/bin/sh", "a", "echo", "$0").out == "$0\n"
    data = bytes(range(256)) * 400
    assert shell("a", "sha256sum", data=data).out.split()[0] == hashlib.sha256(data).hexdigest()
    assert shell("a", "cat", "/run/provisioned").out == "ever so much\n"
    # A shell that dies of a signal looks like a connection that broke.
    assert shell("a", "sh", "-c", "kill -9 $$").status == 255


def expect_copies(lima):
    """Expect `copy` to take a file there and back."""
    source, back = lima.root / "source", lima.root / "back"
    source.write_bytes(bytes(range(256)))
    lima.run("copy", str(source), "a:/tmp/there").expect()
    lima.run("cp", "a:/tmp/there", str(back)).expect()
    assert back.read_bytes() == source.read_bytes()


def expect_end(lima, folder):
    """Expect the power button to end the guest, and the VM with it."""
    done = lima.run("stop", "a").expect()
    assert done.said("info")[-1] == "The instance a has shut down"
    assert "QEMU has exited" in lima.phases()
    assert lima.events()[-1]["status"] == {"exiting": True}
    assert not (folder / "ssh.sock").exists()
    assert lima.listed()["status"] == "Stopped"
    assert lima.processes() == []
