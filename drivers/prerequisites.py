"""Programs that drivers need, and the packages that have them."""

import os
import platform
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Final

import msgspec

from claude_vm.drivers.api import Diagnostic
from claude_vm.drivers.programs import Programs, not_installed, user_environment

Which = Callable[[str], str | None]
"""Finds a program, as `shutil.which`."""

QEMU_PACKAGES: Final = {"x86_64": "qemu-system-x86", "aarch64": "qemu-system-arm"}
KEYRING: Final = "/usr/share/keyrings/debian-archive-keyring.gpg"


class Program(msgspec.Struct, frozen=True):
    """A program and the packages of apt and Homebrew that bring it; "" where there is none."""

    name: str
    apt: str
    brew: str = ""


class Host(msgspec.Struct, frozen=True):
    """What is asked of a host. `system` is as `sys.platform`, `machine` in QEMU's words, `uid` effective.

    `absence` says that programs are not there; `environment` is for those that are asked something.
    """

    system: str
    machine: str
    uid: int
    which: Which
    exists: Callable[[str], bool] = os.path.exists
    absence: Callable[..., str] = not_installed
    environment: Mapping[str, str] = {}

    @property
    def has_apt(self) -> bool:
        """Whether it is Debian, Ubuntu or the like."""
        return self.system == "linux" and self.which("apt-get") is not None


def this_host(programs: Programs) -> Host:
    """Return the host that this runs on, with the programs that are found there."""
    machine = platform.machine().lower()
    machine = {"amd64": "x86_64", "arm64": "aarch64"}.get(machine, machine)
    return Host(
        sys.platform,
        machine,
        os.geteuid(),
        programs.find,
        absence=programs.absence,
        environment=user_environment(programs),
    )


def install(host: Host, programs: Sequence[Program], *, more: Sequence[str] = ()) -> str:
    """Return the command that installs programs, and packages besides; words where there is no command."""
    if host.has_apt:
        packages = [program.apt for program in programs if program.apt] + [*more]
        sudo = "" if host.uid == 0 else "sudo "
        return f"{sudo}apt-get install {' '.join(dict.fromkeys(packages))}" if packages else ""
    if host.system == "darwin":
        packages = [program.brew for program in programs if program.brew]
        return f"brew install {' '.join(dict.fromkeys(packages))}" if packages else ""
    names = ", ".join([*(program.name for program in programs), *more])
    return f"install with this system's package manager: {names}"


def missing(host: Host, programs: Sequence[Program]) -> list[Program]:
    """Return those that this host has not."""
    return [program for program in programs if host.which(program.name) is None]


def hypervisor(host: Host) -> list[Diagnostic]:
    """Return what lacks to run QEMU."""
    package = QEMU_PACKAGES.get(host.machine, "qemu-system")
    programs = (
        Program(f"qemu-system-{host.machine}", package, "qemu"),
        Program("qemu-img", "qemu-utils", "qemu"),
    )
    lacking = missing(host, programs)
    if not lacking:
        return []
    return [Diagnostic(host.absence(*(program.name for program in lacking)), install(host, lacking))]


def template_tools(host: Host) -> list[Diagnostic]:
    """Return what lacks to build a guest's image. Sessions of a template that exists run without."""
    if host.system == "darwin":
        return [
            Diagnostic(
                "guest images are built by mmdebstrap, which macOS does not have",
                "build the template on a Linux host; macOS is untested",
                fatal=False,
            )
        ]
    programs = [Program("mmdebstrap", "mmdebstrap"), Program("mke2fs", "e2fsprogs")]
    if host.uid != 0:
        programs += [Program("newuidmap", "uidmap"), Program("newgidmap", "uidmap")]
    lacking = missing(host, programs)
    keyring = [] if host.exists(KEYRING) else ["debian-archive-keyring"]
    if not lacking and not keyring:
        return []
    names = ", ".join([*(program.name for program in lacking), *keyring])
    return [
        Diagnostic(
            f"`claude-vm setup` can't build a template without: {names}",
            install(host, lacking, more=keyring),
            fatal=False,
        )
    ]
