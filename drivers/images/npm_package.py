"""What an npm registry says about Claude Code's packages, and what is in their tarballs.

Everything here was sent by somebody else: names, numbers and sizes are checked before they are used in a
path, an address or a read.
"""

import base64
import binascii
import gzip
import hashlib
import io
import re
import struct
import tarfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlsplit

import msgspec

from claude_vm.drivers.errors import BadImageError, DownloadError, DriverError
from claude_vm.drivers.images.fetch import Fetcher
from claude_vm.drivers.images.npm_config import NpmRegistry

MAIN_PACKAGE = "@anthropic-ai/claude-code"
MAX_METADATA_BYTES = 32 * 1024 * 1024
MAX_PROGRAM_BYTES = 1536 * 1024 * 1024

_ACCEPT = "application/vnd.npm.install-v1+json; q=1.0, application/json; q=0.8"
_VERSION = re.compile(r"(\d{1,9})\.(\d{1,9})\.(\d{1,9})(?:-([0-9A-Za-z.-]{1,40}))?")
_CHUNK = 1024 * 1024
_ELF_MACHINES = {"x64": 62, "arm64": 183}

VersionKey = tuple[int, int, int, int, tuple[tuple[int, int, str], ...]]


class Package(msgspec.Struct, frozen=True):
    """One version of a platform package. `integrity` is the published text, `sha512` its 64 bytes."""

    version: str
    tarball: str
    integrity: str
    sha512: bytes


def parse_version(text: str) -> VersionKey | None:
    """Return a key that sorts versions by age, or None where the text is none.

    Source: Semantic Versioning 2.0.0, section 11 (a pre-release is older than its release).
    """
    if (match := _VERSION.fullmatch(text)) is None:
        return None
    major, minor, patch, pre = match.groups()
    parts = tuple((0, int(p), "") if p.isdigit() else (1, 0, p) for p in (pre or "").split(".") if p)
    return int(major), int(minor), int(patch), int(pre is None), parts


def find_package(fetcher: Fetcher, registry: NpmRegistry, wanted: str, platform: str) -> Package:
    """Return the package of a version (or dist-tag) for a platform such as ``linux-x64``.

    The main package says which version of the platform package belongs to it. A registry that carries the
    platform package alone is fine too.

    Raises:
        DownloadError: The registry does not answer.
        BadImageError: Its answer makes no sense, or publishes no SHA-512.
        DriverError: There is no such version, or none for this platform.
    """
    name = f"{MAIN_PACKAGE}-{platform}"
    main = _document(fetcher, registry, MAIN_PACKAGE)
    version = None
    if main is not None:
        release = _manifest(main, wanted)
        if release is None:
            raise DriverError(
                f"there is no Claude Code {wanted} in the registry", hint="leave the version out"
            )
        version = _text(_mapping(release, "optionalDependencies"), name)
        if version is None:
            raise DriverError(
                f"Claude Code {_text(release, 'version')} has no package for {platform}",
                hint="name another version, or build the template without Claude Code",
            )
    document = _document(fetcher, registry, name)
    if document is None:
        raise DriverError(
            f"the registry has no package {name}", hint="a mirror may lag behind: try again later"
        )
    manifest = _manifest(document, version or wanted)
    if manifest is None:
        raise DriverError(
            f"the registry has no {name} {version or wanted}", hint="a mirror may lag behind: try again later"
        )
    return _package(manifest, name, registry)


def _document(fetcher: Fetcher, registry: NpmRegistry, name: str) -> dict[str, Any] | None:
    """Return what the registry knows about a package, or None when it knows none of that name."""
    url = registry.address + quote(name, safe="@")
    try:
        data = fetcher.text(url, accept=_ACCEPT, max_bytes=MAX_METADATA_BYTES)
    except DownloadError as error:
        if error.status == 404:
            return None
        raise
    try:
        found = msgspec.json.decode(data)
    except (msgspec.DecodeError, RecursionError, UnicodeDecodeError):
        found = None
    if not isinstance(found, dict) or not isinstance(found.get("versions"), dict):
        raise BadImageError(f"the registry's answer about {name} is not an npm package description")
    return found


def _manifest(document: dict[str, Any], wanted: str) -> dict[str, Any] | None:
    """Return one version's part of a description; `wanted` is a version or a dist-tag."""
    tag = _text(_mapping(document, "dist-tags"), wanted)
    found = document["versions"].get(tag or wanted)
    return found if isinstance(found, dict) else None


def _mapping(document: dict[str, Any], key: str) -> dict[str, Any]:
    found = document.get(key)
    return found if isinstance(found, dict) else {}


def _text(document: dict[str, Any], key: str) -> str | None:
    found = document.get(key)
    return found if isinstance(found, str) else None


def _package(manifest: dict[str, Any], name: str, registry: NpmRegistry) -> Package:
    """Check one version's description."""
    version = _text(manifest, "version") or ""
    if parse_version(version) is None:
        raise BadImageError(f"the registry's description of {name} has no usable version")
    dist = _mapping(manifest, "dist")
    integrity = _text(dist, "integrity") or ""
    sha512 = _sha512(integrity)
    if sha512 is None:
        raise BadImageError(
            f"the registry publishes no SHA-512 for {name} {version}; it is not used without one",
            hint="use a registry that publishes dist.integrity",
        )
    # npm, too, asks the configured registry where a mirror's descriptions still name the original host.
    own = f"{registry.address}{name}/-/{name.rpartition('/')[2]}-{version}.tgz"
    published = _text(dist, "tarball") or own
    tarball = published if urlsplit(published).netloc == urlsplit(registry.address).netloc else own
    return Package(version, tarball, integrity[:512], sha512)


def _sha512(integrity: str) -> bytes | None:
    """Return the SHA-512 of a Subresource Integrity text, or None.

    Source: W3C Subresource Integrity, "The integrity attribute" (space-separated, options after ``?``).
    """
    for part in integrity.split():
        algorithm, dash, rest = part.partition("-")
        if algorithm == "sha512" and dash:
            try:
                digest = base64.b64decode(rest.partition("?")[0], validate=True)
            except (binascii.Error, ValueError):
                continue
            if len(digest) == 64:
                return digest
    return None


class _Bounded(io.RawIOBase):
    """A stream that ends with an error after so many bytes: what a tarball may unpack to."""

    def __init__(self, inner: gzip.GzipFile, limit: int) -> None:
        self._inner = inner
        self._left = limit

    def read(self, size: int = -1, /) -> bytes:
        """Return at most `size` bytes, at most 1 MiB at once."""
        data = self._inner.read(min(size, _CHUNK) if size >= 0 else _CHUNK)
        self._left -= len(data)
        if self._left < 0:
            raise BadImageError("Claude Code's package is too large when unpacked; it was not used")
        return data


def extract_program(
    tarball: Path, member: str, target: Path, architecture: str, *, each: Callable[[], None]
) -> tuple[str, int]:
    """Write one regular file of a tarball to a new file (0755); return its SHA-512 in hex and its size.

    Nothing else of the tarball is unpacked, no name, owner or mode of it is used. `each` is called between
    the pieces and may raise. On failure the target may be half written.

    Raises:
        BadImageError: No such regular file, not a tarball, too large, no Linux program of this architecture.
        OSError: The target can't be written.
    """
    digest = hashlib.sha512()
    size = 0
    try:
        with gzip.open(tarball, "rb") as unpacked:
            stream = _Bounded(unpacked, MAX_PROGRAM_BYTES)
            with tarfile.open(fileobj=stream, mode="r|", bufsize=tarfile.BLOCKSIZE * 128) as archive:
                source = _find(archive, member, each)
                with target.open("xb") as file:
                    while block := source.read(_CHUNK):
                        if not size:
                            _check_elf(block, architecture)
                        each()
                        digest.update(block)
                        file.write(block)
                        size += len(block)
    except (tarfile.TarError, gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise BadImageError("Claude Code's package is not a valid tarball", detail=str(error)) from error
    if not size:
        raise BadImageError("the program in Claude Code's package is empty")
    target.chmod(0o755)
    return digest.hexdigest(), size


def _find(archive: tarfile.TarFile, member: str, each: Callable[[], None]) -> "io.BufferedReader":
    """Return the opened regular file of that name."""
    for info in archive:
        each()
        if info.name.removeprefix("./") != member:
            continue
        if not info.isreg() or info.issparse() or info.size > MAX_PROGRAM_BYTES:
            break
        if (source := archive.extractfile(info)) is not None:
            return source  # type: ignore[return-value]  # typeshed says IO[bytes]
    raise BadImageError(f"Claude Code's package has no program {member}")


def _check_elf(block: bytes, architecture: str) -> None:
    """Raise unless the bytes begin a Linux program for this architecture."""
    machine = struct.unpack_from("<H", block, 18)[0] if len(block) >= 20 and block[:4] == b"\x7fELF" else None
    if machine != _ELF_MACHINES[architecture]:
        raise BadImageError(f"the program in Claude Code's package is not a Linux program for {architecture}")
