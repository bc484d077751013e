"""What QEMU can do on this host: which program, which machine, and KVM only where it is proved.

``/dev/kvm`` may exist, open and make VMs, and still never boot a stock kernel (nested virtualization that is
half there). So KVM needs a device that we may use *and* a processor that says it can; and the first VM that
does not boot with it is the proof of the opposite, remembered until the host boots again.
"""

import grp
import hashlib
import os
import platform
import pwd
import re
import stat
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Final

import msgspec

from claude_vm.drivers.errors import DriverError
from claude_vm.drivers.process import boot_id, run_tool
from claude_vm.drivers.programs import Programs
from claude_vm.drivers.vm.arguments import QemuBuild

INSTALL_HINT: Final = (
    "install QEMU: `sudo apt install qemu-system-x86 qemu-utils` (on Arm qemu-system-arm), "
    "or `brew install qemu`"
)
DISK_TOOL: Final = "qemu-img"
MACHINES: Final = {"x86_64": "q35", "aarch64": "virt"}
"""The type of machine of each architecture that we have one for, both in QEMU's words."""
_TOOL_S: Final = 30


class Accelerator(msgspec.Struct, frozen=True):
    """An accelerator, and why it is this one."""

    name: str
    reason: str


def architecture() -> str:
    """Return the host's architecture in QEMU's words.

    Raises:
        DriverError: We have no machine for it.
    """
    name = {"amd64": "x86_64", "arm64": "aarch64"}.get(platform.machine().lower(), platform.machine().lower())
    if name not in MACHINES:
        raise DriverError(f"the architecture {name} is not supported", hint="x86-64 and 64-bit Arm are")
    return name


def _way_in(device: Path) -> str:
    """Return how this user could come to open a device that is there."""
    try:
        status = device.stat()
        group = grp.getgrgid(status.st_gid).gr_name
    except (OSError, KeyError):
        return "ask the administrator"
    if status.st_gid != 0 and status.st_mode & 0o060 == 0o060:
        if status.st_gid in {os.getegid(), *os.getgroups()}:
            return f"its mode and group {group} allow it, but something else does not; ask the administrator"
        if _is_member(status.st_gid):  # a process has the groups of the login that it comes from
            return f"you are in the group {group} now: log in again, then `claude-vm daemon stop`"
        return f"`sudo usermod -aG {group} $USER`, then log in again, and `claude-vm daemon stop`"
    return f"its mode is {stat.S_IMODE(status.st_mode):04o} and its group {group}; ask the administrator"


def _is_member(gid: int) -> bool:
    """Tell whether the list of groups has our user in a group, whatever this process was started with."""
    try:
        user = pwd.getpwuid(os.getuid())
    except KeyError:
        return False
    return gid in os.getgrouplist(user.pw_name, user.pw_gid)


def choose(
    home: Path,
    *,
    system: str = sys.platform,
    device: Path = Path("/dev/kvm"),
    cpu: Callable[[], str] = lambda: _read(Path("/proc/cpuinfo")),
) -> Accelerator:
    """Return the accelerator to use, by what the host says and by what has failed since it booted."""
    if system == "darwin":
        return Accelerator("hvf", "macOS")
    if not device.exists():
        return Accelerator("tcg", f"no {device}: software emulation, many times slower")
    if not os.access(device, os.R_OK | os.W_OK):
        return Accelerator("tcg", f"you may not open {device}: {_way_in(device)}")
    text = cpu()
    flags = re.search(r"^flags\s*:(.*)$", text, re.MULTILINE)
    if flags is not None and not {"vmx", "svm"} & set(flags[1].split()):
        return Accelerator("tcg", f"{device} exists, but the processor has neither vmx nor svm")
    failed = _read(_verdict(home))
    if failed.startswith(boot_id()):
        return Accelerator("tcg", f"{device} does not boot a VM: {failed.partition(' ')[2].strip()}")
    return Accelerator("kvm", f"{device} is usable and the processor has virtualization")


def condemn(home: Path, why: str) -> None:
    """Remember that KVM does not work, until the host boots again."""
    verdict = _verdict(home)
    verdict.parent.mkdir(parents=True, exist_ok=True)
    line = why.strip().splitlines()[0] if why.strip() else "no output"
    verdict.write_text(f"{boot_id()} {line[:200]}\n", encoding="utf-8")


def programs() -> tuple[str, ...]:
    """Return the names of the programs of QEMU that a VM takes.

    Raises:
        DriverError: We have no machine for this architecture.
    """
    return (f"qemu-system-{architecture()}", DISK_TOOL)


async def find_host(accelerator: str, found: Programs) -> QemuBuild:
    """Ask the QEMU that is found there what it is.

    Raises:
        ToolMissingError: There is none.
        DriverError: It does not answer as QEMU does.
    """
    name = architecture()
    binary, _ = (found.need(program, INSTALL_HINT) for program in programs())
    environment = found.environment()
    said = await run_tool([binary, "--version"], timeout_s=_TOOL_S, env=environment)
    machines = await run_tool([binary, "-machine", "help"], timeout_s=_TOOL_S, env=environment)
    status = Path(binary).stat()
    return QemuBuild(
        binary=binary,
        build=f"{said.stdout.decode(errors='replace').splitlines()[0]} {status.st_size} {status.st_mtime_ns}",
        architecture=name,
        machine=versioned(machines.stdout.decode(errors="replace"), MACHINES[name]),
        accelerator=accelerator,
        cpu=_model() if accelerator != "tcg" else "",
        sandbox=sys.platform == "linux",
    )


def versioned(listing: str, alias: str) -> str:
    """Return the versioned name of a machine type from ``-machine help``.

    Raises:
        DriverError: It isn't there.
    """
    for line in listing.splitlines():
        found = re.match(rf"{re.escape(alias)}\s.*\(alias of (\S+?)\)", line)
        if found is not None:
            return found[1]
    raise DriverError(f"this QEMU has no machine {alias}", detail=listing[:2000])


def _model() -> str:
    """What a virtualized processor's saved state depends on: model, features and the host's kernel."""
    told = _read(Path("/proc/cpuinfo")).splitlines()
    lines = {line for line in told if line.startswith(("model", "flags", "Features"))}
    return hashlib.sha256("\n".join([*sorted(lines), platform.release()]).encode()).hexdigest()[:16]


def _verdict(home: Path) -> Path:
    return home / "cache" / "kvm-failed"


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""
