"""``create``: an instance's folder, its files and its disk. ``start`` makes what is missing, likewise."""

import hashlib
import shutil
import sys
from pathlib import Path
from typing import Any

from . import MISSING, VERSION, cidata, document, listing, names, validation
from .errors import LimaError, NotFoundError, os_error_text
from .images import check_acceptable, copy_file, resize
from .instance import Instance, inspect
from .log import LOG, quoted
from .sizes import parse_size


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
    data = document.embed(data, _locator(argument), lambda location: _read(location, prefix))
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
        check_acceptable(folder / "image")
        (folder / "image").rename(folder / "disk")
    resize(found.name, folder / "disk", parse_size(settings["disk"]))


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
        source.open("rb").close()
        copy_file(source, target)
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
