"""``create``: an instance's folder, its files and its disk. ``start`` makes what is missing, likewise."""

import hashlib
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

from . import MISSING, VERSION, cidata, document, listing, names, validation
from .errors import LimaError, NotFoundError, os_error_text
from .instance import Instance, inspect
from .log import LOG, quoted
from .sizes import format_size, parse_size


def load_or_create(argument: str, name: str, *, create_only: bool, terminal: bool, prefix: Path) -> Instance:
    """Return the instance that a command line means: an existing one, or a new one from a file.

    Raises:
        LimaError: it can't be found or made.
    """
    if name:
        names.check_name(name)
    if argument == "-" and not name:
        raise LimaError("must pass instance name with --name when reading template from stdin")
    if not argument or names.is_name(argument):
        found, data = _by_name(argument, name, create_only=create_only, prefix=prefix)
        if found is not None:
            return found
        name = argument or name or "default"
    else:
        data = _read(argument, prefix)
        name = name or _name_of(argument)
        names.check_name(name)
        if create_only and _exists(name):
            raise LimaError(f"instance {quoted(name)} already exists")
    data = document.embed(data, _locator(argument))
    if terminal and argument != "-":
        raise LimaError(f"{MISSING}: a menu; use --tty=false")
    document.warn_of_system(data)
    LOG.info("Terminal is not available, proceeding without opening an editor")
    return _create(name, data)


def prepare(found: Instance, prefix: Path) -> None:
    """Make an instance's disk, kernel and initrd, where they are not there yet.

    Raises:
        LimaError: something that the instance needs can't be had.
    """
    settings = found.settings()
    if not settings["plain"]:
        _need_guest_agent(settings["arch"], prefix)
    validation.check(settings, warn=True)
    folder = found.folder
    _migrate(folder)
    if not (folder / "image").exists() and not (folder / "disk").exists():
        _fetch_first(settings, folder)
    if not (folder / "disk").exists():
        _accept(folder / "image")
        (folder / "image").rename(folder / "disk")
    _resize(found)


def _by_name(argument: str, name: str, *, create_only: bool, prefix: Path) -> tuple[Instance | None, bytes]:
    if argument and name and argument != name:
        raise LimaError(
            f"instance name {quoted(argument)} and CLI flag --name={quoted(name)} "
            "cannot be specified together"
        )
    wanted = argument or name or "default"
    try:
        found = inspect(wanted)
    except NotFoundError:
        if argument and argument != "default":
            LOG.info(
                f"Creating an instance {quoted(wanted)} from template:default (Not from template:{wanted})"
            )
            LOG.warning(
                f"This form is deprecated. Use `limactl create --name={wanted} template:default` instead"
            )
        return None, listing.read_template("default", prefix)
    problem = "\n".join(found.errors)
    if problem:
        LOG.error(f'Instance "{wanted}" has configuration errors', error=problem)
    if found.config is None:
        raise LimaError(f'instance "{wanted}" has configuration errors: {problem}')
    if create_only:
        raise LimaError(f"instance {quoted(wanted)} already exists")
    LOG.info(f"Using the existing instance {quoted(wanted)}")
    return found, b""


def _exists(name: str) -> bool:
    try:
        inspect(name)
    except NotFoundError:
        return False
    return True


def _read(argument: str, prefix: Path) -> bytes:
    if argument == "-":
        return sys.stdin.buffer.read()
    if argument.startswith("template:"):
        return listing.read_template(argument.removeprefix("template:").removeprefix("//"), prefix)
    if "://" in argument and not argument.startswith("file://"):
        raise LimaError(f"{MISSING}: templates from URLs")
    path = Path(argument.removeprefix("file://")).absolute()
    try:
        return path.read_bytes()
    except OSError as error:
        raise LimaError(os_error_text(error, "open")) from None


def _locator(argument: str) -> str:
    """Return what messages call the file that a new instance comes from."""
    if argument == "-" or argument.startswith("template:"):
        return argument
    return str(Path(argument.removeprefix("file://")).absolute())


def _name_of(argument: str) -> str:
    name = argument.rpartition("/")[2].removeprefix("template:").lower()
    return name.removesuffix(".yaml").removesuffix(".yml")


def _create(name: str, data: bytes) -> Instance:
    folder = names.instance_dir(name)
    if not data:
        raise LimaError("got empty instConfig")
    names.check_socket_length(name)
    if folder.exists():
        raise LimaError(f"instance {quoted(name)} already exists ({quoted(folder)})")
    path = folder / "lima.yaml"
    validation.check(document.load(data, path))
    names.home().mkdir(mode=0o700, parents=True, exist_ok=True)
    folder.mkdir(mode=0o700)
    try:
        path.write_bytes(data)
        version = folder / "lima-version"
        version.write_text(VERSION, encoding="utf-8")
        version.chmod(0o444)
        found = inspect(name)
        validation.check(found.settings(), warn=True)
        cidata.write_cloud_config(found)
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        raise
    return found


def _need_guest_agent(architecture: str, prefix: Path) -> None:
    agent = prefix / "share" / "lima" / f"lima-guestagent.Linux-{architecture}"
    if not agent.exists() and not agent.with_name(agent.name + ".gz").exists():
        raise LimaError(
            f"guest agent binary could not be found for Linux-{architecture}: file does not exist "
            "(Hint: try installing `lima-additional-guestagents` package)"
        )
    raise LimaError(f"{MISSING}: guests with Lima's agent; use `plain: true`")


def _migrate(folder: Path) -> None:
    """Let an instance of an older Lima have its disk under today's name."""
    if not (folder / "disk").exists() and (folder / "diffdisk").exists():
        LOG.info("Creating symlink `disk` -> `diffdisk`")
        (folder / "disk").symlink_to("diffdisk")


def _fetch_first(settings: dict[str, Any], folder: Path) -> None:
    """Copy the first image that can be had, with its kernel and initrd."""
    problems = []
    for image in settings["images"]:
        try:
            if image["arch"] != settings["arch"]:
                continue
            _fetch(folder / "image", image, "the image")
            if kernel := image.get("kernel"):
                _fetch(folder / "kernel", kernel, "the kernel")
                if kernel.get("cmdline"):
                    (folder / "kernel.cmdline").write_text(kernel["cmdline"], encoding="utf-8")
            if initrd := image.get("initrd"):
                _fetch(folder / "initrd", initrd, "the initrd")
        except LimaError as error:
            problems.append(str(error))
            continue
        return
    if problems:
        raise LimaError("\n".join(problems))
    skipped = (
        f"skipped to download: {quoted(i['location'])}: unsupported arch: {quoted(i['arch'])}"
        for i in settings["images"]
    )
    raise LimaError("[" + " ".join(skipped) + "]")


def _fetch(target: Path, file: dict[str, Any], description: str) -> None:
    location, digest = str(file["location"]), str(file.get("digest") or "")
    LOG.info(f"Attempting to download {description}", location=location, arch=file["arch"], digest=digest)
    if "://" in location and not location.startswith("file://"):
        raise LimaError(f"failed to download {quoted(location)}: {MISSING}: downloads")
    source = Path(location.removeprefix("file://")).expanduser()
    try:
        if digest:
            _check_digest(source, digest)
        shutil.copyfile(source, target)
    except LimaError as error:
        raise LimaError(f"failed to download {quoted(location)}: {error}") from None
    except OSError as error:
        reason = f"failed to open source {source}: {os_error_text(error, 'open')}"
        raise LimaError(f"failed to download {quoted(location)}: {reason}") from None
    LOG.info(f"Downloaded {description} from {quoted(location)}")


def _check_digest(source: Path, expected: str) -> None:
    algorithm = expected.partition(":")[0]
    with source.open("rb") as file:
        actual = f"{algorithm}:{hashlib.file_digest(file, algorithm).hexdigest()}"
    if actual != expected:
        raise LimaError(f"expected digest {quoted(expected)}, got {quoted(actual)}")


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


def _accept(path: Path) -> None:
    """Refuse images that read other files.

    Raises:
        LimaError: it is one.
    """
    info = image_info(path)
    backing = info.get("backing-filename") or info.get("full-backing-filename")
    if backing:
        reason = f"base disk ({quoted(path)}) must not have a backing file ({quoted(backing)})"
        raise LimaError(f"file {quoted(path)} is not acceptable as a disk image: {reason}")


def _resize(found: Instance) -> None:
    """Make the disk as large as the configuration wants it. An overlay of another instance's disk is fine."""
    disk = found.folder / "disk"
    wanted = parse_size(found.settings()["disk"])
    size = _virtual_size(disk)
    if size == wanted:
        return
    LOG.info(f"Resize instance {found.name}'s disk from {format_size(size)} to {format_size(wanted)}")
    if wanted < size:
        raise LimaError("disk shrinking is not supported")
    kind = image_info(disk)["format"]
    subprocess.run(["qemu-img", "resize", "-q", "-f", kind, disk, str(wanted)], check=True)


def _virtual_size(disk: Path) -> int:
    """Return the size of a disk as its guest sees it, without a program's start."""
    with disk.open("rb") as file:
        head = file.read(32)
    if head[:4] == b"QFI\xfb":
        return int.from_bytes(head[24:32], "big")
    return os.stat(disk).st_size  # noqa: PTH116  # follows the link of an older layout
