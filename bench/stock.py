"""A variant of a template whose systemd is as Debian ships it: the cold boot that others would have.

Our image masks most of what systemd does at boot, so our own cold boot is no fair measure of what a RAM clone
saves. No kernel argument takes a mask away, so the variant is an overlay of the template's disk in which the
masks were removed by its own guest. It exists in a home of the bench's own only.
"""

import contextlib
import os
import subprocess
from collections.abc import Iterator
from typing import Final

import anyio
import msgspec

from claude_vm.bench.guests import Guests
from claude_vm.bench.site import Site
from claude_vm.bench.ssh import Login
from claude_vm.drivers.qemu.hypervisor import Qemu
from claude_vm.drivers.templates import building_folder, publish
from claude_vm.drivers.vm.driver import BOOT_ONLY
from claude_vm.drivers.vm.instance import InstanceFolder
from claude_vm.drivers.vm.store import VmTemplates, plain

GENERATION: Final = "00000000-000000-stock"
STOP_S: Final = 120.0

UNMASK: Final = """\
set -eu
for folder in /etc/systemd/system /etc/systemd/system-generators /etc/tmpfiles.d; do
    find "$folder" -maxdepth 1 -lname /dev/null -delete
done
cd /usr/lib/systemd/system
ln -sf ../systemd-udevd.service sysinit.target.wants/systemd-udevd.service
ln -sf ../dbus.service multi-user.target.wants/dbus.service
"""
"""Takes our masks away, as root in the guest."""


@contextlib.contextmanager
def boots_only() -> Iterator[None]:
    """Let drivers of this process boot everything that they start meanwhile."""
    name, off = BOOT_ONLY
    before = os.environ.get(name)
    os.environ[name] = off
    try:
        yield
    finally:
        if before is None:
            del os.environ[name]
        else:
            os.environ[name] = before


def make_stock(guests: Guests, site: Site) -> None:
    """Make the variant of the guests' template the current generation of `site`. Takes two boots' time.

    Raises:
        BenchError: The guest does not do it.
    """
    record = guests.record
    source = VmTemplates(guests.site.home, record.driver).find(record.name, record.generation)
    changed = msgspec.structs.replace(record, generation=GENERATION)
    stored = msgspec.structs.replace(source.stored, record=changed)
    with building_folder(VmTemplates(site.home, record.driver).folder(record.name)) as building:
        with boots_only(), guests.logged_in_at() as (login, instance_id):
            login.run("if [ $(id -u) = 0 ]; then sh -s; else sudo -n sh -s; fi", data=UNMASK.encode())
            power_off(guests, login, instance_id)
            InstanceFolder(Qemu(guests.owner), instance_id).disk.rename(building / "disk.qcow2")
        (building / "template.json").write_bytes(plain(stored))
        publish(building, GENERATION)


def power_off(guests: Guests, login: Login, instance_id: str) -> None:
    """Let a guest end by itself, so that its disk is whole; wait for that."""
    # The end of the connection is no failure of the command's.
    ends = login.argv("sync; sudo -n systemctl poweroff || systemctl poweroff", terminal=False)
    subprocess.run(ends, env=login.env, stdin=subprocess.DEVNULL, capture_output=True, check=False)

    async def stopped() -> None:
        with anyio.move_on_after(STOP_S):
            await guests.driver.wait_stopped(instance_id)

    guests.call(stopped)
