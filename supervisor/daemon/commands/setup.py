"""`claude-vm setup`: build the project's template beside the old one and swap at the end."""

from claude_vm.supervisor.daemon.clients.command import Command
from claude_vm.supervisor.daemon.place.driver import choose_driver
from claude_vm.supervisor.daemon.templates.current import build_template
from claude_vm.supervisor.grammar.requests import Setup


async def setup(command: Command, request: Setup) -> int:
    """Build the template; 0 when it is the current one."""
    settings = await command.settings()
    project = await command.mountable_project()
    driver = await choose_driver(command, settings, project)
    await build_template(command, driver, settings, project, agent=request.agent)
    return 0
