"""The command line as typer sees it: the runtime flags, then one sub-command."""

from functools import cache
from typing import Any

import typer

from claude_vm.supervisor.grammar.commands import (
    agent,
    bench,
    clean,
    clean_all,
    completion,
    daemon,
    doctor,
    info,
    list_templates,
    pool,
    ps,
    setup,
    shell,
    stop,
    version,
)
from claude_vm.supervisor.grammar.layout import Command, Group
from claude_vm.supervisor.grammar.runtime import runtime_flags

EPILOG = """\
Examples:

\b
  claude-vm                           Claude, interactively, in this project
  claude-vm "fix the failing test"    the same, with a task
  claude-vm -p "..." --output-format json | jq
  claude-vm --memory 16 shell         a login shell, in a larger VM
  claude-vm shell make test           one command
  claude-vm -- --help                 Claude's own help

Exit status:

\b
  that of the main command; 128+n when it died of signal n
  125  claude-vm itself failed before or around it
  2    the command line is wrong
  1    another sub-command failed
"""

RUNTIME_TOO = "The flags of `claude-vm --help` are accepted here too."

SESSIONS = "Sessions"
TEMPLATES = "Templates"
REST = "This installation"


@cache
def application() -> Any:
    """Return the root command. Its parts come in the order in which the help shows them."""
    app = typer.Typer(
        cls=Group,
        rich_markup_mode=None,
        pretty_exceptions_enable=False,
        add_completion=False,
        epilog=EPILOG,
        options_metavar="[FLAGS]",
        subcommand_metavar="[ARGS...] | COMMAND [ARGS...]",
        context_settings={"help_option_names": ["--help"]},
    )
    app.callback()(runtime_flags)
    common: dict[str, Any] = {"cls": Command, "epilog": RUNTIME_TOO, "options_metavar": "[FLAGS]"}
    own: dict[str, Any] = {**common, "context_settings": {"help_option_names": ["--help", "-h"]}}
    theirs: dict[str, Any] = {**common, "context_settings": {"help_option_names": ["--help"]}}
    app.command("agent", rich_help_panel=SESSIONS, **theirs)(agent.agent)
    app.command("shell", rich_help_panel=SESSIONS, **theirs)(shell.shell)
    app.command("ps", rich_help_panel=SESSIONS, **own)(ps.ps)
    app.command("stop", rich_help_panel=SESSIONS, **own)(stop.stop)
    warm = typer.Typer(cls=Group, rich_markup_mode=None, add_completion=False)
    warm.callback()(pool.pool)
    warm.command("status", **own)(pool.status)
    warm.command("fill", **own)(pool.fill)
    warm.command("drain", **own)(pool.drain)
    app.add_typer(
        warm, name="pool", rich_help_panel=SESSIONS, cls=Group, context_settings=own["context_settings"]
    )
    app.command("setup", rich_help_panel=TEMPLATES, **own)(setup.setup)
    app.command("list", rich_help_panel=TEMPLATES, **own)(list_templates.list_templates)
    app.command("info", rich_help_panel=TEMPLATES, **own)(info.info)
    app.command("clean", rich_help_panel=TEMPLATES, **own)(clean.clean)
    app.command("clean-all", rich_help_panel=TEMPLATES, **own)(clean_all.clean_all)
    actions = typer.Typer(cls=Group, rich_markup_mode=None, add_completion=False)
    actions.callback()(daemon.daemon)
    actions.command("run", **own)(daemon.run)
    actions.command("status", **own)(daemon.status)
    actions.command("stop", **own)(daemon.stop)
    app.add_typer(
        actions, name="daemon", rich_help_panel=REST, cls=Group, context_settings=own["context_settings"]
    )
    benches = typer.Typer(cls=Group, rich_markup_mode=None, add_completion=False)
    benches.callback(invoke_without_command=True)(bench.bench)
    benches.command("run", **own)(bench.run)
    benches.command("targets", **own)(bench.targets)
    benches.command("compare", **own)(bench.compare)
    benches.command("gate", **own)(bench.gate)
    benches.command("picture", **own)(bench.picture)
    app.add_typer(
        benches, name="bench", rich_help_panel=REST, cls=Group, context_settings=own["context_settings"]
    )
    app.command("doctor", rich_help_panel=REST, **own)(doctor.doctor)
    app.command("version", rich_help_panel=REST, **own)(version.version)
    app.command("completion", rich_help_panel=REST, **own)(completion.completion)
    return typer.main.get_command(app)
