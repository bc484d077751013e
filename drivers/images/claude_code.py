"""Claude Code for the guest: the platform package of ``@anthropic-ai/claude-code``, checked and cached.

The package for a platform holds one program, ``package/claude``, which needs no Node. On disk:

    <cache>/claude-code/<version>-<architecture>/claude        the program, 0755
    <cache>/claude-code/<version>-<architecture>/claude.json   what it was made from (`_Record`)
    <cache>/claude-code/.part-*                                a download under way, or what a kill left of it

A folder appears by one rename, after the tarball's SHA-512 was compared with the one that the registry
publishes; before that nothing of the tarball is looked at. One process at a time works in the folder (a file
lock), the others wait and then find what they need.
"""

import errno
import hashlib
import platform
import re
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import anyio.from_thread
import msgspec
from anyio.to_thread import run_sync

from claude_vm.drivers.api import Phase, Progress
from claude_vm.drivers.directories import remove_tree
from claude_vm.drivers.errors import BadImageError, DownloadError, DriverError, words_of
from claude_vm.drivers.images.fetch import Fetcher
from claude_vm.drivers.images.lock import hold
from claude_vm.drivers.images.npm_config import find_registry, without_credentials
from claude_vm.drivers.images.npm_package import Package, extract_program, find_package, parse_version
from claude_vm.drivers.images.phases import ImagePhase
from claude_vm.drivers.programs import Programs

MAX_TARBALL_BYTES = 768 * 1024 * 1024
"""Largest tarball that is accepted; that of 2.1 has about 80 MB."""

_KEPT_VERSIONS = 3
_ARCHITECTURES = {"x86_64": "x64", "amd64": "x64", "x64": "x64", "aarch64": "arm64", "arm64": "arm64"}
_NEEDED = re.compile(r"[0-9A-Za-z][0-9A-Za-z.+-]{0,63}")


class ClaudeCode(msgspec.Struct, frozen=True):
    """A Claude Code program for Linux. `sha512` is the program's own, in hex; `binary` lies in the cache."""

    version: str
    binary: Path
    sha512: str


class _Record(msgspec.Struct, frozen=True):
    """What lies beside a cached program. `integrity` is the tarball's published SRI text."""

    version: str
    architecture: str
    integrity: str
    sha512: str
    size: int


async def remove_downloads(cache: Path) -> list[str]:
    """Remove the cached programs, unless the cache is somebody else's (a link); return their names.

    Templates have copies of their own.

    Raises:
        DriverError: One can't be removed.
    """
    folder = cache / "claude-code"
    if cache.is_symlink() or not folder.is_dir():
        return []
    async with hold(folder / ".lock"):
        found = sorted(path for path in folder.iterdir() if path.is_dir())
        for path in found:
            with _disk_errors(folder):
                await run_sync(remove_tree, path)
    return [f"Claude Code {path.name}" for path in found]


async def ensure_claude_code(
    cache: Path,
    progress: Progress,
    *,
    environ: Mapping[str, str],
    programs: Programs | None = None,
    version: str | None = None,
    architecture: str | None = None,
) -> ClaudeCode:
    """Return a verified Claude Code program for the guest, from the cache or the npm registry.

    `version` is a version or a dist-tag; None means the newest release. A version that is cached needs no
    network; where the registry can't be reached, the newest cached one is taken and `progress` says so.
    `architecture` is that of the guest (``x86_64`` or ``aarch64``, default: the host's). `environ` is the
    client's environment: npm settings, proxies, certificates; `programs` are where npm is looked for.
    Cancellation leaves no partial file.

    Raises:
        DownloadError: The registry can't be reached and nothing is cached.
        BadImageError: What the registry sent is not what it published, or no program for this platform.
        DriverError: No registry is configured, no such version or platform, or the disk is full.
    """
    arch = _architecture(architecture or platform.machine())
    programs = None if programs is None else programs.settled()
    if version is not None and not _NEEDED.fullmatch(version):
        raise DriverError(f"'{version}' is not a version of Claude Code", hint="a version looks like 2.1.0")
    folder = cache / "claude-code"
    with _disk_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
    async with hold(folder / ".lock", lambda: progress(ImagePhase.CLAUDE, "waiting for another download")):
        if version is not None and parse_version(version) is not None:
            cached = await run_sync(_load, folder, version, arch)
            if cached is not None:
                return cached
        try:
            package, fetcher = await run_sync(
                _look_up, environ, programs, version or "latest", arch, abandon_on_cancel=True
            )
        except DriverError as error:
            # Only what a missing network or configuration explains: a registry that lies is an error.
            fallback = None
            if version is None and (isinstance(error, DownloadError) or type(error) is DriverError):
                fallback = await run_sync(_newest_cached, folder, arch)
            if fallback is None:
                raise
            progress(ImagePhase.CLAUDE, f"{error.message}: taking {fallback.version} from the cache")
            return fallback
        cached = await run_sync(_load, folder, package.version, arch)
        if cached is not None:
            return cached
        found = await run_sync(_install, folder, package, arch, fetcher, progress)
        await run_sync(_prune, folder, arch, package.version)
        return found


def _architecture(machine: str) -> str:
    """Return npm's name of an architecture."""
    if arch := _ARCHITECTURES.get(machine.lower()):
        return arch
    raise DriverError(f"there is no Claude Code for Linux on {machine}", hint="x86_64 and aarch64 hosts work")


@contextmanager
def _disk_errors(folder: Path) -> Iterator[None]:
    """Turn an OSError of a file operation into a `DriverError` that names the folder."""
    try:
        yield
    except OSError as error:
        hint = f"check who owns {folder}"
        if error.errno in {errno.ENOSPC, errno.EDQUOT}:
            hint = f"Claude Code needs 1 GB in {folder}: free some, or move CLAUDE_VM_HOME"
        raise DriverError(f"Claude Code can't be stored: {words_of(error)}", hint=hint) from error


def _look_up(
    environ: Mapping[str, str], programs: Programs | None, wanted: str, arch: str
) -> tuple[Package, Fetcher]:
    """Ask the registry for the package. Nothing is written."""
    registry = find_registry(environ, programs)
    fetcher = Fetcher(registry, environ)
    try:
        return find_package(fetcher, registry, wanted, f"linux-{arch}"), fetcher
    except DriverError as error:
        if not error.detail:
            error.detail = f"registry {without_credentials(registry.address)}, named by {registry.named_by}"
        raise


def _install(folder: Path, package: Package, arch: str, fetcher: Fetcher, progress: Progress) -> ClaudeCode:
    """Download, verify, extract, rename. Runs in a worker thread that notices its task's cancellation."""
    for leftover in folder.glob(".part-*"):  # the lock is ours: nobody is working on it
        shutil.rmtree(leftover, ignore_errors=True)
    with _disk_errors(folder), tempfile.TemporaryDirectory(prefix=".part-", dir=folder) as name:
        work = Path(name)
        tarball = work / "package.tgz"
        _tell(progress, ImagePhase.DOWNLOAD, package.version)
        _download(package, tarball, fetcher, partial(_tell, progress, ImagePhase.DOWNLOAD))
        _tell(progress, ImagePhase.UNPACK, package.version)
        ready = work / "ready"
        ready.mkdir()
        sha512, size = extract_program(
            tarball, "package/claude", ready / "claude", arch, each=anyio.from_thread.check_cancelled
        )
        record = _Record(package.version, arch, package.integrity, sha512, size)
        (ready / "claude.json").write_bytes(msgspec.json.encode(record))
        ready.chmod(0o755)
        target = _place(folder, package.version, arch)
        if target.exists():  # damaged: _load refused it
            shutil.rmtree(target)
        ready.rename(target)
    return ClaudeCode(package.version, target / "claude", sha512)


def _tell(progress: Progress, phase: Phase, detail: str) -> None:
    """Report from the worker thread, on the caller's event loop."""
    anyio.from_thread.run_sync(progress, phase, detail)


def _download(package: Package, target: Path, fetcher: Fetcher, tell: Callable[[str], None]) -> None:
    """Stream the tarball to a file and compare its hash with the published one."""
    digest = hashlib.sha512()
    done = shown = 0
    with target.open("xb") as file:

        def sink(block: bytes, total: int | None) -> None:
            nonlocal done, shown
            anyio.from_thread.check_cancelled()
            digest.update(block)
            with _disk_errors(target.parent.parent):
                file.write(block)
            done += len(block)
            percent = done * 100 // total if total else done >> 23  # or steps of 8 MiB
            if percent != shown:
                shown = percent
                megabytes = f"{done / 1e6:.0f} MB"
                tell(f"{megabytes} of {total / 1e6:.0f} MB ({percent} %)" if total else megabytes)

        fetcher.stream(package.tarball, max_bytes=MAX_TARBALL_BYTES, sink=sink)
    if digest.digest() != package.sha512:
        raise BadImageError(
            f"Claude Code {package.version} does not have the SHA-512 that the registry publishes;"
            " it was not used",
            detail=(
                f"{without_credentials(package.tarball)}\n"
                f"published sha512 {package.sha512.hex()}\nreceived  sha512 {digest.hexdigest()}"
            ),
            hint="repeat the command; if it happens again, a proxy or the registry changes downloads",
        )


def _place(folder: Path, version: str, arch: str) -> Path:
    return folder / f"{version}-{arch}"


def _load(folder: Path, version: str, arch: str) -> ClaudeCode | None:
    """Return a cached program whose bytes are still those that were stored, or None."""
    place = _place(folder, version, arch)
    try:
        record = msgspec.json.decode((place / "claude.json").read_bytes(), type=_Record)
        binary = place / "claude"
        if record.version != version or record.architecture != arch or binary.stat().st_size != record.size:
            return None
        with binary.open("rb") as file:
            sha512 = hashlib.file_digest(file, "sha512").hexdigest()
    except (OSError, msgspec.DecodeError):
        return None
    return ClaudeCode(version, binary, sha512) if sha512 == record.sha512 else None


def _versions(folder: Path, arch: str) -> list[str]:
    """Return the cached versions, newest first."""
    names = [place.name.removesuffix(f"-{arch}") for place in folder.glob(f"[0-9]*-{arch}")]
    keyed = [(key, name) for name in names if (key := parse_version(name)) is not None]
    return [name for _, name in sorted(keyed, reverse=True)]


def _newest_cached(folder: Path, arch: str) -> ClaudeCode | None:
    return next(filter(None, (_load(folder, version, arch) for version in _versions(folder, arch))), None)


def _prune(folder: Path, arch: str, keep: str) -> None:
    """Remove old versions: each takes 0.4 GB. A program that is being read stays readable."""
    for version in _versions(folder, arch)[_KEPT_VERSIONS:]:
        if version != keep:
            shutil.rmtree(_place(folder, version, arch), ignore_errors=True)
