"""`claude-vm [agent]` and `claude-vm shell`: one session, from its request to its clean end."""

import shlex
import sqlite3
import time
from collections.abc import Sequence
from pathlib import Path

import anyio
import structlog
from msgspec.structs import replace

from claude_vm.context import worktree_locks
from claude_vm.context.claude_command import claude_argv
from claude_vm.context.ports import HIGHEST
from claude_vm.context.project import Project
from claude_vm.supervisor.core.views import PoolView
from claude_vm.supervisor.daemon.clients.command import FAILED, SIGNAL_STATUS, Command
from claude_vm.supervisor.daemon.commands.background import refuse_background
from claude_vm.supervisor.daemon.commands.telling import tell_reports, tell_sharing
from claude_vm.supervisor.daemon.dispatch.dispatcher import fresh_session_id
from claude_vm.supervisor.daemon.errors import CommandError
from claude_vm.supervisor.daemon.place.plan import LABEL_LIMIT, plan_session
from claude_vm.supervisor.daemon.place.resolve import Place, resolve
from claude_vm.supervisor.daemon.sessions import client_agent
from claude_vm.supervisor.daemon.sessions.farewell import farewell
from claude_vm.supervisor.daemon.sessions.next_steps import next_step
from claude_vm.supervisor.daemon.sessions.queued import waits_for
from claude_vm.supervisor.daemon.sessions.session import Session
from claude_vm.supervisor.daemon.sessions.source import how_it_came
from claude_vm.supervisor.grammar.commands.sessions import Agent, Shell
from claude_vm.supervisor.ssh.launch import Mode
from claude_vm.supervisor.wire.server import Level

log = structlog.get_logger()

CLIENT_GONE = 129
"""What a session's story says of it when its client vanished. Nobody is there to see it."""


async def agent(command: Command, request: Agent) -> int:
    """Run Claude."""
    place = await resolve(
        command.site, lambda found: refuse_background(request.args, found.defaults.claude_args or ())
    )
    if place.template.claude_version is None:
        raise CommandError(
            "no-agent", "this project's template was built without Claude Code", hint="run: claude-vm setup"
        )
    argv = ("claude", *claude_argv(list(request.args), place.settings.defaults.claude_args))
    return await _session(command, place, Mode.EXEC, argv, " ".join(_first(("claude", *request.args))))


async def shell(command: Command, request: Shell) -> int:
    """Run a command, or a login shell."""
    words = request.words
    mode = (Mode.EVAL if len(words) == 1 else Mode.EXEC) if words else Mode.SHELL
    place = await resolve(command.site)
    return await _session(command, place, mode, words, shlex.join(_first(words)) or "shell")


async def _session(command: Command, place: Place, mode: Mode, argv: tuple[str, ...], label: str) -> int:
    project = place.project
    await tell_reports(command, project)
    # The plan has keys and tokens: nobody but the session keeps it, which gives them up when it has started.
    session = Session(
        fresh_session_id(),
        replace(
            await plan_session(command.site, place, mode=mode, argv=argv, label=label),
            forward_agent=await _has_agent(command),
        ),
        command.client,
    )
    await tell_sharing(command, place.settings, session.plan)
    try:
        _reserve_ports(command, session)
        await _lock_worktrees(command, session, project)
        status = await _attend(command, session)
    finally:
        session.ports.close()
        if any(name == "start" for name, _ in session.marks):
            plan = session.plan
            command.supervisor.looker.owe(
                session.session_id, plan.project, session.created_at, plan.key.mounts
            )
        with anyio.CancelScope(shield=True):
            await _unlock_worktrees(command, session, project)
            command.supervisor.dispatcher.forget(session)
    for line in farewell(session.remaining, session.last_words):
        await command.say(line)
    return status


async def _has_agent(command: Command) -> bool:
    """Tell whether an agent shall be forwarded. One that is not there is told now."""
    if not command.flags.forward_ssh_agent:
        return False
    path = command.site.caller.environ.get("SSH_AUTH_SOCK")
    if not path:
        await command.say("claude-vm: no SSH agent runs here (SSH_AUTH_SOCK is not set), so -A forwards none")
        return False
    if not await client_agent.answers(command.client):
        await command.say(f"claude-vm: no SSH agent answers at {path} (SSH_AUTH_SOCK), so -A forwards none")
        return False
    return True


def _reserve_ports(command: Command, session: Session) -> None:
    """Take the ports of this host that were asked for, before anything else is begun.

    Raises:
        CommandError: Somebody has one of them.
    """
    problems = session.ports.reserve()
    if not problems:
        return
    sessions = command.supervisor.dispatcher.sessions.values()
    lines: list[str] = []
    for port, problem in problems:
        owner = next((s.session_id for s in sessions if s.ports.has(port)), "")
        why = f"the session {owner} has it" if owner else problem
        lines.append(f"port {port} of this host can't be had: {why}")
    asked = next(p for p in session.plan.publish.ports if p.host == problems[0][0])
    other = asked.host + 1 if asked.host < HIGHEST else asked.host - 1
    hint = f"choose another one: --publish {other}:{asked.guest}"
    if asked.source != "--publish":
        hint = f"{asked.source} asks for it; --publish none leaves all of them out"
    if len(lines) == 1:
        raise CommandError("port-taken", lines[0], hint=hint)
    raise CommandError("port-taken", f"{len(lines)} ports can't be had", lines=lines, hint=hint)


async def _attend(command: Command, session: Session) -> int:
    """Stay with a session until nothing of it is left; return its exit status."""
    dispatcher = command.supervisor.dispatcher
    client = command.client

    async def stop_when_gone() -> None:
        await client.gone.wait()
        dispatcher.stop(session.session_id, "its client went away", CLIENT_GONE)

    async def stop_on_signal() -> None:
        while True:
            name = await session.next_stop(client)
            dispatcher.stop(session.session_id, f"interrupted by SIG{name}", SIGNAL_STATUS.get(name, FAILED))

    before = dispatcher.core.pools() if command.flags.verbose else ()

    async with anyio.create_task_group() as tasks:
        for task in (stop_when_gone, stop_on_signal):
            tasks.start_soon(task)
        tasks.start_soon(_tell_phases, command, session, before)
        tasks.start_soon(_serve_ports, command, session)
        dispatcher.request(session)
        await session.ended.wait()
        tasks.cancel_scope.cancel()
    outcome = session.outcome
    if outcome is None:  # pragma: no cover - `ended` is set with it
        return FAILED
    if outcome.code:
        step = next_step(outcome.code, command.supervisor.home)
        beneath = (*outcome.detail, *((step,) if step else ()))
        await client.note(f"claude-vm: {outcome.message} [{outcome.code}]", "error", beneath)
    return outcome.status


async def _serve_ports(command: Command, session: Session) -> None:
    def tell(text: str, level: Level) -> None:
        if level == "error" or command.flags.verbose or (level == "info" and not command.flags.quiet):
            command.client.note_nowait(text, level)

    await session.ports.serve(tell, hint=not command.flags.quiet)


async def _tell_phases(command: Command, session: Session, before: Sequence[PoolView]) -> None:
    """Tell each phase; under ``-v`` also how the session got its VM. `before`: what was ready for whom."""
    client = command.client
    verbose = command.flags.verbose
    begun = time.monotonic()
    show = verbose or (client.invocation.terminal.stderr_tty and not command.flags.quiet)
    level: Level = "verbose" if verbose else "progress"
    source_told = False
    while True:
        phase = await session.next_phase()
        if phase == "queued":
            core = command.supervisor.dispatcher.core
            most = core.policy.max_instances
            phase = waits_for(session.session_id, core.instances(), core.sessions(), most)
        if verbose and session.source and not source_told:
            source_told = True
            came = how_it_came(session.source, session.plan.key, before)
            await command.say_verbose(f"claude-vm: {came}")
        if show:
            await client.note(f"claude-vm: {phase} (at {time.monotonic() - begun:.1f} s)", level)


async def _lock_worktrees(command: Command, session: Session, project: Project) -> None:
    common = project.git_common_dir
    if common is None:
        return
    try:
        command.supervisor.journal.lock_worktrees(str(common), session.session_id)
    except sqlite3.Error as error:
        raise CommandError("journal-failed", f"the journal can't be written: {error}") from error
    mounted = [Path(m.host) for m in session.plan.key.mounts]
    await anyio.to_thread.run_sync(
        worktree_locks.lock_siblings, common, mounted, command.supervisor.supervisor_id
    )


async def _unlock_worktrees(command: Command, session: Session, project: Project) -> None:
    common = project.git_common_dir
    if common is None:
        return
    try:
        is_last = command.supervisor.journal.unlock_worktrees(str(common), session.session_id)
    except sqlite3.Error as error:
        log.warning("worktrees-not-unlocked", repository=str(common), error=str(error))
        return
    if is_last:
        await anyio.to_thread.run_sync(worktree_locks.release_stale, common, command.supervisor.supervisor_id)


def _first(words: Sequence[str]) -> list[str]:
    """Return as much of the words as a label can show."""
    return [word[: LABEL_LIMIT + 1] for word in words[: LABEL_LIMIT + 1]]
