"""What is decided of a session before it has a VM, from its caller and its place. Needs no client."""

from functools import partial

import anyio

from claude_vm.context.claude_home import home_files, session_environment
from claude_vm.context.environment import resolve_environment
from claude_vm.context.ports import plan_ports
from claude_vm.context.terminal import guest_terminal
from claude_vm.supervisor.daemon.clients.workspace import Workspace
from claude_vm.supervisor.daemon.place.main_command import MainCommand
from claude_vm.supervisor.daemon.place.resolve import Place
from claude_vm.supervisor.daemon.sessions.plan import Launch, SessionPlan
from claude_vm.supervisor.daemon.sessions.sharing import writes
from claude_vm.supervisor.ssh.process import Pty


async def plan_session(place: Place, command: MainCommand) -> SessionPlan:
    """Return the plan of a session that runs a command here. Who gets it has its keys and tokens.

    Raises:
        ContextError: A variable, an environment file or a port is wrong.
        LaunchError: No guest could run that.
        CommandError: What its guest could write can't be written down.
        DriverError: The template is gone.
    """
    target, template = place.target, place.template
    workspace, project = target.workspace, target.project
    caller = workspace.caller
    capabilities = await target.driver.capabilities()
    if not capabilities.isolates:
        await workspace.console.warn(f"claude-vm: {capabilities.accelerator_reason}")
    terminal = caller.terminal
    shown = guest_terminal(
        {**caller.environ, "TERM": terminal.term},
        known_terms=template.terminfo,
        known_locales=template.locales,
        terminfo=caller.terminfo,
    )
    environment = session_environment(caller.environ, capabilities.host_address, user=template.user)
    files = home_files(
        trusted=(str(project.root), str(project.cwd)),
        environment=environment,
        version=template.claude_version,
        instructions=capabilities.instructions,
    )
    environment |= shown.environment
    pty = None
    if terminal.stdin_tty and terminal.stdout_tty:
        files += shown.files
        pty = Pty(shown.term, terminal.rows, terminal.columns, terminal.width, terminal.height)
    else:
        environment.pop("TERM", None)
    environment |= await _given_environment(workspace)
    launch = Launch(mode=command.mode, argv=command.argv, env=environment, cwd=str(project.cwd))
    launch.check()
    await place.note_use()
    return SessionPlan(
        key=place.key,
        project=str(project.root),
        command_text=command.text,
        launch=launch,
        files=files,
        pty=pty,
        publish=plan_ports(target.settings.published),
        writes=writes(place.key, project),
        repository=str(project.git_common_dir or ""),
    )


async def _given_environment(workspace: Workspace) -> dict[str, str]:
    flags = workspace.caller.flags
    resolve = partial(
        resolve_environment,
        env=flags.env,
        env_files=flags.env_files,
        inherit=flags.inherit_env,
        environ=workspace.caller.environ,
        cwd=workspace.caller.cwd,
        guard=workspace.guard(),
    )
    # Files may be large, or on a disk that is slow.
    return await anyio.to_thread.run_sync(resolve) if flags.env_files else resolve()
