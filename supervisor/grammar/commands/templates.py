"""Commands on the project and on templates."""

from typing import Annotated

from claude_vm.supervisor.grammar.declaring import Flag
from claude_vm.supervisor.grammar.requests import Json, Request

Yes = Annotated[bool, Flag("--yes", "Don't ask.", short="-y")]


class Setup(Request, frozen=True):
    """Build the project's template.

    The new template is built beside the old one and takes its place at the end; a failed or interrupted
    setup leaves the old one usable.
    """

    command = "setup"
    later = frozenset(
        {
            *("--docker", "--node", "--python", "--chromium", "--gpg", "--gh", "--git", "--rust", "--all"),
            "--setup-script",
        }
    )
    no_agent: Annotated[bool, Flag("--no-agent", "Build a template without Claude Code.")] = False


class ListTemplates(Request, frozen=True):
    """List the templates."""

    command = "list"
    writes = False
    disk_usage: Annotated[bool, Flag("--disk-usage", "Show how much disk each one takes.")] = False
    unused: Annotated[bool, Flag("--unused", "List only those not used for 30 days.")] = False
    json: Json = False


class Info(Request, frozen=True):
    """Describe the current project: its template, sizes, mounts."""

    command = "info"
    writes = False
    json: Json = False


class Clean(Request, frozen=True):
    """Delete the project's template."""

    command = "clean"
    writes = False
    makes_room = True
    yes: Yes = False
    force: Annotated[bool, Flag("--force", "End the sessions that use it.")] = False


class CleanAll(Request, frozen=True):
    """Delete all templates and caches."""

    command = "clean-all"
    writes = False
    makes_room = True
    yes: Yes = False
    force: Annotated[bool, Flag("--force", "End the sessions that use them.")] = False


COMMANDS = (Setup, ListTemplates, Info, Clean, CleanAll)
