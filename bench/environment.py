"""Where a run takes place: the machine, the accelerator, the versions."""

import contextlib
import os
import platform
import shutil
import subprocess
from pathlib import Path

import psutil

from claude_vm.bench.errors import BenchError
from claude_vm.bench.records import Environment
from claude_vm.context.errors import ProjectError
from claude_vm.context.project import find_project, project_folders
from claude_vm.drivers.programs import guarding, search
from claude_vm.supervisor.daemon.errors import CommandError
from claude_vm.supervisor.daemon.state.known_folders import KnownFolders
from claude_vm.supervisor.wire import paths
from claude_vm.supervisor.wire.version import VERSION


def environment(
    *, accelerator: str, reason: str, template: str = "", load: tuple[float, float] = (0.0, 0.0)
) -> Environment:
    """Describe this machine."""
    return Environment(
        machine=platform.machine(),
        processor=_processor(),
        cpus=os.cpu_count() or 1,
        memory_mib=int(psutil.virtual_memory().total >> 20),
        system=f"{platform.system()} {platform.release()}",
        accelerator=accelerator,
        accelerator_reason=reason,
        versions={
            "claude-vm": VERSION,
            "Python": platform.python_version(),
            **_tool("OpenSSH", "ssh", "-V"),
            **_tool("QEMU", f"qemu-system-{platform.machine()}", "--version"),
        },
        template=template,
        load=load,
    )


def leave_out_of_path(cwd: Path) -> None:
    """Take out of this process's ``PATH`` what guests can write to: the bench starts what it finds there.

    Raises:
        BenchError: What guests could write to is not known.
    """
    shared: list[Path] = []
    with contextlib.suppress(ProjectError):
        shared += project_folders(find_project(cwd))
    places = KnownFolders(Path(paths.home()))
    try:
        guard = guarding(shared, places.known().guard)
    except CommandError as error:
        raise BenchError(error.message, error.hint) from error
    finally:
        places.close()
    os.environ["PATH"] = search(os.environ.get("PATH", os.defpath), lambda: guard).path


def load_now() -> float:
    """Return the load average of the last minute."""
    return os.getloadavg()[0]


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(errors="replace").splitlines()
    except OSError:
        return platform.processor() or "processor"
    return next(
        (line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "processor"
    )


def _tool(name: str, program: str, flag: str) -> dict[str, str]:
    if shutil.which(program) is None:
        return {}
    done = subprocess.run([program, flag], capture_output=True, check=False, stdin=subprocess.DEVNULL)
    said = (done.stdout or done.stderr).decode(errors="replace").splitlines()[:1]
    words = said[0].split() if said else []
    if name == "QEMU":
        return {name: words[3] if len(words) > 3 else "?"}
    return {name: words[0].partition("_")[2].rstrip(",") if words else "?"}
