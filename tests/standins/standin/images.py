"""Disk images: what they are, whether they may be used, and their size."""

import json
import subprocess
from pathlib import Path
from typing import Any

from .errors import LimaError
from .log import LOG, quoted
from .sizes import format_size

_QCOW2 = b"QFI\xfb"


def image_info(path: Path) -> dict[str, Any]:
    """Return what qemu-img says of an image, its backing file not opened.

    Raises:
        LimaError: it is no image.
    """
    command = ["qemu-img", "info", "--output=json", "--force-share", str(path)]
    done = subprocess.run(command, capture_output=True, check=False)
    if done.returncode:
        words = "[" + " ".join(command) + "]"
        outputs = f"stdout={quoted(done.stdout.decode())}, stderr={quoted(done.stderr.decode())}"
        raise LimaError(f"failed to run {words}: {outputs}: exit status {done.returncode}")
    found = json.loads(done.stdout)
    assert isinstance(found, dict)
    return found


def check_acceptable(path: Path) -> None:
    """Refuse images that read other files.

    Raises:
        LimaError: it is one.
    """
    info = image_info(path)
    backing = info.get("backing-filename") or info.get("full-backing-filename")
    if backing:
        reason = f"base disk ({quoted(path)}) must not have a backing file ({quoted(backing)})"
        raise LimaError(f"file {quoted(path)} is not acceptable as a disk image: {reason}")


def resize(name: str, disk: Path, wanted: int) -> None:
    """Make an instance's disk as large as it shall be. An overlay of another one's is fine.

    Raises:
        LimaError: it is larger already.
    """
    size = virtual_size(disk)
    if size == wanted:
        return
    LOG.info(f"Resize instance {name}'s disk from {format_size(size)} to {format_size(wanted)}")
    if wanted < size:
        raise LimaError("disk shrinking is not supported")
    kind = image_info(disk)["format"]
    subprocess.run(["qemu-img", "resize", "-q", "-f", kind, disk, str(wanted)], check=True)


def virtual_size(disk: Path) -> int:
    """Return the size in bytes of a disk as its guest sees it, without a program's start."""
    with disk.open("rb") as file:
        head = file.read(32)
    return int.from_bytes(head[24:32], "big") if head[:4] == _QCOW2 else disk.stat().st_size


def image_format(disk: Path) -> str:
    """Tell qcow2 from everything else."""
    with disk.open("rb") as file:
        return "qcow2" if file.read(4) == _QCOW2 else "raw"


def copy_file(source: Path, target: Path) -> None:
    """Copy one file: by sharing its blocks where the file system can, and with its holes."""
    subprocess.run(["cp", "--reflink=auto", "--sparse=auto", source, target], check=True)
