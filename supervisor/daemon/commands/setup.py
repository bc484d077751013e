"""`claude-vm setup`: build the project's template beside the old one and swap at the end."""

from claude_vm.context.config.setting import Obeyed
from claude_vm.supervisor.daemon.clients.command import Command
from claude_vm.supervisor.daemon.place.resolve import resolve_target
from claude_vm.supervisor.daemon.templates.current import build_template
from claude_vm.supervisor.grammar.commands.templates import Setup


async def setup(command: Command, request: Setup) -> int:
    """Build the template; 0 when it is the current one."""
    target = await resolve_target(command.workspace, Obeyed.TEMPLATE)
    await build_template(target, agent=not request.no_agent)
    return 0
