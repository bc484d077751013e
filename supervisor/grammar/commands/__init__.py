"""The sub-commands, each declared once, by the panel of the help that it stands in."""

from collections.abc import Mapping, Sequence

from claude_vm.supervisor.grammar.commands import installation, sessions, templates
from claude_vm.supervisor.grammar.commands.bench import BENCH
from claude_vm.supervisor.grammar.commands.pool import POOL
from claude_vm.supervisor.grammar.requests import Group, Request

Declaration = type[Request] | Group

PANELS: Mapping[str, Sequence[Declaration]] = {
    "Sessions": (*sessions.COMMANDS, POOL),
    "Templates": templates.COMMANDS,
    "This installation": (*installation.COMMANDS, BENCH),
}

COMMANDS: Mapping[str, Declaration] = {
    command.command: command for panel in PANELS.values() for command in panel
}

REQUESTS = tuple(
    request
    for command in COMMANDS.values()
    for request in (command.commands if isinstance(command, Group) else (command,))
)
"""Every command that can be carried out, those of groups among them."""
