"""`claude-vm setup`: build the project's template beside the old one and swap at the end."""

from claude_vm.context.config.setting import Obeyed
from claude_vm.supervisor.daemon.clients.command import Command
from claude_vm.supervisor.daemon.place.driver import choose_driver
from claude_vm.supervisor.daemon.templates.current import build_template
from claude_vm.supervisor.grammar.commands.templates import Setup


async def setup(command: Command, request: Setup) -> int:
    """Build the template; 0 when it is the current one."""
    workspace = command.workspace
    project = await workspace.mountable_project()
    settings = await workspace.settings(Obeyed.TEMPLATE)
    driver = await choose_driver(workspace, settings, project)
    await build_template(workspace, driver, settings, project, agent=not request.no_agent)
    return 0
