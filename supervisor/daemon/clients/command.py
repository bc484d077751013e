"""What every command is given, and what most of them need."""

import json
import os
import sys
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import TypeVar

import anyio
import msgspec

from claude_vm.context.config.layers import Settings, global_file_size, load_settings
from claude_vm.context.errors import ContextError, GrowthError
from claude_vm.context.known import Growth, Known, growth, remembered
from claude_vm.context.opening import opened, real_path
from claude_vm.context.project import Project, check_apart, check_project, find_project, project_folders
from claude_vm.drivers.programs import Guard, Guards, Programs, guarding, search
from claude_vm.supervisor.core.events import PolicyChanged
from claude_vm.supervisor.core.keys import PoolKey
from claude_vm.supervisor.daemon.clients.turns import in_turns
from claude_vm.supervisor.daemon.errors import CommandError
from claude_vm.supervisor.daemon.pool.policy import host_memory_mib, pool_policy, read_policy
from claude_vm.supervisor.daemon.supervisor import Supervisor
from claude_vm.supervisor.grammar.requests import Flags
from claude_vm.supervisor.wire.escape import escape_json, printed
from claude_vm.supervisor.wire.server import Client, Signal

Result = TypeVar("Result")

FAILED = 125
"""Exit status when claude-vm itself failed."""

SMALL_FILE = 1024
"""Size of a configuration file, in bytes, up to which it is read at once (in a millisecond)."""

SIGNAL_STATUS = {"HUP": 129, "INT": 130, "QUIT": 131, "TERM": 143}
"""Exit statuses of a command that a signal ended before a main command could take it."""


class Command:
    """One command of one client: its invocation, its replies, the project it stands in."""

    def __init__(self, supervisor: Supervisor, client: Client, flags: Flags) -> None:
        self.supervisor = supervisor
        self.client = client
        self.flags = flags
        self._programs: Programs | None = None
        self._remarked = 0
        self._found: tuple[Project, Growth | None] | None = None
        self._guard: Guard | None = None

    @property
    def environ(self) -> Mapping[str, str]:
        """The client's environment."""
        return self.client.invocation.env

    @property
    def user_home(self) -> Path:
        """The home directory of the user whose client this is."""
        return Path(self.environ.get("HOME") or Path.home())

    async def out(self, *lines: str) -> None:
        """Write lines to the client's stdout. Control characters of strangers are made visible."""
        await self.client.send_stdout(printed(lines).encode())

    async def out_json(self, value: object) -> None:
        """Write a value as indented JSON to the client's stdout; the items of a list in pieces."""
        if not isinstance(value, list) or not value:
            await self.client.send_stdout((_indented(value) + "\n").encode())
            return
        before = "[\n  "
        async for item in in_turns(value):
            await self.client.send_stdout((before + _indented(item).replace("\n", "\n  ")).encode())
            before = ",\n  "
        await self.client.send_stdout(b"\n]\n")

    async def say(self, text: str) -> None:
        """Write a line to the client's stderr, unless it wants quiet."""
        if not self.flags.quiet:
            await self.client.note(text, "info")

    async def say_verbose(self, text: str) -> None:
        """Write a line to the client's stderr under ``-v``."""
        if self.flags.verbose:
            await self.client.note(text, "verbose")

    async def confirm(self, question: str) -> bool:
        """Ask a question on the client's terminal; without one the answer is no."""
        answer = await self.client.prompt(f"{question} [y/N] ")
        return answer is not None and answer.strip().lower() in {"y", "yes"}

    async def settings(self) -> Settings:
        """Return the settings of this command.

        Raises:
            ConfigError: With every problem of every layer.
        """
        flags: dict[str, str | Sequence[str] | None] = {
            "vm.disk": self.flags.disk,
            "vm.memory": self.flags.memory,
            "vm.cpus": self.flags.cpus,
            "driver.name": self.flags.driver,
            "network.publish": self.flags.publish or None,
        }
        load = partial(
            load_settings,
            flags={k: v for k, v in flags.items() if v is not None},
            environ=self.environ,
            home=self.user_home,
            guard=self.guard(),
        )
        # A large file takes long, and others wait; for a small one a thread would be the longer part.
        if global_file_size(self.user_home) > SMALL_FILE:
            return await anyio.to_thread.run_sync(load)
        return load()

    def guard(self) -> Guard:
        """Return which folders guests can write, or could, those of this command's project among them.

        Raises:
            CommandError: What is known of folders can't be read.
        """
        if self._guard is None:
            self._guard = guarding(self._own_folders(), self.supervisor.places.known().guard)
        return self._guard

    def apply_pool_settings(self, settings: Settings) -> None:
        """Let the pool obey what the global file of the daemon's user says now.

        `settings` are this command's; they save a second reading where the client has the same home. A
        supervisor for one command keeps nothing ready.
        """
        if self.supervisor.in_process:
            return
        own = Path.home()
        policy = (
            pool_policy(settings, host_memory_mib())
            if self.user_home == own
            else read_policy(own, self.guard())
        )
        if policy is not None:
            self.supervisor.dispatcher.post(PolicyChanged(at=anyio.current_time(), policy=policy))

    def found_project(self) -> tuple[Project, Growth | None]:
        """Return the project of the client's directory as it is found now, and how it is more than it was.

        Raises:
            ProjectError: The directory is gone, or its repository is broken.
            LinkError: The directory, or its repository, was replaced by a link.
        """
        if self._found is None:
            known = self.supervisor.places.known()
            found = _find(Path(self.client.invocation.cwd), known)
            self._found = found, growth(found, known)
        return self._found

    async def project(self) -> Project:
        """Return the project, if it is no more than it was when it was used first, or the user allows that.

        Raises:
            ProjectError: See `found_project`.
            GrowthError: It is more, and that was not allowed.
            LinkError: See `found_project`.
        """
        project, grown = self.found_project()
        if grown is None:
            return project
        if not self.flags.accept_growth and not await self.confirm(f"{grown.text}. Is that right?"):
            raise growth_error(grown)
        self.supervisor.places.remember(grown.allowed())
        return project

    def remember(self, project: Project, key: PoolKey) -> None:
        """Write down what a VM of this key will be able to write, before there is one.

        Raises:
            CommandError: It can't be written, so there must be no such VM.
        """
        known = self.supervisor.places.known()
        mounts = [(Path(m.host), (m.device, m.inode)) for m in key.mounts if m.writable]
        self.supervisor.places.remember(remembered(project, mounts, known, lambda path: _find(path, known)))

    async def mountable_project(self) -> Project:
        """Return the project, if it may be mounted.

        Raises:
            ProjectError: It is ``/``, the home directory or above it, and no flag allows that; or it would
                give away claude-vm's own data. Else see `project`.
        """
        project = await self.project()
        check_project(project, home=self.user_home, any_directory=self.flags.any_directory)
        check_apart(project_folders(project), self.supervisor.folders)
        check_text(str(project.root), "project")
        return project

    def programs(self) -> Programs:
        """Return where this client would find programs, but for folders into which guests can put some."""
        if self._programs is None:
            self._programs = search(self.environ.get("PATH", os.defpath), self._guards())
        return self._programs

    async def say_remarks(self) -> None:
        """Say under ``-v`` what of the client's ``PATH`` was left out, and if we ourselves are no safer."""
        if not self.flags.verbose:
            return
        remarks = self.programs().remarks[self._remarked :]
        self._remarked += len(remarks)
        for remark in remarks:
            await self.say_verbose(f"claude-vm: {remark}")
        for own in (sys.executable, __file__):
            if guest := self.programs().guest_at(own):
                await self.say_verbose(f"claude-vm: {own} is ours, and guests can write to {guest}")

    def _guards(self) -> Guards:
        """Return what says what guests can write, or could, each time anew."""
        own = self._own_folders()
        places = self.supervisor.places

        def now() -> Guard:
            try:
                return guarding(own, places.known().guard)
            except CommandError:  # nobody knows, so it may be anywhere
                return lambda _path, _identity: True

        return now

    def _own_folders(self) -> Sequence[Path]:
        """Return the folders of the project, if there is one: who needs it is told why there is none."""
        with suppress(ContextError, CommandError):
            return project_folders(self.found_project()[0])
        return ()


def _indented(value: object) -> str:
    # Escaped first: what is no UTF-8 can't be formatted.
    text = escape_json(json.dumps(msgspec.to_builtins(value), ensure_ascii=False))
    return msgspec.json.format(text, indent=2)


async def unless_interrupted(client: Client, work: Callable[[], Awaitable[Result]]) -> Result:
    """Return what `work` returns; cancel it when the client goes away or sends a signal.

    Not for sessions, whose signals belong to their main command.

    Raises:
        CommandError: The client's signal ended the work. (A client that is gone hears nothing.)
    """
    results: list[Result] = []
    failures: list[Exception] = []
    interrupted: list[str] = []

    async def stop_when_gone() -> None:
        await client.gone.wait()
        interrupted.append("HUP")
        tasks.cancel_scope.cancel()

    async def stop_on_signal() -> None:
        while not isinstance(control := await client.next_control(), Signal):
            pass
        interrupted.append(control.name)
        tasks.cancel_scope.cancel()

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(stop_when_gone)
        tasks.start_soon(stop_on_signal)
        try:
            results.append(await work())
        except Exception as error:  # noqa: BLE001 - raised again, outside the group that would wrap it
            failures.append(error)
        tasks.cancel_scope.cancel()
    if failures:
        raise failures[0]
    if results:
        return results[0]
    name = interrupted[0] if interrupted else "INT"
    raise CommandError("interrupted", f"interrupted by SIG{name}", status=SIGNAL_STATUS.get(name, FAILED))


def _find(path: Path, known: Known) -> Project:
    return find_project(path, lambda named: real_path(named, known.guard))


def growth_error(grown: Growth) -> GrowthError:
    """Return what says that a project is more than it was."""
    return GrowthError(
        grown.text,
        hint="if you know why, accept it, once: --accept-growth; else look at what git says there",
    )


def check_text(path: str, what: str) -> None:
    """Refuse a path that is no text: what the guest and the records are told about it is JSON.

    Raises:
        CommandError: It has bytes that are no UTF-8.
    """
    try:
        path.encode()
    except UnicodeEncodeError as error:
        raise CommandError(
            f"bad-{what}", f"the path of the {what} is no UTF-8: {path}", hint="rename the directory"
        ) from error


def project_owner(project: Project) -> tuple[int, int]:
    """Return uid and gid under which a project's files must be written.

    QEMU started by root runs as the project's owner; a user's QEMU can be nobody else.

    Raises:
        CommandError: The project is gone, or was replaced by a link.
    """
    if os.geteuid() != 0:
        return os.geteuid(), os.getegid()
    try:
        with opened(project.root) as found:
            owner = found.status
    except OSError as error:
        raise CommandError("bad-project", f"{project.root} is gone: {error.strerror}") from error
    if found.path != project.root:
        raise CommandError("bad-project", f"{project.root} was replaced by a link to {found.path}")
    return owner.st_uid, owner.st_gid
