"""A VM's disk: what it doesn't have itself, it takes from another one."""

from pathlib import Path

from claude_vm.drivers.process import run_tool
from claude_vm.drivers.programs import Programs
from claude_vm.drivers.vm.accelerator import DISK_TOOL, INSTALL_HINT


async def make_overlay(
    programs: Programs, disk: Path, backing: Path, backing_format: str, size_gib: int | None = None
) -> None:
    """Make a disk that takes what it doesn't have from `backing`, in place of a former one.

    Raises:
        ToolMissingError: There is no program for it.
        DriverError: The disk is full, or the backing file is gone.
    """
    program = programs.need(DISK_TOOL, INSTALL_HINT)
    disk.unlink(missing_ok=True)
    size = [] if size_gib is None else [f"{size_gib}G"]
    argv = [
        program,
        *("create", "-q", "-f", "qcow2", "-F", backing_format, "-b"),
        str(backing),
        str(disk),
        *size,
    ]
    await run_tool(argv, timeout_s=60, env=programs.environment())
