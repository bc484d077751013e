"""Which configurations an instance may have. What is wrong is told all at once, one problem a line."""

import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Final

from . import MISSING, VERSION
from .errors import LimaError
from .log import LOG, quoted
from .sizes import parse_size

Document = dict[str, Any]

ARCHITECTURES: Final = ("x86_64", "aarch64", "armv7l", "ppc64le", "riscv64", "s390x")
_MOUNT_TYPES: Final = ("reverse-sshfs", "9p", "virtiofs", "wsl2")
_SYSTEM: Final = frozenset(["/", "/bin", "/dev", "/etc", "/home", "/opt", "/sbin", "/tmp", "/usr", "/var"])
_DIGEST: Final = re.compile(r"^(?:sha256:[0-9a-f]{64}|sha384:[0-9a-f]{96}|sha512:[0-9a-f]{128})$")


def check(document: Document, *, warn: bool = False) -> None:
    """Refuse a configuration that is not allowed.

    Raises:
        LimaError: with every problem.
    """
    problems = [problem for rule in _RULES for problem in rule(document)]
    kind = document["vmType"]
    if kind not in ("qemu", "vz", "wsl2"):
        raise LimaError(f"vmType {quoted(kind)} is not a registered driver")
    if kind != "qemu":
        problems.append(f"{MISSING}: vmType {quoted(kind)}")
    if problems:
        raise LimaError("\n".join(problems))
    for number, mount in enumerate(document["mounts"]):
        if warn and not Path(mount["location"]).exists():
            location = quoted(mount["location"])
            LOG.warning(f"field `mounts[{number}].location` refers to a non-existent directory: {location}:")


def _version(document: Document) -> Iterator[str]:
    wanted = document.get("minimumLimaVersion")
    if wanted is None:
        return
    found = re.match(r"^v?(\d+)\.(\d+)\.(\d+)", str(wanted))
    if found is None:
        yield f"field `minimumLimaVersion` must be a semvar value, got {quoted(wanted)}"
    elif tuple(map(int, found.groups())) > tuple(map(int, VERSION.partition("+")[0].split("."))):
        yield f"template requires Lima version {quoted(wanted)}; this is only {quoted(VERSION)}"


def _kind(document: Document) -> Iterator[str]:
    if document["os"] not in ("Linux", "Darwin", "FreeBSD", "Windows"):
        kinds = "[`Linux` `Darwin` `FreeBSD` `Windows`]"
        yield f"field `os` must be one of {kinds}; got {quoted(document['os'])}"
    if document["arch"] not in ARCHITECTURES:
        yield f"field `arch` must be one of [{' '.join(ARCHITECTURES)}]; got {quoted(document['arch'])}"
    shell = document["user"]["shell"]
    if not str(shell).startswith("/"):
        yield f"field `user.shell` must be an absolute path, got {quoted(shell)}"


def _images(document: Document) -> Iterator[str]:
    if not document["images"]:
        yield "field `images` must be set"
    for number, image in enumerate(document["images"]):
        yield from _file(image, f"images[{number}]")
        for part in ("kernel", "initrd"):
            if image.get(part):
                yield from _file(image[part], f"images[{number}].{part}")


def _file(found: Document, field: str) -> Iterator[str]:
    if found["arch"] not in ARCHITECTURES:
        yield f"field `arch` must be one of [{' '.join(ARCHITECTURES)}]; got {quoted(found['arch'])}"
    digest = str(found.get("digest") or "")
    if digest and not _DIGEST.match(digest):
        known = digest.partition(":")[0] in ("sha256", "sha384", "sha512")
        reason = "length" if known else "format"
        yield f"field `{field}.digest` is invalid: {digest}: invalid checksum digest {reason}"


def _sizes(document: Document) -> Iterator[str]:
    for field in ("memory", "disk"):
        try:
            parse_size(document[field])
        except LimaError as error:
            yield f"field `{field}` has an invalid value: {error}"


def _mounts(document: Document) -> Iterator[str]:
    for number, mount in enumerate(document["mounts"]):
        field, location, point = f"mounts[{number}]", mount["location"], mount["mountPoint"]
        if not location.startswith(("/", "~")):
            yield f"field `{field}.location` must be an absolute path, got {quoted(location)}"
        elif Path(location).exists() and not Path(location).is_dir():
            yield f"field `{field}.location` refers to a non-directory path: {quoted(location)}: %!w(<nil>)"
        if point in _SYSTEM:
            yield f"field `{field}.mountPoint` must not be a system path such as /etc or /usr"
        elif point == document["user"]["home"]:
            yield f"field `{field}.mountPoint` is the reserved internal home directory {quoted(point)}"
        if point.startswith("~"):
            yield f"field `{field}.mountPoint` must not start with `~`"


def _port(document: Document) -> Iterator[str]:
    port = document["ssh"]["localPort"]
    if port != 0:
        yield from _port_number("ssh.localPort", port)


def _port_number(field: str, port: int) -> Iterator[str]:
    if port < 0:
        yield f"field `{field}` must be > 0"
    elif port == 0:
        yield f"field `{field}` must be set"
    elif port == 22:
        yield f"field `{field}` must not be 22"
    elif port > 65535:
        yield f"field `{field}` must be < 65536"


def _mount_type(document: Document) -> Iterator[str]:
    kind = document["mountType"]
    if kind is not None and kind not in _MOUNT_TYPES:
        first, second, third, fourth = map(quoted, _MOUNT_TYPES)
        yield f"field `mountType` must be {first} or {second} or {third}, or {fourth}, got {quoted(kind)}"


def _scripts(document: Document) -> Iterator[str]:
    for number, step in enumerate(document["provision"]):
        if step["mode"] not in ("system", "user"):
            yield f"{MISSING}: provision[{number}].mode {quoted(step['mode'])}"
        elif not step["script"]:
            yield f"field `provision[{number}].script` must not be empty"
    for number, probe in enumerate(document["probes"]):
        if not probe["script"].startswith("#!"):
            yield f"field `probe[{number}].script` must start with a '#!' line"


def _rest(document: Document) -> Iterator[str]:
    if document["hostResolver"]["enabled"] and document["dns"]:
        yield "field `dns` must be empty when field `HostResolver.Enabled` is true"
    if not document["user"]["passwordlessSudo"] and not document["plain"]:
        yield "`user.passwordlessSudo: false` requires `plain: true`"
    for name in ("networks", "copyToHost"):
        if document[name]:
            yield f"{MISSING}: {name}"


_RULES: Final[tuple[Callable[[Document], Iterator[str]], ...]] = (
    _version,
    _kind,
    _images,
    _sizes,
    _mounts,
    _port,
    _mount_type,
    _scripts,
    _rest,
)
