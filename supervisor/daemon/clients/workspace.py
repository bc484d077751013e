"""A caller's workspace: its project, its settings and its programs. Each is looked for once.

The project comes before the settings, because a project may have some of its own.
"""

import os
import sys
from collections.abc import Awaitable, Callable, Sequence
from contextlib import AbstractAsyncContextManager, suppress
from functools import partial
from pathlib import Path
from typing import Protocol, TypeVar

import anyio
import msgspec

from claude_vm.context.config.layers import Settings, global_file_size, load_settings
from claude_vm.context.config.setting import Obeyed
from claude_vm.context.errors import ContextError, GrowthError
from claude_vm.context.folders import Growth, Known, growth, remembered
from claude_vm.context.opening import real_path
from claude_vm.context.project import Project, check_apart, check_project, find_project, project_folders
from claude_vm.drivers.api import Progress
from claude_vm.drivers.programs import Guard, Guards, Programs, guarding, search
from claude_vm.supervisor.core.events import PolicyChanged
from claude_vm.supervisor.core.keys import PoolKey
from claude_vm.supervisor.daemon.clients.caller import Caller
from claude_vm.supervisor.daemon.errors import CommandError
from claude_vm.supervisor.daemon.pool.policy import host_memory_mib, pool_policy, read_policy
from claude_vm.supervisor.daemon.supervisor import Supervisor

Result = TypeVar("Result")

SMALL_FILE = 1024
"""Size of a configuration file, in bytes, up to which it is read at once (in a millisecond)."""


class Console(Protocol):
    """How who asked is told what goes on, and asked back. Where nobody listens, each answer is no."""

    async def say(self, text: str) -> None:
        """Tell a line, unless quiet is wanted."""
        ...

    async def say_verbose(self, text: str) -> None:
        """Tell a line to who wants to know all."""
        ...

    async def warn(self, text: str) -> None:
        """Tell a line that nobody shall miss."""
        ...

    async def confirm(self, question: str) -> bool:
        """Ask; whether the answer is yes."""
        ...

    async def unless_interrupted(self, work: Callable[[], Awaitable[Result]]) -> Result:
        """Return what `work` returns, unless who asked does not want it any more.

        Raises:
            CommandError: That is so, and the work was cancelled.
        """
        ...

    def progress(self) -> AbstractAsyncContextManager[Progress]:
        """Return a context in which progress is told."""
        ...


class Workspace:
    """The workspace of one caller of a supervisor. `console` is how it is talked to."""

    def __init__(self, supervisor: Supervisor, caller: Caller, console: Console) -> None:
        self.supervisor = supervisor
        self.caller = caller
        self.console = console
        self._programs: Programs | None = None
        self._remarked = 0
        self._found: tuple[Project, Growth | None] | None = None
        self._guard: Guard | None = None

    def guard(self) -> Guard:
        """Return which folders guests can write, or could, those of this caller's project among them.

        Raises:
            CommandError: What is known of folders can't be read.
        """
        if self._guard is None:
            self._guard = guarding(self._own_folders(), self.supervisor.known_folders.known().guard)
        return self._guard

    def found_project(self) -> tuple[Project, Growth | None]:
        """Return the project of the caller's directory as it is found now, and how it is more than it was.

        Raises:
            ProjectError: The directory is gone, or its repository is broken.
            LinkError: The directory, or its repository, was replaced by a link.
        """
        if self._found is None:
            known = self.supervisor.known_folders.known()
            found = _find(self.caller.cwd, known)
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
        if not self.caller.flags.accept_growth and not await self.console.confirm(
            f"{grown.text}. Is that right?"
        ):
            raise GrowthError(
                grown.text,
                hint="if you know why, accept it once: --accept-growth; if not, see what git says there",
            )
        self.supervisor.known_folders.remember(grown.allowed())
        return project

    async def mountable_project(self) -> Project:
        """Return the project, if it may be mounted.

        Raises:
            ProjectError: It is ``/``, the home directory or above it, and no flag allows that; or it would
                give away claude-vm's own data. Else see `project`.
        """
        project = await self.project()
        check_project(project, home=self.caller.home, any_directory=self.caller.flags.any_directory)
        check_apart(project_folders(project), self.supervisor.folders)
        check_text(str(project.root), "project")
        return project

    async def settings(self, *obeyed: Obeyed) -> Settings:
        """Return the settings of this caller, which is told which of `obeyed` it sets in vain.

        Raises:
            ConfigError: With every problem of every layer.
        """
        load = partial(
            load_settings,
            flags=self.caller.flags.settings,
            environ=self.caller.environ,
            home=self.caller.home,
            guard=self.guard(),
        )
        # A large file takes long, and others wait; for a small one a thread would be the longer part.
        if global_file_size(self.caller.home) > SMALL_FILE:
            found = await anyio.to_thread.run_sync(load)
        else:
            found = load()
        for line in found.without_effect(obeyed):
            await self.console.say(f"claude-vm: {line}")
        return found

    def apply_pool_settings(self, settings: Settings) -> None:
        """Let the pool obey what the global file of the daemon's user says now.

        `settings` are this caller's; they save a second reading where it has the same home. A
        supervisor for one command keeps nothing ready.
        """
        if self.supervisor.in_process:
            return
        own = Path.home()
        policy = (
            pool_policy(settings, host_memory_mib())
            if self.caller.home == own
            else read_policy(own, self.guard())
        )
        if policy is not None:
            policy = msgspec.structs.replace(policy, prestart_drivers=self.supervisor.drivers.prestarting)
            self.supervisor.dispatcher.post(PolicyChanged(at=anyio.current_time(), policy=policy))

    def remember(self, project: Project, key: PoolKey) -> None:
        """Write down what a VM of this key will be able to write, before there is one.

        Raises:
            CommandError: It can't be written, so there must be no such VM.
        """
        known = self.supervisor.known_folders.known()
        mounts = [(Path(m.host), (m.device, m.inode)) for m in key.mounts if m.writable]
        self.supervisor.known_folders.remember(
            remembered(project, mounts, known, lambda path: _find(path, known))
        )

    def programs(self) -> Programs:
        """Return where this caller would find programs, but for folders into which guests can put some."""
        if self._programs is None:
            self._programs = search(self.caller.environ.get("PATH", os.defpath), self._guards())
        return self._programs

    async def say_remarks(self) -> None:
        """Say under ``-v`` what of the caller's ``PATH`` was left out, and if we ourselves are no safer."""
        if not self.caller.flags.verbose:
            return
        remarks = self.programs().remarks[self._remarked :]
        self._remarked += len(remarks)
        for remark in remarks:
            await self.console.say_verbose(f"claude-vm: {remark}")
        for own in (sys.executable, __file__):
            if guest := self.programs().guest_at(own):
                await self.console.say_verbose(f"claude-vm: {own} is ours, and guests can write to {guest}")

    def _guards(self) -> Guards:
        """Return what says what guests can write, or could, each time anew."""
        own = self._own_folders()
        known_folders = self.supervisor.known_folders

        def now() -> Guard:
            try:
                return guarding(own, known_folders.known().guard)
            except CommandError:  # nobody knows, so it may be anywhere
                return lambda _path, _identity: True

        return now

    def _own_folders(self) -> Sequence[Path]:
        """Return the folders of the project, if there is one: who needs it is told why there is none."""
        with suppress(ContextError, CommandError):
            return project_folders(self.found_project()[0])
        return ()


def _find(path: Path, known: Known) -> Project:
    return find_project(path, lambda named: real_path(named, known.guard))


def check_text(path: str, what: str) -> None:
    """Refuse a path that is no text: what the guest and the records are told about it is JSON.

    Raises:
        CommandError: It has bytes that are no UTF-8.
    """
    try:
        path.encode()
    except UnicodeEncodeError as error:
        raise CommandError(
            f"bad-{what}", f"the path of the {what} is not UTF-8: {path}", hint="rename the directory"
        ) from error
