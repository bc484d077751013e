"""`claude-vm version`."""

from claude_vm.supervisor.daemon.clients.command import Command
from claude_vm.supervisor.grammar.commands.installation import Version


async def version(command: Command, request: Version) -> int:
    """Print our version."""
    if request.json:
        await command.out_json({"version": command.supervisor.version})
    else:
        await command.out(f"claude-vm {command.supervisor.version}")
    return 0
