"""Answers one client: from its words to its exit status."""

import errno
from collections.abc import Awaitable, Callable

import structlog

from claude_vm.context.errors import ContextError
from claude_vm.drivers.errors import DriverError, words_of
from claude_vm.supervisor.daemon.clients.command import Command
from claude_vm.supervisor.daemon.commands import (
    daemon,
    doctor,
    info,
    pool,
    pool_status,
    ps,
    session,
    stop,
    templates,
)
from claude_vm.supervisor.daemon.errors import CommandError
from claude_vm.supervisor.daemon.supervisor import Supervisor
from claude_vm.supervisor.grammar.commands.installation import Doctor, ShowDaemon, StopDaemon, Version
from claude_vm.supervisor.grammar.commands.pool import DrainPool, FillPool, ShowPool
from claude_vm.supervisor.grammar.commands.sessions import Agent, Ps, Shell, Stop
from claude_vm.supervisor.grammar.commands.templates import Clean, CleanAll, Info, ListTemplates, Setup
from claude_vm.supervisor.grammar.parse import Printout, parse
from claude_vm.supervisor.grammar.requests import Request
from claude_vm.supervisor.ssh.errors import LaunchError
from claude_vm.supervisor.statuses import FAILED, OUTPUT_CLOSED, SESSION_FAILED
from claude_vm.supervisor.wire.connected_client import Client
from claude_vm.supervisor.wire.error_text import error_text
from claude_vm.supervisor.wire.errors import OutputClosedError
from claude_vm.supervisor.wire.escape import printed

log = structlog.get_logger()

# Each function takes the request of its key's type; a table can't say that. What is missing, the client does.
COMMANDS: dict[type[Request], Callable[..., Awaitable[int]]] = {
    Agent: session.agent,
    Shell: session.shell,
    Ps: ps.ps,
    Stop: stop.stop,
    ShowPool: pool_status.pool_status,
    FillPool: pool.fill,
    DrainPool: pool.drain,
    Setup: templates.setup,
    ListTemplates: templates.list_templates,
    Info: info.info,
    Clean: templates.clean,
    CleanAll: templates.clean_all,
    Doctor: doctor.doctor,
    Version: daemon.version,
    ShowDaemon: daemon.status,
    StopDaemon: daemon.stop,
}


async def answer(supervisor: Supervisor, client: Client) -> int:
    """Carry out the command of a client and return its exit status. Raises nothing that a user can cause."""
    parsed = parse(client.invocation.argv, columns=client.invocation.terminal.columns or 80)
    if isinstance(parsed, Printout):
        data = printed(parsed.lines).encode()
        await (client.send_stderr(data) if parsed.to_stderr else client.send_stdout(data))
        return parsed.status
    failed = SESSION_FAILED if parsed.runs_others else FAILED
    command = Command(supervisor, client, parsed.flags)
    supervisor.sweep()
    log.info("command", name=type(parsed).__name__.lower())
    try:
        if remark := await supervisor.prepare(parsed):
            await command.say(f"claude-vm: {remark}")
        return await COMMANDS[type(parsed)](command, parsed)
    except OutputClosedError:
        return OUTPUT_CLOSED
    except (CommandError, DriverError, ContextError, LaunchError) as error:
        text, beneath = error_text(error)
        await client.note(text, "error", beneath)
        status = error.status if isinstance(error, CommandError) else None
        return status or failed
    except OSError as error:
        hints = (f"make room in {supervisor.home}",) if error.errno in {errno.ENOSPC, errno.EDQUOT} else ()
        await client.note(f"claude-vm: {words_of(error)} [system-error]", "error", hints)
        return failed
    finally:
        client.forget_environment()
