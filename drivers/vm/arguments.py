"""What a VM shall be, and the parts of QEMU's argument list that all drivers have in common: pure functions.

Everything that both sides of a snapshot must agree on is in a driver's list, so the list, with its paths
taken out, is part of the snapshot's key.

Source: QEMU's manual, "Invocation".
"""

from collections.abc import Callable, Sequence
from typing import Final

import msgspec

from claude_vm.drivers.api import Mount

SLOTS: Final = 8
"""How many host directories a guest can have mounted."""

HELPER_PORT: Final = "org.claude-vm.helper"

_QUIET: Final = " ".join(
    (
        "psi=0 nowatchdog sysctl.vm.compaction_proactiveness=0 sysctl.vm.stat_interval=60",
        *(f"sysctl.net.{ip}.neigh.default.interval_probe_time_ms=600000" for ip in ("ipv4", "ipv6")),
    )
)
"""Against what wakes an idle guest several times a second, for statistics and tidying that nobody needs here.
That is most of a ready VM's processor time; ``docs/bench.md`` has what each saves.
Source: Linux, Documentation/admin-guide/kernel-parameters.txt and sysctl/vm.rst.
"""

EXTRA_KERNEL_ARGUMENTS: Final = f"mitigations=off audit=0 random.trust_cpu=on {_QUIET}"
"""Beside the image's own. The guest's root is the guest's user: nothing in there needs mitigations."""


class QemuBuild(msgspec.Struct, frozen=True):
    """What QEMU is here. `build` names its version and package; `cpu` the host's model, if it matters.

    `starter` is the program that starts QEMU, where another one does, and `path` its ``PATH``. `machine` is
    a versioned machine type such as ``pc-q35-7.2``: an alias would mean another one after an update, and a
    snapshot would not fit any more.
    """

    binary: str
    build: str
    architecture: str
    machine: str
    accelerator: str
    cpu: str = ""
    sandbox: bool = True
    starter: str = ""
    path: str = ""


class VmSize(msgspec.Struct, frozen=True):
    """What a saved state fits, beside the host."""

    cpus: int
    memory_mib: int


class Ram(msgspec.Struct, frozen=True):
    """The file that holds the guest's memory: written by a template's boot, or read by its clones."""

    path: str
    shared: bool


class VmPlan(msgspec.Struct, frozen=True):
    """One VM to start. `incoming` waits for a snapshot's state instead of booting.

    `slots` are at most `SLOTS`, each of which the guest may mount by the tag ``slotN``; the rest point to
    `empty`, an empty directory. `run_as` is a uid and gid to
    change to once all files are open. `uid`, `user` and `home` are those of the guest's user. `serial` and
    what follows is set by who launches it: `monitor` and `helper` are listening unix sockets, as inherited
    file descriptors.
    """

    name: str
    cpus: int
    memory_mib: int
    disk: str
    kernel: str
    initrd: str
    kernel_arguments: str
    slots: tuple[Mount, ...] = ()
    ram: Ram | None = None
    incoming: bool = False
    run_as: tuple[int, int] | None = None
    uid: int = 0
    user: str = ""
    home: str = ""
    serial: str = ""
    empty: str = ""
    monitor: int = 0
    helper: int = 0


def quote(value: str) -> str:
    """Return a text for use as a value in QEMU's comma-separated options."""
    return value.replace(",", ",,")


Arguments = Callable[[QemuBuild, VmPlan], Sequence[str]]
"""A driver's whole argument list of a VM."""


def sandbox(host: QemuBuild, guest: VmPlan) -> Sequence[str]:
    """QEMU may not start programs, nor gain privileges.

    Where it is to drop them itself, the calls for that must be allowed, and ``children`` kills QEMU 7.2 for
    them. `confine` has set no-new-privs by then, so nothing can be gained by these calls afterwards.
    """
    if not host.sandbox:
        return ()
    privileges = "deny" if guest.run_as is None else "allow"
    run_as = () if guest.run_as is None else ("-runas", f"{guest.run_as[0]}:{guest.run_as[1]}")
    rules = f"on,obsolete=deny,elevateprivileges={privileges},spawn=deny,resourcecontrol=deny"
    return ("-sandbox", rules, *run_as)


def memory(guest: VmPlan) -> Sequence[str]:
    """The file that is the guest's memory; nothing where QEMU shall take its own."""
    if guest.ram is None:
        return ()
    share = "on" if guest.ram.shared else "off"
    backend = f"memory-backend-file,id=ram,size={guest.memory_mib}M,share={share}"
    return ("-object", f"{backend},mem-path={quote(guest.ram.path)}")


def board(machine_type: str, architecture: str) -> str:
    """The value of ``-machine``, as far as it does not depend on the guest."""
    return f"{machine_type},{'gic-version=max' if architecture == 'aarch64' else 'vmport=off'}"


def machine(host: QemuBuild, guest: VmPlan) -> Sequence[str]:
    """Board, processor and the memory's size."""
    chosen = board(host.machine, host.architecture)
    if guest.ram is not None:
        chosen += ",memory-backend=ram"
    return (
        *("-machine", chosen),
        *accelerator(host),
        *("-m", f"{guest.memory_mib}M", "-smp", f"cpus={guest.cpus}"),
    )


def accelerator(host: QemuBuild) -> Sequence[str]:
    """Hardware virtualization with the host's processor, or software emulation of the best one."""
    if host.accelerator != "tcg":
        return ("-accel", host.accelerator, "-cpu", "host")
    # Page tables of five levels cost a walk more on each miss of the emulated TLB, and are of no use here.
    cpu = "max,la57=off" if host.architecture == "x86_64" else "max"
    return ("-accel", "tcg,thread=multi,tb-size=256", "-cpu", cpu)


def generation_id(host: QemuBuild) -> Sequence[str]:
    """A device by which a guest sees that it was copied."""
    return ("-device", "vmgenid,guid=auto") if host.architecture == "x86_64" else ()


def helper(guest: VmPlan, bus: str = "") -> Sequence[str]:
    """The serial port of the guest's helper, at a bus of its own if that is named."""
    on = f",bus={bus}.0" if bus else ""
    # Its default of 31 ports would be 64 queues, each with a descriptor that QEMU polls at every turn.
    controller = "virtio-serial-pci,max_ports=2"
    return (
        *("-device", f"{controller},id={bus}" if bus else controller),
        *("-chardev", f"socket,id=helper,fd={guest.helper},server=on,wait=off"),
        *("-device", f"virtserialport{on},chardev=helper,name={HELPER_PORT}"),
    )


def monitor(guest: VmPlan) -> Sequence[str]:
    """Our own monitor."""
    return (
        *("-chardev", f"socket,id=monitor,fd={guest.monitor},server=on,wait=off"),
        *("-mon", "chardev=monitor,mode=control"),
    )


def mounts(guest: VmPlan) -> Sequence[str]:
    """A fixed number of 9p devices: their number is part of a snapshot, their directories are not.

    Each VM has a 9p client of its own, and QEMU answers each request for a lock with success, without asking
    the host. So two guests, or a guest and the host, can hold the same lock at a time.

    Source: QEMU's hw/9pfs/9p.c (``v9fs_lock``).
    """
    found: list[str] = []
    for number in range(SLOTS):
        slot = guest.slots[number] if number < len(guest.slots) else Mount(guest.empty, "", writable=False)
        mode = "" if slot.writable else ",readonly=on"
        local = f"local,id=slot{number},path={quote(slot.host)},security_model=none,multidevs=remap{mode}"
        found += ["-fsdev", local, "-device", f"virtio-9p-pci,fsdev=slot{number},mount_tag=slot{number}"]
    return found
