"""One running QEMU and its guest: what templates and instances have in common."""

import math
from base64 import b64encode
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from time import time
from typing import Final, TypeVar

import anyio
import msgspec

from claude_vm.drivers.api import Mount, Progress
from claude_vm.drivers.errors import BootError, DriverError, GuestError
from claude_vm.drivers.process import ProcessIdentity
from claude_vm.drivers.vm.arguments import Host
from claude_vm.drivers.vm.channel import Answer, Channel
from claude_vm.drivers.vm.identity import Identity
from claude_vm.drivers.vm.qmp import Monitor, open_monitor
from claude_vm.drivers.vm.spawn import tail

T = TypeVar("T")

MONITOR_S: Final = 20.0
_LAST_WORDS_S: Final = 2.0
LOAD_S: Final = 60.0
BOOT_S: Final = {"tcg": 240.0}
"""How long a boot may take; under software emulation several of them may share a processor."""
FAST_BOOT_S: Final = 60.0
HELPER_S: Final = 30.0
_CLOCK_ERROR_S: Final = 0.05
_CLOCK_TRIES: Final = 4

READ_ONLY_OPTIONS: Final = "trans=virtio,version=9p2000.L,cache=mmap,msize=512000,access=any"
MOUNT_OPTIONS: Final = READ_ONLY_OPTIONS + ",directio"
"""`cache=mmap` allows shared maps; `directio` sends what is written at once.

Without `directio`, Linux keeps what is written until the file is closed, and the answer to a `stat` that
was under way sets the file's size back: then data is lost, or a process that appends never ends.
Large files are read several times as fast without it.
Source: Linux 6.12, fs/9p/vfs_inode_dotl.c (``v9fs_stat2inode_dotl``) and fs/9p/fid.h.
"""


class NeverBootedError(BootError):
    """The guest's helper has never answered: the VM does not boot at all."""


class Files(msgspec.Struct, frozen=True):
    """Where one VM keeps what it needs while it runs."""

    folder: Path
    monitor: Path
    helper: Path

    @property
    def serial(self) -> Path:
        """The console's log."""
        return self.folder / "serial.log"

    @property
    def log(self) -> Path:
        """What QEMU itself says."""
        return self.folder / "qemu.log"

    def said(self) -> str:
        """The last lines of what QEMU has said."""
        return tail(self.log)

    @property
    def empty(self) -> Path:
        """The directory behind slots that nobody uses."""
        return self.folder / "empty"


def boot_limit_s(host: Host) -> float:
    """How long a boot may take on this host, in seconds."""
    return BOOT_S.get(host.accelerator, FAST_BOOT_S)


class Machine:
    """A running QEMU that was started here. The caller ends it."""

    def __init__(self, process: ProcessIdentity, files: Files, monitor: Monitor) -> None:
        self.process = process
        self.files = files
        self.monitor = monitor
        self.channel = Channel(files.helper)

    async def step(self, what: str, work: Callable[[], Awaitable[T]], timeout_s: float) -> T:
        """Do one step of a start: it fails when QEMU ends or the time is over.

        Raises:
            BootError: With the console's last lines.
        """
        return await while_alive(self.process, self.files, what, work, timeout_s)

    async def wait_for_helper(self, timeout_s: float) -> Answer:
        """Return when the guest's helper answers.

        Raises:
            NeverBootedError: It does not.
        """
        try:
            return await self.step(
                "boot", lambda: self.channel.request("ping", timeout_s=timeout_s), timeout_s + 1
            )
        except BootError as error:
            raise NeverBootedError(error.message, detail=error.detail) from error

    async def identify(self, identity: Identity, user: str, keys: Sequence[str] = ()) -> None:
        """Give the guest its identity: random state first; SSH opens in the course of it.

        `keys` may log in beside the identity's own.

        Raises:
            BootError: The helper does not do it.
        """
        await self.step(
            "identity",
            lambda: self.channel.request(
                "identify",
                timeout_s=HELPER_S,
                entropy=b64encode(identity.entropy).decode("ascii"),
                unix_s=time(),
                hostname=identity.hostname,
                machine_id=identity.machine_id,
                user=user,
                host_key=identity.host_key.private,
                authorized_key="".join(f"{key}\n" for key in (identity.client_key.public, *keys)),
            ),
            HELPER_S + 1,
        )

    async def mount(self, mounts: Sequence[Mount]) -> None:
        """Mount the slots, which are in the order of `mounts`.

        Raises:
            BootError: The helper does not do it.
        """
        wanted = [
            {
                "tag": f"slot{number}",
                "path": mount.guest,
                "readonly": not mount.writable,
                "options": MOUNT_OPTIONS if mount.writable else READ_ONLY_OPTIONS,
            }
            for number, mount in enumerate(mounts)
        ]
        if wanted:
            await self.step(
                "mounts",
                lambda: self.channel.request("mount", timeout_s=HELPER_S, mounts=wanted),
                HELPER_S + 1,
            )


async def set_clock(channel: Channel) -> None:
    """Set the guest's clock, again if the way there took too long for it to be right.

    Raises:
        GuestError: The guest does not answer.
    """
    for _ in range(_CLOCK_TRIES):
        sent = time()
        await channel.request("clock", timeout_s=HELPER_S, unix_s=sent)
        if time() - sent < _CLOCK_ERROR_S:
            return


async def while_alive(
    process: ProcessIdentity, files: Files, what: str, work: Callable[[], Awaitable[T]], timeout_s: float
) -> T:
    """Await `work` for as long as the process lives and the time lasts.

    Raises:
        BootError: It ended or took too long, or the work failed; with the last lines of console and QEMU.
    """
    result: list[T] = []
    failure: DriverError | None = None
    ended = False

    async def watch() -> None:
        nonlocal ended
        await process.wait()
        ended = True
        group.cancel_scope.cancel()

    with anyio.move_on_after(timeout_s if math.isfinite(timeout_s) else None) as late:
        async with anyio.create_task_group() as group:
            group.start_soon(watch)
            try:
                result.append(await work())
            except DriverError as error:
                failure = error
            group.cancel_scope.cancel()
    if result:
        return result[0]
    if failure is not None and process.is_alive():
        raise BootError(f"the VM fails at: {what} ({failure})", detail=last_words(files)) from failure
    if ended or not process.is_alive():
        raise BootError(f"the VM ended at: {what}", detail=last_words(files)) from failure
    if late.cancelled_caught:
        raise BootError(f"the VM takes longer than {timeout_s:g} s for: {what}", detail=last_words(files))
    raise GuestError(f"the VM was interrupted at: {what}")


def last_words(files: Files) -> str:
    """The last lines of QEMU and of the guest's console."""
    return "\n".join(filter(None, (files.said(), tail(files.serial))))


@asynccontextmanager
async def attached(process: ProcessIdentity, files: Files) -> AsyncIterator[Machine]:
    """Connect to the monitor of a QEMU that was started before, for as long as the block lasts.

    Nobody else may be connected to it: a monitor talks to one at a time.

    Raises:
        BootError: It does not answer.
    """
    async with _monitor(process, files) as monitor:
        machine = Machine(process, files, monitor)
        try:
            yield machine
        finally:
            await machine.channel.aclose()


@asynccontextmanager
async def _monitor(process: ProcessIdentity, files: Files) -> AsyncIterator[Monitor]:
    """Open the monitor, unless QEMU ends before it greets.

    Its end is watched for by itself: while anything else holds the socket, the connection would stay.
    """
    async with AsyncExitStack() as stack:

        async def greeted() -> Monitor:
            try:
                return await stack.enter_async_context(open_monitor(files.monitor))
            except BootError:
                # It is about to end, and then it has said why.
                with anyio.move_on_after(_LAST_WORDS_S):
                    await process.wait()
                raise

        yield await while_alive(process, files, "the start of QEMU", greeted, MONITOR_S)


BOOTS = 3
"""How often a boot is tried whose kernel crashes."""


def kernel_crashed(error: DriverError) -> bool:
    """Tell whether a boot failed because the guest's kernel crashed, which says nothing about the next one.

    Seen on a busy host with QEMU 7.2 and two emulated processors, once in some hundred boots: a processor
    executes code that the kernel patches on the other one at that moment.
    """
    return "Kernel panic" in error.detail


@asynccontextmanager
async def booted(
    boot: Callable[[AsyncExitStack], Awaitable[Machine]], progress: Progress
) -> AsyncIterator[Machine]:
    """Boot a machine, again if its kernel crashes; the machine is open until the block ends.

    Raises:
        DriverError: It does not come up.
    """
    async with AsyncExitStack() as kept:
        for number in range(1, BOOTS + 1):
            async with AsyncExitStack() as stack:
                try:
                    machine = await boot(stack)
                except BootError as error:
                    if number == BOOTS or not kernel_crashed(error):
                        raise
                    progress("booting again", "the guest's kernel crashed while it came up")
                    continue
                kept.push_async_exit(stack.pop_all())
                break
        yield machine
