"""Lima, as what starts VMs: QEMU is a child of its host agent, and gets what it needs from us by a socket.

`limactl start --foreground` is our child, and becomes the host agent. What it starts as QEMU is a script of
ours (see `arguments.stand_in`), which fetches descriptors and further arguments from us. Its connection is
also how we know, without asking again and again, that QEMU is about to run, and which process it will be.
"""

import resource
import sys
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from pathlib import Path
from typing import ClassVar, Final

import anyio
import anyio.to_thread
import msgspec

from claude_vm.drivers.api import Diagnostic, GuestFile, Owner, Progress
from claude_vm.drivers.directories import remove_tree
from claude_vm.drivers.errors import BootError, DriverError
from claude_vm.drivers.images.debian import RootfsSource
from claude_vm.drivers.lima import arguments, events, home, importing, instance, processes
from claude_vm.drivers.lima.handover import Order, hand_over
from claude_vm.drivers.lima.phases import LimaPhase
from claude_vm.drivers.lima.prerequisites import LIMACTL, install_hint, lacking, parse_version, too_old
from claude_vm.drivers.prerequisites import template_tools, this_host
from claude_vm.drivers.process import ProcessIdentity, run_tool
from claude_vm.drivers.programs import BuildEnvironment, Programs, own, user_environment
from claude_vm.drivers.vm import accelerator, confine
from claude_vm.drivers.vm.arguments import QemuBuild, VmPlan
from claude_vm.drivers.vm.hypervisor import Hypervisor, Spawned
from claude_vm.drivers.vm.machine import HELPER_S, Files, Machine, attached, while_alive
from claude_vm.drivers.vm.slots import inherited
from claude_vm.drivers.vm.spawn import end, listen, reap, spawn, tail

_TOOL_S: Final = 30.0
_HANDOVER_S: Final = 60.0
_PORT_TRIES: Final = 5
_LOOKS: Final = 40
_LOOK_S: Final = 0.05
_MOST_MEMORY: Final = 1 << 30
_LARGEST_FILE: Final = 64 << 20
_PORT_TAKEN: Final = "Could not set up host forwarding rule"
_BOOT_DONE: Final = ("/run/lima-boot-done", "/run/lima-ssh-ready")


class LimaFiles(Files, frozen=True):
    """The files of a VM that Lima runs. `folder` is Lima's."""

    @property
    def handover(self) -> Path:
        """Where QEMU fetches what it needs."""
        return self.monitor.with_suffix(".d")

    @property
    def log(self) -> Path:
        """What `limactl` says before it is the host agent."""
        return self.folder / instance.LOG

    def said(self) -> str:
        """The last lines of `limactl`, its host agent and QEMU."""
        told = events.state(self.folder)
        errors = () if told is None else told.errors
        return "\n".join(filter(None, (tail(self.log), events.said(self.folder), *errors)))


class Lima(Hypervisor):
    """Starts VMs by `limactl`; see `claude_vm.drivers.vm.hypervisor.Hypervisor`."""

    name = "lima"
    disk = "disk"
    drive: ClassVar = {"device": "boot-disk"}
    consoles = ("char-serial", "char-serial-virtio", "char-serial-pci")  # the last one on Arm only
    host_address = arguments.HOST_ADDRESS
    phases = (LimaPhase.LIMACTL, LimaPhase.QEMU)
    kernel_arguments = arguments.KERNEL_ARGUMENTS

    def __init__(self, owner: Owner) -> None:
        super().__init__(owner)
        self.mark = f"{owner.mark}:{self.name}"  # the driver `qemu` must not take these VMs for its own
        self._children: dict[Path, list[int]] = {}
        self._ports: dict[Path, int] = {}  # until QEMU has it, a port is free for everybody else

    @staticmethod
    def needs() -> Sequence[str]:
        """Return the names of the programs of QEMU and Lima.

        Raises:
            DriverError: We have no machine for this architecture.
        """
        return (*accelerator.programs(), LIMACTL)

    async def find_host(self, accelerator_name: str, programs: Programs) -> QemuBuild:
        """Ask the installed `limactl` and QEMU what they are.

        Raises:
            ToolMissingError: One of them is not installed.
            DriverError: One does not answer, or may not be used.
        """
        limactl = _limactl(programs)
        for problem in self.problems(programs):
            raise DriverError(problem.what, hint=problem.fix)
        host = await super().find_host(accelerator_name, programs)
        root = home.make(self.owner.home)
        environ = arguments.environment(user_environment(programs), str(root))
        done = await run_tool([limactl, "--version"], timeout_s=_TOOL_S, env=environ)
        version = done.stdout.decode(errors="replace").strip()
        numbers = parse_version(version)
        old = None if numbers is None else too_old(this_host(programs), limactl, numbers)
        if old is not None:
            raise DriverError(old.what, hint=old.fix)
        return msgspec.structs.replace(
            host, build=f"{host.build} {version}", starter=limactl, path=programs.path
        )

    def image_source(
        self, accelerator_name: str, image: str, build_env: BuildEnvironment
    ) -> RootfsSource | None:
        """Return the import of an image; None where none is asked for and one can be built.

        Raises:
            DriverError: There is no such image.
        """
        programs = build_env.programs
        if not image and not template_tools(this_host(programs)):
            return None
        return importing.Import(
            image or importing.DEFAULT,
            _limactl(programs),
            home.make(self.owner.home),
            build_env,
            program=_emulator(programs) if accelerator_name == "tcg" else (),
        )

    def problems(self, programs: Programs) -> Sequence[Diagnostic]:
        """Return what is missing, or why Lima would not run."""
        found = lacking(this_host(programs))
        if sys.platform != "linux":
            found.insert(0, Diagnostic("the driver lima runs only on Linux so far", "use the driver qemu"))
        return found

    def arguments(self, host: QemuBuild, guest: VmPlan) -> Sequence[str]:
        """Return QEMU's arguments that are ours: Lima's follow from its version, which `QemuBuild` has."""
        return [
            *arguments.seen(host, guest),
            *arguments.unseen(host, guest),
            arguments.kernel_arguments(guest),
        ]

    def folder(self, instance_id: str) -> Path:
        """Return where an instance is, or would be.

        Raises:
            DriverError: Others could write to what it lies in.
        """
        return home.checked(self.owner.home) / home.instance_name(self.owner.supervisor_id, instance_id)

    def folders(self) -> Sequence[tuple[str, Path]]:
        """Return the names and folders of the owner's instances."""
        return _instances(self.owner.home, home.instance_name(self.owner.supervisor_id, "i-*"))

    def everybody(self) -> Sequence[tuple[str, Path]]:
        """Return the names and folders of the instances of all owners of this home."""
        return _instances(self.owner.home, "*.i-*")

    def files(self, folder: Path) -> LimaFiles:
        """Return the files of a VM; its sockets have short names elsewhere.

        Raises:
            DriverError: Others could write to what they lie in.
        """
        name = folder.name.rpartition("-")[2]
        where = home.folder_of(self.owner, folder)
        return LimaFiles(where, self.owner.runtime / f"{name}.m", self.owner.runtime / f"{name}.h")

    @asynccontextmanager
    async def launch(
        self,
        host: QemuBuild,
        guest: VmPlan,
        files: Files,
        *,
        spawned: Spawned,
        progress: Progress,
        root_guest: bool,  # noqa: ARG002 - Lima has no root
    ) -> AsyncIterator[Machine]:
        """Start a VM by `limactl`; see `Hypervisor.launch`. A port that somebody took is replaced by another.

        Raises:
            MountChangedError: A slot's directory is not the one that is meant.
            BootError: It does not start.
        """
        files = _ours(files)
        files.folder.mkdir(mode=0o700, exist_ok=True)
        files.empty.mkdir(mode=0o700, exist_ok=True)
        async with AsyncExitStack() as stack:
            for number in range(1, _PORT_TRIES + 1):
                try:
                    progress(LimaPhase.LIMACTL, "")
                    process = await self._start(host, guest, files)
                    spawned(process)
                    progress(LimaPhase.QEMU, "")
                    machine = await stack.enter_async_context(attached(process, files))
                    break
                except BootError as error:
                    if number == _PORT_TRIES or not await _port_was_taken(error, files):
                        raise
                    await self.end(files)
            yield machine

    async def _start(self, host: QemuBuild, guest: VmPlan, files: LimaFiles) -> ProcessIdentity:
        """Start `limactl`, hand its QEMU what it needs, and return the process that QEMU is."""
        script = arguments.stand_in(sys.executable, confine.__file__, host.binary, str(files.handover))
        self._ports[files.folder] = instance.free_port(self._ports.values())
        instance.furnish(files.folder, host, guest, self._ports[files.folder], script)
        program = [str(files.folder / instance.STAND_IN), *arguments.seen(host, guest)]
        user = {**user_environment(own()), "PATH": host.path}
        environ = arguments.environment(user, str(files.folder.parent), host.architecture, program)
        with inherited(guest, files) as (told, given), listen(files.handover) as listener:
            argv = arguments.command(host.starter, "start", "--foreground", files.folder.name)
            launcher = spawn(argv, files.log, [], environment=environ)
            self._children.setdefault(files.folder, []).append(launcher.pid)
            order = Order(tuple(number for _, number in given), tuple(arguments.unseen(host, told)))
            descriptors = [ours for ours, _ in given]
            try:
                process = await while_alive(
                    launcher,
                    files,
                    "limactl start",
                    lambda: hand_over(listener, order, descriptors),
                    _HANDOVER_S,
                )
            finally:
                files.handover.unlink(missing_ok=True)
            _bound(launcher.pid)
            return process

    def authorized_keys(self) -> Sequence[str]:
        """Return the key by which the host agent, and `limactl shell`, log in."""
        return (home.public_key(self.owner.home),)

    async def settle(self, machine: Machine) -> None:
        """Tell Lima that the guest is ready, as its own scripts in the guest would.

        Raises:
            BootError: The guest does not do it.
        """
        name = await anyio.to_thread.run_sync(instance.boot_name, machine.files.folder)
        files = [GuestFile(path, f"{name}\n".encode(), 0o644, "root") for path in _BOOT_DONE]
        await machine.step("Lima", lambda: machine.channel.put_files(files, timeout_s=HELPER_S), HELPER_S + 1)

    async def end(self, files: Files) -> None:
        """End the host agent and all that it has started, QEMU too.

        Raises:
            DriverError: A process does not die.
        """
        # What is being started while somebody looks is found by the next look.
        while found := await anyio.to_thread.run_sync(processes.of_instance, files.folder):
            for process in found:
                await end(process)
        for pid in self._children.pop(files.folder, ()):
            reap(pid)
        self._ports.pop(files.folder, None)

    async def sweep(self) -> Sequence[str]:
        """Remove the instances of killed imports; return their names.

        Raises:
            DriverError: One can't be removed.
        """
        root = home.lima_home(self.owner.home)
        return await importing.sweep(root, self.owner.home / "cache") if home.is_ours(root) else ()

    def tidy(self, files: Files) -> None:
        """Remove the sockets, and the folder of a build.

        Raises:
            OSError: They can't be removed.
        """
        files = _ours(files)
        super().tidy(files)
        files.handover.unlink(missing_ok=True)
        if files.folder.name.startswith(f"{home.BUILD}."):
            remove_tree(files.folder)


async def _port_was_taken(error: BootError, files: LimaFiles) -> bool:
    """Tell whether QEMU ended because of its port. The host agent may pass on what it said a moment later."""
    for _ in range(_LOOKS):
        if _PORT_TAKEN in error.detail or _PORT_TAKEN in files.said():
            return True
        await anyio.sleep(_LOOK_S)
    return False


def _bound(pid: int) -> None:
    """Bound what a host agent may take of the host's memory and disk, after it has started QEMU.

    It keeps, and writes into its log, whatever the guest answers when it logs in, of any length and for ever.
    One that is ended by this takes neither its VM nor a session with it.
    """
    if sys.platform == "linux":
        for limit, most in ((resource.RLIMIT_DATA, _MOST_MEMORY), (resource.RLIMIT_FSIZE, _LARGEST_FILE)):
            with suppress(OSError):  # it has ended
                resource.prlimit(pid, limit, (most, most))


def _instances(home_folder: Path, pattern: str) -> list[tuple[str, Path]]:
    """Return the names and folders of instances; nothing where they would not be in a folder of ours."""
    root = home.lima_home(home_folder)
    found = root.glob(pattern) if home.is_ours(root) else ()
    return [(path.name.rpartition(".")[2], path) for path in found]


def _ours(files: Files) -> LimaFiles:
    """Return the files, which `Lima.files` has made."""
    return LimaFiles(files.folder, files.monitor, files.helper)


def _limactl(programs: Programs) -> str:
    """Return the program.

    Raises:
        ToolMissingError: It is not installed.
    """
    return programs.need(LIMACTL, install_hint(this_host(programs)))


def _emulator(programs: Programs) -> list[str]:
    """Return the QEMU that emulates a processor."""
    program, *words = arguments.emulated(accelerator.architecture())
    return [programs.need(program, accelerator.INSTALL_HINT), *words]
