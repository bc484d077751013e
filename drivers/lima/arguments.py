"""What `limactl` and the QEMU beneath it are started with: pure functions.

Lima takes QEMU's program from an environment variable, with arguments that come before its own, and leaves
out those of its own that would contradict them. Two kinds of arguments are ours: those that Lima has to see,
because it would give others (`seen`), and those that only QEMU sees (`unseen`), which are handed over when
QEMU starts: paths and devices, which Lima would pass on through a template language of its own.

Source: Lima's `pkg/driver/qemu/qemu.go` (v2.2), `Exe` and `Cmdline`.
"""

import shlex
from collections.abc import Mapping, Sequence
from typing import Final

from claude_vm.drivers.vm.accelerator import MACHINES
from claude_vm.drivers.vm.arguments import (
    EXTRA_KERNEL_ARGUMENTS,
    QemuBuild,
    VmPlan,
    board,
    generation_id,
    helper,
    machine,
    memory,
    monitor,
    mounts,
    quote,
    sandbox,
)

NETWORK: Final = "192.168.5"
"""The first three numbers of the network that Lima gives its guests under QEMU."""

HOST_ADDRESS: Final = f"{NETWORK}.2"

KERNEL_ARGUMENTS: Final = f"claude_vm.net={NETWORK}"

FIRST: Final = "-name"
"""The first word of `seen`. No other QEMU that Lima starts, to ask it something, has it as its first."""

_BUS: Final = "helper-bus"


def seen(host: QemuBuild, guest: VmPlan) -> list[str]:
    """Return the arguments of QEMU that come through Lima. None has data in it that anybody could choose."""
    return [
        *(FIRST, f"guest={quote(guest.name)}"),
        *("-nodefaults", "-no-user-config", "-no-reboot", "-display", "none"),
        *machine(host, guest),
    ]


def unseen(host: QemuBuild, guest: VmPlan) -> list[str]:
    """Return the arguments of QEMU that it gets from us, before those of Lima."""
    return [
        *sandbox(host, guest),
        *memory(guest),
        *generation_id(host),
        *helper(guest, _BUS),
        *mounts(guest),
        *monitor(guest),
        *(("-incoming", "defer") if guest.incoming else ()),
    ]


def kernel_arguments(guest: VmPlan) -> str:
    """Return what goes into the file of the kernel's arguments."""
    return f"{guest.kernel_arguments} {EXTRA_KERNEL_ARGUMENTS}"


def emulated(architecture: str) -> list[str]:
    """Return the QEMU that emulates a processor, for a VM that is not made by `seen` and `unseen`.

    Lima would take KVM as soon as there is a device for it.
    """
    return [
        f"qemu-system-{architecture}",
        *("-machine", board(MACHINES[architecture], architecture)),
        *("-accel", "tcg,thread=multi,tb-size=512", "-cpu", "max"),
    ]


def command(limactl: str, *words: str) -> list[str]:
    """Return a command line of `limactl`, which never asks anything then."""
    return [limactl, "--tty=false", *words]


def environment(
    inherited: Mapping[str, str], lima_home: str, architecture: str = "", program: Sequence[str] = ()
) -> dict[str, str]:
    """Return the environment of a `limactl`: few of our own variables, and the `program` that is its QEMU.

    Nothing that would change what it does comes from the user's own: no setting of Lima's, no ``SSH``.
    """
    kept = {
        name: inherited[name] for name in ("HOME", "PATH", "USER", "LOGNAME", "TMPDIR") if name in inherited
    }
    found = {**kept, "LANG": "C", "LIMA_HOME": lima_home}
    if program:
        found[f"QEMU_SYSTEM_{architecture.upper()}"] = shlex.join(program)
    return found


def stand_in(interpreter: str, confine: str, qemu: str, handover: str) -> str:
    """Return the shell script that Lima starts as its QEMU.

    What Lima asks QEMU about itself goes to QEMU; the VM's own start goes through
    `claude_vm.drivers.vm.confine`, which fetches the rest of what it needs at the socket `handover`.
    """
    words = (interpreter, "-I", "-S", confine, f"handover={handover}", qemu)
    return f'#!/bin/sh\n[ "$1" = {FIRST} ] && exec {shlex.join(words)} "$@"\nexec {shlex.quote(qemu)} "$@"\n'
