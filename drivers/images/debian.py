"""The guest image: made once, of Debian's packages or of another image, then kept under its inputs' hash.

``<cache>/images/<key>/`` has the disk (raw, sparse, one ext4 file system without partitions), the kernel, the
initrd and ``image.json``. It appears by a rename when all of it is there, and is never changed. Beside it,
``.<key>.lock`` keeps a second builder waiting, and ``.<key>.partial`` is a build that goes on or was killed.
"""

import os
import shutil
from collections.abc import Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Final, Protocol

import anyio
import msgspec

from claude_vm.drivers.api import Progress
from claude_vm.drivers.errors import BadImageError
from claude_vm.drivers.files import sync
from claude_vm.drivers.images import bootstrap
from claude_vm.drivers.images.lock import hold
from claude_vm.drivers.images.phases import ImagePhase
from claude_vm.drivers.images.rootfs import Architecture, ImageSpec, guest_tree, image_key, tree_archive
from claude_vm.drivers.programs import BuildEnvironment, Programs, own

__all__ = ["Image", "ImageSpec", "RootfsSource", "ensure_image", "images", "remove_image"]

_RECORD: Final = "image.json"
_CLEAN_S: Final = 90.0
_CONSOLES: Final = {"amd64": "ttyS0", "arm64": "ttyAMA0"}


class Image(msgspec.Struct, frozen=True):
    """A guest image. The paths are absolute, of files that nobody may write to.

    `terminfo` and `locales` are the names that the guest knows. `size_bytes` is what it takes on disk.
    """

    key: str
    disk: Path
    kernel: Path
    initrd: Path
    suite: str
    architecture: Architecture
    user: str
    home: str
    uid: int
    gid: int
    disk_gib: int
    terminfo: tuple[str, ...]
    locales: tuple[str, ...]
    size_bytes: int

    @property
    def kernel_arguments(self) -> str:
        """The kernel's arguments. The disk is always ``/dev/vda``; a panic ends a VM that may not reboot."""
        words = ["net.ifnames=0", "quiet", "loglevel=4", "systemd.show_status=no", "panic=-1", "audit=0"]
        if self.architecture == "amd64":
            words += ["tsc=reliable", "no_timer_check"]
        return " ".join((f"console={_CONSOLES[self.architecture]}", *words))


class RootfsSource(Protocol):
    """What an image is made of, if not of Debian's packages alone. `identity` is part of its key."""

    identity: str

    async def build(self, spec: ImageSpec, archive: bytes, work: Path, progress: Progress) -> None:
        """Make in the existing, empty folder `work` what `bootstrap.bootstrap` makes.

        Raises:
            DriverError: It can't be made.
        """
        ...

    async def clean(self, work: Path) -> None:
        """End and remove what a build in `work` has elsewhere, after any interruption.

        Raises:
            DriverError: Something could not be removed.
        """
        ...


async def ensure_image(
    cache: Path,
    spec: ImageSpec,
    progress: Progress,
    source: RootfsSource | None = None,
    build_env: BuildEnvironment | None = None,
) -> Image:
    """Return the image of a specification, built now if the cache lacks it (some minutes, 1 GiB).

    `build_env` is what it is built with, without any this process's own. Of several callers, in
    whatever processes, one builds and the others wait for it. A failed or cancelled build leaves nothing.

    Raises:
        ToolMissingError: A program is not installed; the hint names the packages.
        DriverError: The build failed; with the last lines of the tool.
        BadImageError: The build succeeded and its result is not usable.
    """
    tree = guest_tree()
    key = image_key(spec, tree, "" if source is None else source.identity)
    folder = cache / "images"
    if (found := _load(folder / key)) is not None:
        return found
    around = BuildEnvironment(own(), os.environ) if build_env is None else build_env
    await anyio.Path(folder).mkdir(mode=0o700, parents=True, exist_ok=True)
    async with hold(folder / f".{key}.lock", lambda: progress(ImagePhase.IMAGE_AWAITED, "")):
        if (found := _load(folder / key)) is not None:
            return found
        work = folder / f".{key}.partial"
        await _remove_partial(work, around.programs, source)
        await anyio.Path(work).mkdir(mode=0o700)
        build = partial(bootstrap.bootstrap, build_env=around) if source is None else source.build
        try:
            await build(spec, tree_archive(tree), work, progress)
            progress(ImagePhase.IMAGE, "storing it")
            await bootstrap.clean(work, around.programs)
            if source is not None:
                await source.clean(work)
            await anyio.to_thread.run_sync(_finish, work, spec, key)
            # There can only be one that `_load` refused.
            await anyio.to_thread.run_sync(shutil.rmtree, folder / key, True)
            await anyio.Path(work).rename(folder / key)
        finally:
            with anyio.move_on_after(_CLEAN_S, shield=True):
                await _remove_partial(work, around.programs, source)
    image = _load(folder / key)
    if image is None:
        raise BadImageError(f"the image {key} vanished from {folder} while it was built")
    return image


def images(cache: Path) -> Sequence[Image]:
    """Return the complete images of a cache, by key."""
    found = (_load(path) for path in sorted((cache / "images").glob("[0-9a-f]*")))
    return [image for image in found if image is not None]


async def remove_image(cache: Path, key: str, programs: Programs | None = None) -> None:
    """Remove an image, which no overlay may need any more. An unknown key is fine.

    Raises:
        DriverError: It can't be removed.
    """
    folder = cache / "images"
    if not await anyio.Path(folder, key).exists():
        return
    programs = own() if programs is None else programs
    async with hold(folder / f".{key}.lock", remove=True):
        doomed = folder / f".{key}.partial"
        await _remove_partial(doomed, programs)
        with suppress(FileNotFoundError):
            await anyio.Path(folder, key).rename(doomed)
        await _remove_partial(doomed, programs)


async def _remove_partial(work: Path, programs: Programs, source: RootfsSource | None = None) -> None:
    """Remove a work folder and what its build left elsewhere."""
    if source is not None:
        await source.clean(work)
    if await anyio.Path(work).exists():
        await bootstrap.clean(work, programs)
        await anyio.to_thread.run_sync(shutil.rmtree, work)


def _finish(work: Path, spec: ImageSpec, key: str) -> None:
    """Check what was built, write its record and bring it all to the disk."""
    for name in (bootstrap.DISK, bootstrap.KERNEL, bootstrap.INITRD):
        path = work / name
        if not path.is_file() or path.stat().st_blocks == 0:
            raise BadImageError(f"the build of the guest image made no {name}")
        path.chmod(0o444)
    image = Image(
        key=key,
        disk=Path(bootstrap.DISK),
        kernel=Path(bootstrap.KERNEL),
        initrd=Path(bootstrap.INITRD),
        suite=spec.suite,
        architecture=spec.architecture,
        user=spec.user,
        home=spec.home,
        uid=spec.uid,
        gid=spec.gid,
        disk_gib=spec.disk_gib,
        terminfo=_words(work / bootstrap.TERMINFO),
        locales=_words(work / bootstrap.LOCALES),
        size_bytes=sum(path.stat().st_blocks * 512 for path in work.iterdir()),
    )
    (work / _RECORD).write_bytes(msgspec.json.encode(image, enc_hook=str))
    kept = {bootstrap.DISK, bootstrap.KERNEL, bootstrap.INITRD, _RECORD}
    for path in work.iterdir():
        if path.name not in kept:
            path.unlink()
        else:
            sync(path)


def _words(path: Path) -> tuple[str, ...]:
    """Return the words of a text file."""
    return tuple(path.read_text(encoding="utf-8").split())


def _path(_: type, text: str) -> Path:
    """Decode what JSON has no type for."""
    return Path(text)


def _load(folder: Path) -> Image | None:
    """Return the image in a folder, or None if there is none."""
    try:
        image = msgspec.json.decode((folder / _RECORD).read_bytes(), type=Image, dec_hook=_path)
    except (OSError, msgspec.MsgspecError):
        return None
    paths = {name: folder / getattr(image, name) for name in ("disk", "kernel", "initrd")}
    return msgspec.structs.replace(image, **paths) if all(path.is_file() for path in paths.values()) else None
