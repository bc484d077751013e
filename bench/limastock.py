"""Lima as somebody uses it by hand: an ordinary instance of Debian with cloud-init, cloned for each session.

Its guest has nothing of ours: systemd and sshd as Debian ships them, and cloud-init, for which Lima waits. It
is built of the same packages and has the same kernel as our own guests, so the difference is the way, not the
system. Its disk is an overlay of another image, from which the guest itself took what is ours.
"""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final

import msgspec

from claude_vm.bench.children import finished
from claude_vm.bench.errors import BenchError, UnavailableError
from claude_vm.bench.guests import SUPERVISOR_ID, Guests, open_guests
from claude_vm.bench.site import Site
from claude_vm.bench.stock import GENERATION, UNMASK, boots_only, power_off
from claude_vm.drivers.api import TemplateRecord
from claude_vm.drivers.errors import DriverError
from claude_vm.drivers.images.debian import Image, ensure_image
from claude_vm.drivers.images.rootfs import PACKAGES, ImageSpec
from claude_vm.drivers.lima import arguments
from claude_vm.drivers.lima.document import LimaInstance, document
from claude_vm.drivers.lima.home import instance_name, lima_home
from claude_vm.drivers.programs import own
from claude_vm.drivers.templates import building_folder, publish
from claude_vm.drivers.vm import accelerator
from claude_vm.drivers.vm.disk import make_overlay
from claude_vm.drivers.vm.store import Stored, VmTemplates, plain

TEMPLATE: Final = "template"
COMMAND_S: Final = 600.0

_PREPARE: Final = (
    UNMASK
    + """\
systemctl disable claude-vm-helper.service
rm /etc/systemd/system/claude-vm-helper.service
printf 'UsePAM yes\\nSubsystem sftp internal-sftp\\n' >/etc/ssh/sshd_config
rm -f /etc/ssh/ssh_host_*
systemctl enable ssh.service
printf 'datasource_list: [NoCloud]\\n' >/etc/cloud/cloud.cfg.d/90-datasource.cfg
# The kernel's own initial RAM disk has set the network, as for our guests.
printf 'network: {config: disabled}\\n' >/etc/cloud/cloud.cfg.d/91-network.cfg
sync
"""
)


class Ordinary(msgspec.Struct, frozen=True):
    """A stopped instance to be cloned by hand: where, and what `limactl` is run with."""

    lima_home: Path
    env: dict[str, str]

    def do(self, *words: str) -> None:
        """Run a command of `limactl` to its end.

        Raises:
            BenchError: It fails, or takes too long.
        """
        run(arguments.command("limactl", *words), self.env)


def run(argv: Sequence[str], env: Mapping[str, str] | None = None) -> None:
    """Run a command that must succeed.

    Raises:
        BenchError: It fails, with its last line, or takes longer than `COMMAND_S`.
    """
    said = " ".join((Path(argv[0]).name, *argv[1:]))
    done = finished(argv, name=said, timeout_s=COMMAND_S, env=env)
    if done.returncode:
        last = done.stderr.decode(errors="replace").strip().splitlines()[-1:]
        raise BenchError(f"{said}: {''.join(last)[-300:]}")


def copy_disk(source: Path, target: Path) -> None:
    """Copy a disk with all that it has of others.

    Raises:
        BenchError: It fails.
    """
    run(["qemu-img", "convert", "-O", "qcow2", str(source), str(target)])


def make_ordinary(guests: Guests, site: Site) -> Ordinary:
    """Make the instance, in a `LIMA_HOME` of the site; that takes two boots, and a minute for its image.

    Raises:
        UnavailableError: Its image can't be built here.
        BenchError: The guest or Lima does not do it.
    """
    record = guests.record
    stored = VmTemplates(guests.site.home, record.driver).find(record.name, record.generation).stored
    image = _image(guests, stored)
    _make_generation(guests, site, stored, image)
    disk = site.root / "disk.qcow2"
    with (
        boots_only(),
        open_guests(site, record.driver, record.name) as own,
        own.logged_in_at() as (login, instance_id),
    ):
        login.run("if [ $(id -u) = 0 ]; then sh -s; else sudo -n sh -s; fi", data=_PREPARE.encode())
        power_off(own, login, instance_id)
        source = lima_home(site.home) / instance_name(SUPERVISOR_ID, instance_id) / "disk"
        copy_disk(source, disk)
    ordinary = Ordinary(site.by_hand, _environment(site, guests))
    ordinary.lima_home.mkdir(mode=0o700)
    told = site.root / "lima.yaml"
    told.write_bytes(_document(record, stored, image, disk))
    ordinary.do("create", "--name", TEMPLATE, str(told))
    # Its first boot is not measured, as nobody's is who has a template.
    ordinary.do("start", TEMPLATE)
    ordinary.do("stop", TEMPLATE)
    return ordinary


def _image(guests: Guests, stored: Stored) -> Image:
    spec = ImageSpec(uid=stored.uid, gid=stored.gid, packages=tuple(sorted((*PACKAGES, "cloud-init"))))
    try:
        return guests.call(lambda: ensure_image(guests.site.home / "cache", spec, lambda *_: None))
    except BenchError as error:
        raise UnavailableError(f"an image with cloud-init can't be built here: {error}") from error


def _make_generation(guests: Guests, site: Site, stored: Stored, image: Image) -> None:
    """Make a template of the image, of the size of the project's own, the current one of the site."""
    record = guests.record
    changed = msgspec.structs.replace(record, generation=GENERATION, image=image.key)
    made = msgspec.structs.replace(stored, record=changed, kernel=str(image.kernel), initrd=str(image.initrd))
    with building_folder(VmTemplates(site.home, record.driver).folder(record.name)) as building:
        disk = building / "disk.qcow2"
        guests.call(lambda: make_overlay(own(), disk, image.disk, "raw", record.disk_gib))
        (building / "template.json").write_bytes(plain(made))
        publish(building, GENERATION)


def _document(record: TemplateRecord, stored: Stored, image: Image, disk: Path) -> bytes:
    return document(
        LimaInstance(
            architecture=accelerator.architecture(),
            cpus=record.cpus,
            memory_mib=record.memory_mib,
            disk_bytes=record.disk_gib << 30,
            image=str(disk),
            ssh_port=0,
            uid=stored.uid,
            user=record.user,
            home=record.home,
            kernel=str(image.kernel),
            initrd=str(image.initrd),
            kernel_arguments=stored.kernel_arguments,
        )
    )


def _environment(site: Site, guests: Guests) -> dict[str, str]:
    """Return what Lima is used with: on a host without KVM, QEMU has to be told so."""
    try:
        choice = accelerator.choose(guests.site.home)
        architecture = accelerator.architecture()
    except DriverError as error:
        raise UnavailableError(str(error)) from error
    program = arguments.emulated(architecture) if choice.name == "tcg" else []
    inherited = {**os.environ, "HOME": site.env["HOME"]}
    found = arguments.environment(inherited, str(site.by_hand), architecture, program)
    return {**found, "TERM": "xterm-256color"}
