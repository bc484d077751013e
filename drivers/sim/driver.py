"""The simulated hypervisor: the driver's contract without a machine beneath it. Nothing is isolated.

For tests of the supervisor and for load tests. A simulated VM lives in the process that started it and dies
with it, which is the one point where the contract is not kept: its instance is then listed as stopped.
"""

import contextlib
import getpass
import logging
import os
import time
from collections.abc import AsyncIterator, Sequence
from pathlib import Path

import anyio
import msgspec

from claude_vm.drivers.api import (
    Access,
    Capabilities,
    Diagnostic,
    GuestFile,
    Inspection,
    InstanceRecord,
    InstanceSpec,
    InstanceStatus,
    Owner,
    Progress,
    Reachable,
    TemplateRecord,
    TemplateSpec,
    tell_nobody,
)
from claude_vm.drivers.directories import open_directory, remove_tree
from claude_vm.drivers.errors import DriverError, GuestError, words_of
from claude_vm.drivers.process import ProcessIdentity
from claude_vm.drivers.programs import Programs
from claude_vm.drivers.sim.guest import Guest, kill_marked
from claude_vm.drivers.sim.holding import HolderThread
from claude_vm.drivers.sim.phases import SimPhase
from claude_vm.drivers.sim.script import CallStep, Prompter, Script, read_script, scripted_error
from claude_vm.drivers.sim.store import SimRecord, SimTemplates, Store
from claude_vm.drivers.templates import building_folder, discard, new_generation_name, publish

WARNING = "NOTHING IS ISOLATED: the guest is simulated, commands run on this host as you"

_MAX_FILES = 8 * 1024 * 1024
_log = logging.getLogger(__name__)


class SimDriver:
    """See `claude_vm.drivers.api.Driver`. Made by `open_driver`; asyncio only."""

    name = "sim"

    def __init__(self, owner: Owner, script: Script) -> None:
        self._owner = owner
        self._store = Store(owner.home, owner.supervisor_id)
        self._templates = SimTemplates(owner.home, self.name)
        self._guests: dict[str, Guest] = {}
        self._prompter = Prompter(script)
        self._holders = HolderThread()

    def look_in(self, programs: Programs) -> None:
        """Do nothing: it needs no program."""

    async def diagnose(self) -> Sequence[Diagnostic]:
        """Return that this is a simulation."""
        return [Diagnostic(WARNING, "use another driver", fatal=False)]

    async def capabilities(self) -> Capabilities:
        """Return what a simulation can do."""
        return Capabilities(
            accelerator="none",
            accelerator_reason=WARNING,
            ram_clones=False,
            max_mounts=64,
            host_address="127.0.0.1",
            isolates=False,
            prestart=self._prompter.prestart,
        )

    async def clone(self, spec: InstanceSpec) -> None:
        """Make the instance's folder.

        Raises:
            DriverError: As scripted; the id was used; the disk would shrink; the template is gone.
        """
        async with self._scripted("clone"):
            _, template = self._templates.find(spec.template, spec.generation)
            if spec.disk_gib < template.disk_gib:
                raise DriverError(
                    f"a disk of {spec.disk_gib} GB is smaller than the template's, {template.disk_gib} GB",
                    hint="rebuild the template with a smaller disk",
                )
            if self._store.folder(spec.instance_id).exists():
                raise DriverError(f"the instance {spec.instance_id} exists already")
            self._store.write_instance(SimRecord(spec))

    async def prestart(self, instance_id: str) -> None:
        """Note that it was asked for: there is no process that could be started ahead.

        Raises:
            DriverError: As scripted; there is no such instance; it was started already; nobody tests this.
        """
        async with self._scripted("prestart"):
            if not self._prompter.prestart:
                raise DriverError("a simulated VM has nothing to start ahead")
            instance = self._known(instance_id)
            if instance.prestarted or instance.host is not None:
                raise DriverError(f"the instance {instance_id} was started already")
            self._store.write_instance(msgspec.structs.replace(instance, prestarted=True))

    async def start(
        self,
        instance_id: str,
        progress: Progress,
        reachable: Reachable = tell_nobody,  # noqa: ARG002 - it is reached at once when it is started
    ) -> Access:
        """Start the instance's SSH server.

        Raises:
            DriverError: As scripted; there is no such instance; it runs already.
        """
        async with self._scripted("start") as step:
            instance = self._known(instance_id)
            if instance_id in self._guests:
                raise DriverError(f"the instance {instance_id} runs already")
            for mount in instance.spec.mounts:
                if mount.inode:  # it mounts nothing, so whether there is something does not matter
                    os.close(open_directory(mount))
            _log.warning(WARNING)
            progress(SimPhase.SIMULATE, WARNING)
            generation, _ = self._templates.find(instance.spec.template, instance.spec.generation)
            tools = generation / "bin"
            guest = Guest(self._store.folder(instance_id), tools if tools.is_dir() else None, self._holders)
            self._guests[instance_id] = guest
            host = ProcessIdentity.of(os.getpid())
            self._store.write_instance(SimRecord(instance.spec, host, running=True))
            access = await guest.start()
            if step.die_s is not None:
                guest.die_in(step.die_s)
            return access

    async def put_files(self, instance_id: str, files: Sequence[GuestFile]) -> None:
        """Write files where they stand for the guest's. All owners are the one user of this process.

        Raises:
            GuestError: As scripted; the guest does not run; a file can't be written.
        """
        async with self._scripted("put_files"):
            guest = self._running(instance_id)
            if sum(len(file.data) for file in files) > _MAX_FILES:
                raise GuestError("more than 8 MiB of files at once")
            for file in files:
                try:
                    _write(guest.path(file.path), guest.localized(file))
                except OSError as error:
                    raise GuestError(f"{file.path} was not written", detail=words_of(error)) from error

    async def set_clock(self, instance_id: str) -> None:
        """Do nothing: the guest's clock is the host's.

        Raises:
            GuestError: As scripted; the guest does not run.
        """
        async with self._scripted("set_clock"):
            self._running(instance_id)

    async def poll(self, instance_id: str) -> InstanceStatus:
        """Return the instance's status."""
        if not self._store.folder(instance_id).is_dir():
            return InstanceStatus.ABSENT
        guest = self._guests.get(instance_id)
        if guest is not None:
            return InstanceStatus.STOPPED if guest.stopped.is_set() else InstanceStatus.RUNNING
        return InstanceStatus.RUNNING if self._host_elsewhere(instance_id) else InstanceStatus.STOPPED

    async def taken_mib(self, instance_id: str) -> int:
        """Return what the script says, else the same for each that runs."""
        guest = self._guests.get(instance_id)
        if guest is None or guest.stopped.is_set():
            return 0
        step = self._prompter.next_step("taken_mib")
        await anyio.sleep(step.delay_s)
        return step.memory_mib

    async def wait_stopped(self, instance_id: str) -> str:
        """Return why the VM ended, once it has; of another process's, once that process has."""
        guest = self._guests.get(instance_id)
        if guest is None:
            if host := self._host_elsewhere(instance_id):
                await host.wait()
            return "the simulated VM does not run"
        await guest.stopped.wait()
        return guest.reason

    async def delete(self, instance_id: str) -> None:
        """End the guest and remove its folder.

        Raises:
            DriverError: As scripted; something can't be removed.
        """
        async with self._scripted("delete"):
            guest = self._guests.get(instance_id)
            if guest is not None:
                await guest.stop("the simulated VM was deleted")
            elif self._store.folder(instance_id).exists():
                kill_marked(self._store.folder(instance_id))
            try:
                remove_tree(self._store.folder(instance_id))
            except OSError as error:
                raise DriverError(f"{instance_id} was not removed wholly", detail=words_of(error)) from error
            self._guests.pop(instance_id, None)

    async def list_instances(self) -> Sequence[InstanceRecord]:
        """Return all instances of this owner."""
        async with self._scripted("list_instances"):
            return [
                InstanceRecord(instance_id, self._owner.supervisor_id, await self.poll(instance_id))
                for instance_id in self._store.instance_ids()
            ]

    async def build_template(self, spec: TemplateSpec, progress: Progress) -> TemplateRecord:
        """Write a generation's record.

        Raises:
            DriverError: As scripted; the folder can't be written.
        """
        with building_folder(self._templates.folder(spec.name)) as folder:
            progress(SimPhase.SIMULATE_TEMPLATE, WARNING)
            async with self._scripted("build_template"):
                if spec.claude_binary is not None:
                    (folder / "bin").mkdir()
                    (folder / "bin" / "claude").symlink_to(spec.claude_binary)
                record = TemplateRecord(
                    name=spec.name,
                    generation=new_generation_name(),
                    driver=self.name,
                    project=spec.project,
                    created_at=time.time(),
                    cpus=spec.cpus,
                    memory_mib=spec.memory_mib,
                    disk_gib=spec.disk_gib,
                    size_bytes=0,
                    user=getpass.getuser(),
                    home=str(Path.home()),
                    claude_version=spec.claude_version,
                    image="simulated",
                    terminfo=_known_terminals(),
                    locales=("C.UTF-8",),
                )
                try:
                    (folder / "template.json").write_bytes(msgspec.json.encode(record))
                    publish(folder, record.generation)
                except OSError as error:
                    raise DriverError("the template was not written", detail=words_of(error)) from error
                return record

    async def templates(self) -> Sequence[TemplateRecord]:
        """Return the current generations."""
        return [
            msgspec.structs.replace(record, last_used_at=self._templates.last_used(record.name))
            for _, record in self._templates.current()
        ]

    async def touch_template(self, name: str) -> None:
        """Note the use."""
        with contextlib.suppress(OSError):
            self._templates.touch(name)

    async def delete_template(self, name: str) -> None:
        """Remove all generations.

        Raises:
            TemplateInUseError: Instances of anyone use it.
        """
        async with self._scripted("delete_template"):
            await self._templates.delete(name, self._store.users)

    async def collect_garbage(self, *, images: bool = False) -> Sequence[str]:  # noqa: ARG002 - it has none
        """Remove what nothing uses."""
        removed = await self._templates.discard_unused(self._store.users)
        for folder in self._templates.dead_builds():
            discard(folder)
            removed.append(f"interrupted build {folder.name}")
        return removed

    async def aclose(self) -> None:
        """End all guests, because they can't live without this process. Their records stay."""
        for instance_id, guest in self._guests.items():
            with anyio.CancelScope(shield=True):
                await guest.stop("the supervisor of the simulated VM ended")
            instance = self._store.read_instance(instance_id)
            if instance is not None:
                self._store.write_instance(msgspec.structs.replace(instance, running=False))
        self._guests.clear()
        self._holders.close()

    @contextlib.asynccontextmanager
    async def _scripted(self, method: str) -> AsyncIterator[CallStep]:
        step = self._prompter.next_step(method)
        # At least one await, so that every call can be cancelled as a real one could.
        await anyio.sleep(step.delay_s)
        if step.hang:
            await anyio.sleep_forever()
        if step.fail:
            raise scripted_error(method, step.fail)
        yield step
        if step.lose_answer:
            await anyio.sleep_forever()

    def _known(self, instance_id: str) -> SimRecord:
        instance = self._store.read_instance(instance_id)
        if instance is None:
            raise DriverError(f"there is no instance {instance_id}")
        return instance

    def _host_elsewhere(self, instance_id: str) -> ProcessIdentity | None:
        """Return the process in which an instance runs, where that is another one than this."""
        instance = self._store.read_instance(instance_id)
        if instance is None or not instance.running or instance.host is None:
            return None
        return instance.host if instance.host.is_alive() and instance.host.pid != os.getpid() else None

    def _running(self, instance_id: str) -> Guest:
        guest = self._guests.get(instance_id)
        if guest is None or guest.stopped.is_set():
            raise GuestError(f"the instance {instance_id} does not run")
        return guest


def needs() -> Sequence[str]:
    """Return nothing: what runs in it is this host's."""
    return ()


async def check(programs: Programs) -> None:
    """Return: it can be used everywhere."""


async def inspect(programs: Programs) -> Inspection:  # noqa: ARG001 - the signature is every driver's
    """Return that it is there."""
    return Inspection(installed=True)


def folders(home: Path) -> Sequence[Path]:  # noqa: ARG001 - the signature is every driver's
    """Return nothing: all is in the data folder."""
    return ()


@contextlib.asynccontextmanager
async def open_driver(
    owner: Owner,
    programs: Programs | None = None,  # noqa: ARG001 - it needs none
    script: Script | None = None,
) -> AsyncIterator[SimDriver]:
    """Open the simulation; leaving it ends its guests. Without `script`, ``sim.json`` of the home is one.

    Raises:
        DriverError: ``sim.json`` is no script.
    """
    driver = SimDriver(owner, read_script(owner.home) if script is None else script)
    try:
        yield driver
    finally:
        await driver.aclose()


def _write(path: Path, file: GuestFile) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    flags = os.O_WRONLY | os.O_CREAT | (os.O_APPEND if file.append else os.O_TRUNC)
    with os.fdopen(os.open(path, flags, file.mode), "wb") as target:
        os.fchmod(target.fileno(), file.mode)
        target.write(file.data)


def _known_terminals() -> tuple[str, ...]:
    names: set[str] = set()
    for folder in ("/usr/share/terminfo", "/lib/terminfo", "/etc/terminfo"):
        names.update(path.name for path in Path(folder).glob("*/*"))
    return tuple(sorted(names))
