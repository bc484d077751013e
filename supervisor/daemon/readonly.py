"""A supervisor that writes nothing, for one command, where the data folder can't be written.

It stands in for a daemon that can't be started. From the daemon's journal, of which it has a copy in memory,
it knows the sessions that go on, so they are listed and can be stopped. All else that the daemon left stays
as it is, unless the command makes room; and the journal stays, so the next daemon finds out for itself what
is gone, and does what is pending for it: the scan for other names, the worktrees' locks. A command that needs
what can't be written is refused before it begins.
"""

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager, nullcontext
from pathlib import Path

import anyio

from claude_vm.drivers.api import Owner
from claude_vm.drivers.process import boot_id
from claude_vm.drivers.programs import system
from claude_vm.supervisor.core.core import Core
from claude_vm.supervisor.daemon.adopt import adopt
from claude_vm.supervisor.daemon.dispatch.dispatcher import Dispatcher
from claude_vm.supervisor.daemon.drivers import DriverSet
from claude_vm.supervisor.daemon.errors import CommandError
from claude_vm.supervisor.daemon.sessions.scanning import Scanner
from claude_vm.supervisor.daemon.sessions.sessions import Sessions
from claude_vm.supervisor.daemon.state import identity
from claude_vm.supervisor.daemon.state.journal import Journal
from claude_vm.supervisor.daemon.state.known_folders import KnownFolders
from claude_vm.supervisor.daemon.state.reports import Reports
from claude_vm.supervisor.daemon.supervisor import NO_POOL, Supervisor
from claude_vm.supervisor.grammar.requests import Request
from claude_vm.supervisor.wire import paths
from claude_vm.supervisor.wire.shortage import NotWritableError

DELETION_S = 30.0
"""How long the deletion of what nobody uses may take, in seconds, before a command that wants it gone."""


@asynccontextmanager
async def open_readonly_supervisor(
    home: Path, supervisor_id: str, short: NotWritableError
) -> AsyncIterator[Supervisor]:
    """Open a supervisor that writes nothing, because of `short`. Leaving it ends nothing.

    Raises:
        AlreadyRunningError: Another process has this supervisor's lock.
        NewerSchemaError: A newer version wrote the journal.
        OSError: The lock, or the folder of the journal, can't be opened.
    """
    async with AsyncExitStack() as stack:
        folder = stack.enter_context(identity.locked_as_it_is(home, supervisor_id))
        journal_path = identity.supervisors_folder(home) / supervisor_id / "journal.db"
        journal, is_whole = stack.enter_context(Journal.copied(journal_path, boot_id()))
        known_folders = KnownFolders(home)
        stack.callback(known_folders.close)
        tasks = await stack.enter_async_context(anyio.create_task_group())
        runtime = Path(paths.runtime_directory(str(home)))
        drivers = DriverSet(Owner(home=home, supervisor_id=supervisor_id, runtime=runtime), tasks, system())
        sessions = Sessions(tasks, lambda *_: nullcontext())
        dispatcher = Dispatcher(Core(NO_POOL), journal, drivers, tasks, sessions)

        async def prepare(request: Request) -> str:
            makes_room = _makes_room(request, short)
            if folder is None:
                return short.consequence  # there was no daemon yet
            if not is_whole:
                return f"{short.consequence}; the journal can't be read, so sessions and VMs are not known"
            adopted = await adopt(dispatcher, drivers, journal, spare=not makes_room)
            with anyio.move_on_after(DELETION_S):
                while makes_room and dispatcher.instance_count > len(sessions.running):
                    await dispatcher.change()
            count = len(adopted.spared)
            left = f"; {count} VM(s) without a session are left to the next daemon" if count else ""
            return f"{short.consequence}{left}"

        yield Supervisor(
            dispatcher=dispatcher,
            sessions=sessions,
            drivers=drivers,
            known_folders=known_folders,
            scanner=Scanner(Reports(home)),
            sweep=_sweep_nothing,
            in_process=True,
            prepare=prepare,
        )
        tasks.cancel_scope.cancel()


def _sweep_nothing() -> None:
    """Leave what dead supervisors left to those that can write."""


def _makes_room(request: Request, short: NotWritableError) -> bool:
    """Tell whether a command is there to delete what nobody uses.

    Raises:
        CommandError: It needs what can't be written.
    """
    if not request.writes:
        return request.makes_room
    raise CommandError(short.code, str(short), hint=short.hint)
