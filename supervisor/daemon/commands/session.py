"""`claude-vm [agent]` and `claude-vm shell`: one session, from its request to its clean end."""

import time
from collections.abc import Sequence

import anyio

from claude_vm.supervisor.core.views import PoolView
from claude_vm.supervisor.daemon.clients.command import Command
from claude_vm.supervisor.daemon.commands.notices import tell_reports, tell_sharing
from claude_vm.supervisor.daemon.dispatch.dispatcher import fresh_session_id
from claude_vm.supervisor.daemon.place.main_command import MainCommand, resolve_claude, shell_command
from claude_vm.supervisor.daemon.place.plan import plan_session
from claude_vm.supervisor.daemon.place.resolve import Place, resolve
from claude_vm.supervisor.daemon.sessions import client_agent
from claude_vm.supervisor.daemon.sessions.attachment import Attachment
from claude_vm.supervisor.daemon.sessions.end_notes import end_notes, failure_notes
from claude_vm.supervisor.daemon.sessions.session import Session
from claude_vm.supervisor.daemon.sessions.start_notes import how_it_came, waits_for
from claude_vm.supervisor.grammar.commands.sessions import Agent, Shell
from claude_vm.supervisor.statuses import HUNG_UP, OF_SIGNAL, SESSION_FAILED


async def agent(command: Command, request: Agent) -> int:
    """Run Claude."""
    return await _session(command, *await resolve_claude(command.workspace, request.args))


async def shell(command: Command, request: Shell) -> int:
    """Run a command, or a login shell."""
    return await _session(command, await resolve(command.workspace), shell_command(request.words))


async def _session(command: Command, place: Place, main: MainCommand) -> int:
    await tell_reports(command, place.target.project)
    # The plan has keys and tokens: nobody but the session keeps it, which gives them up when it has started.
    session = Session(fresh_session_id(), await plan_session(place, main))
    forwards_agent = await _has_agent(command)
    await tell_sharing(command, place.target.settings, session.plan)
    status = await _attend(command, session, forwards_agent=forwards_agent)
    for line in end_notes(session.remaining, session.last_words):
        await command.say(line)
    return status


async def _has_agent(command: Command) -> bool:
    """Tell whether an agent shall be forwarded. One that is not there is told now."""
    if not command.flags.forward_ssh_agent:
        return False
    path = command.workspace.caller.environ.get("SSH_AUTH_SOCK")
    if not path:
        await command.say("claude-vm: no SSH agent runs here (SSH_AUTH_SOCK is not set), so -A forwards none")
        return False
    if not await client_agent.answers(command.client):
        await command.say(f"claude-vm: no SSH agent answers at {path} (SSH_AUTH_SOCK), so -A forwards none")
        return False
    return True


async def _attend(command: Command, session: Session, *, forwards_agent: bool) -> int:
    """Begin a session and stay with it until it is over; return its exit status. Its client's end is its end.

    Raises:
        CommandError: It can't begin.
    """
    dispatcher = command.supervisor.dispatcher
    client, flags = command.client, command.flags
    attachment = Attachment(
        session, client, quiet=flags.quiet, verbose=flags.verbose, forwards_agent=forwards_agent
    )
    session.attach(attachment)
    before = dispatcher.core.pools() if flags.verbose else ()
    await dispatcher.begin(session)

    async def stop_when_gone() -> None:
        await client.gone.wait()
        dispatcher.stop(session.session_id, "its client went away", HUNG_UP)

    def interrupt(name: str) -> None:
        dispatcher.stop(session.session_id, f"interrupted by SIG{name}", OF_SIGNAL.get(name, SESSION_FAILED))

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(attachment.serve, interrupt)
        tasks.start_soon(stop_when_gone)
        tasks.start_soon(_tell_phases, command, session, before)
        await session.over.wait()
        tasks.cancel_scope.cancel()
    session.detach(attachment)
    outcome = session.outcome
    if outcome is None:  # pragma: no cover - `over` is set after it
        return SESSION_FAILED
    if notes := failure_notes(outcome, command.supervisor.home):
        await client.note(notes[0], "error", notes[1:])
    return outcome.status


async def _tell_phases(command: Command, session: Session, before: Sequence[PoolView]) -> None:
    """Tell each phase; under ``-v`` also how the session got its VM. `before`: what was ready for whom."""
    begun = time.monotonic()
    source_told = not command.flags.verbose
    while True:
        phase = await session.next_phase()
        if phase == "queued":
            core = command.supervisor.dispatcher.core
            most = core.policy.max_instances
            phase = waits_for(session.session_id, core.instances(), core.sessions(), most)
        if session.source and not source_told:
            source_told = True
            came = how_it_came(session.source, session.plan.key, before)
            await command.say_verbose(f"claude-vm: {came}")
        await command.say_progress(f"{phase} (at {time.monotonic() - begun:.1f} s)")
