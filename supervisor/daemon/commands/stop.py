"""`claude-vm stop`: end sessions."""

from bisect import bisect_left

import anyio

from claude_vm.supervisor.daemon.clients.command import Command
from claude_vm.supervisor.daemon.errors import CommandError
from claude_vm.supervisor.daemon.sessions.session import Session
from claude_vm.supervisor.grammar.commands.sessions import Stop
from claude_vm.supervisor.statuses import TERMINATED
from claude_vm.supervisor.wire.errors import OutputClosedError


async def stop(command: Command, request: Stop) -> int:
    """End the named sessions (unambiguous beginnings of ids are enough), or all; wait until they are gone."""
    running = command.supervisor.sessions.running
    known = sorted(running)
    chosen = list(running.values()) if request.all else [running[_find(known, n)] for n in request.sessions]
    await stop_sessions(command, chosen)
    return 0


async def stop_sessions(command: Command, sessions: list[Session]) -> None:
    """End sessions and wait until nothing of them is left, all at the same time.

    Raises:
        OutputClosedError: Nobody reads which ones; they have ended all the same.
    """
    unread: list[OutputClosedError] = []

    async def end(session: Session) -> None:
        command.supervisor.dispatcher.stop(session.session_id, "stopped by `claude-vm stop`", TERMINATED)
        await session.over.wait()
        try:
            await command.out(session.session_id)
        except OutputClosedError as error:
            unread.append(error)  # raised below: out of here it would come in a group

    async with anyio.create_task_group() as tasks:
        for session in sessions:
            tasks.start_soon(end, session)
    if unread:
        raise unread[0]


def _find(known: list[str], name: str) -> str:
    """Return the id that begins with a name; `known` are all, in order."""
    at = bisect_left(known, name)
    found = [known_id for known_id in known[at : at + 2] if known_id.startswith(name)]
    if len(found) == 1 or name in found:
        return found[0]
    reason = "is ambiguous" if found else "is not running"
    raise CommandError("no-such-session", f"session '{name}' {reason}", hint="list them with: claude-vm ps")
