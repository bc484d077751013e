"""What a host must have for Lima: `limactl` of a version that we know, and a user whom it does not refuse."""

import re
from pathlib import Path
from typing import Final

from claude_vm.drivers.api import Diagnostic, Inspection
from claude_vm.drivers.errors import DriverError
from claude_vm.drivers.prerequisites import Host, hypervisor, template_tools
from claude_vm.drivers.process import run_tool

LIMACTL: Final = "limactl"

OLDEST: Final = (2, 1, 2)
"""The oldest version whose files and arguments are those that the driver knows.

An instance's disk is one file, ``disk``, since 2.1.0; before, it was a copy of its image and an overlay of
that. It has the name by which a running QEMU is told to grow it since 2.1.2.
Source: Lima, `pkg/limatype/filenames`, `pkg/driver/qemu`.
"""

_ANSWER_S: Final = 20.0
_ROOT_HINT: Final = "run claude-vm as a normal user, or with `--driver qemu`"


async def inspect(host: Host) -> Inspection:
    """Look for Lima, and ask it for its version.

    Takes up to `_ANSWER_S` seconds, where `limactl` hangs.

    Raises:
        Nothing: what is wrong is a problem.
    """
    problems = lacking(host)
    version = ""
    path = host.which(LIMACTL)
    if path is not None and host.uid != 0:
        version, problem = await _version(host, path)
        problems += [problem] if problem is not None else []
    if host.system != "darwin":  # where Lima has the system's own hypervisor, and images of its own
        problems += hypervisor(host)
        problems += [_imported(problem) for problem in template_tools(host)]
    return Inspection(path is not None, version, tuple(problems))


def lacking(host: Host) -> list[Diagnostic]:
    """Return what keeps `limactl` from running. Root is not even told its version."""
    found = []
    if host.which(LIMACTL) is None:
        found.append(Diagnostic(host.absence(LIMACTL), install_hint(host)))
    if host.uid == 0:
        found.append(Diagnostic("Lima refuses to run as root", _ROOT_HINT))
    return found


def _imported(problem: Diagnostic) -> Diagnostic:
    """Return what it means to Lima that no image can be built here."""
    what = (
        "no guest image can be built here: `claude-vm setup` imports `template:debian-13`, which takes longer"
    )
    return Diagnostic(what, problem.fix, fatal=False)


def install_hint(host: Host) -> str:
    """Return how Lima is installed. No distribution's own packages have it."""
    if host.system == "darwin" or host.which("brew") is not None:
        return "brew install lima"
    return (
        "unpack a release of Lima into /usr/local (https://lima-vm.io/docs/installation/),"
        " or with Homebrew: brew install lima"
    )


def parse_version(text: str) -> tuple[int, ...] | None:
    """Return the numbers of ``limactl version 2.2.0-5-gabcdef``, or None for what is none."""
    found = re.search(r"\bversion v?(\d{1,6})\.(\d{1,6})(?:\.(\d{1,6}))?", text)
    return None if found is None else tuple(int(part) for part in found.groups() if part is not None)


_proved: Final[set[tuple[str, int, int]]] = set()
"""Programs that work: path, time of change, size. One that did not is asked again: it may have been late."""


async def works(host: Host, path: str) -> bool:
    """Tell whether a `limactl` is of a version that the driver knows. Each file that is, is asked once."""
    try:
        status = Path(path).stat()
    except OSError:
        return False
    file = (path, status.st_mtime_ns, status.st_size)
    if file not in _proved:
        _, problem = await _version(host, path)
        if problem is not None:
            return False
        _proved.add(file)
    return True


async def _version(host: Host, path: str) -> tuple[str, Diagnostic | None]:
    try:
        # Where it lies is our choice: a user's own Lima may be anywhere, and is not looked at.
        done = await run_tool([path, "--version"], timeout_s=_ANSWER_S, env=host.environment)
    except DriverError as error:
        return "", Diagnostic(f"{path} does not work: {error}", f"reinstall it: {install_hint(host)}")
    text = done.stdout.decode(errors="replace").strip()[:200]
    numbers = parse_version(text)
    if numbers is None:
        return "", Diagnostic(
            f"{path} does not say its version: '{text}'", f"reinstall it: {install_hint(host)}"
        )
    return ".".join(map(str, numbers)), too_old(host, path, numbers)


def too_old(host: Host, path: str, numbers: tuple[int, ...]) -> Diagnostic | None:
    """Return what is wrong with a `limactl` of this version, if something is."""
    if numbers >= OLDEST:
        return None
    shown, oldest = (".".join(map(str, version)) for version in (numbers, OLDEST))
    upgrade = install_hint(host).replace("brew install", "brew upgrade")
    return Diagnostic(f"{path} is version {shown}; {oldest} or newer is needed", upgrade)
