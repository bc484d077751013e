"""Commands whose help is a text in sections, returned and not printed.

typer's own help without rich has one flat list of options and one of commands, and prints it itself.
"""

from collections.abc import Iterable
from typing import Any, NoReturn

import typer
from typer.core import TyperCommand, TyperGroup

from claude_vm.supervisor.grammar.declaring import cut
from claude_vm.supervisor.grammar.flags import ABOUT

# typer has a copy of click in itself since 0.26 and used the real one before; under both, this is the
# base of a public name.
UsageError: Any = typer.BadParameter.__bases__[0]
"""What typer raises for a wrong command line. Takes the message, and ``ctx``."""


class HelpRequestedError(Exception):
    """Somebody asked a command for its help; `text` is it."""

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self.text = text


def _quiet_help(option: Any) -> Any:
    option.callback = _raise_help
    option.rich_help_panel = ABOUT
    return option


def _raise_help(context: Any, _parameter: Any, value: bool) -> bool:
    if value and not context.resilient_parsing:
        _ask_help(context)
    return value


def _ask_help(context: Any) -> NoReturn:
    raise HelpRequestedError(context.get_help())


def _write_sections(formatter: Any, title: str, rows: Iterable[tuple[str | None, tuple[str, str]]]) -> None:
    """Write rows as one definition list a section, in order of first appearance; None is `title`."""
    sections: dict[str, list[tuple[str, str]]] = {}
    for panel, row in rows:
        sections.setdefault(panel or title, []).append(row)
    for name, members in sections.items():
        with formatter.section(name):
            formatter.write_dl(members)


def _write_parameters(command: Any, context: Any, formatter: Any) -> None:
    rows: list[tuple[str | None, tuple[str, str]]] = []
    for parameter in command.get_params(context):
        row = parameter.get_help_record(context)
        kind = "Arguments" if parameter.param_type_name == "argument" else None
        rows.append((kind or getattr(parameter, "rich_help_panel", None), row))
    _write_sections(formatter, "Flags", rows)


class HelpCommand(TyperCommand):
    """A sub-command."""

    def get_help_option(self, ctx: Any) -> Any:
        """Return the help option, which raises `HelpRequestedError` when it is used."""
        return _quiet_help(super().get_help_option(ctx))

    def format_options(self, ctx: Any, formatter: Any) -> None:
        """Write the parameters, in their sections."""
        _write_parameters(self, ctx, formatter)


class HelpGroup(TyperGroup):
    """A command with sub-commands."""

    def get_help_option(self, ctx: Any) -> Any:
        """Return the help option, which raises `HelpRequestedError` when it is used."""
        return _quiet_help(super().get_help_option(ctx))

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        """Return the sub-command that the words begin with."""
        if self.get_command(ctx, args[0]) is None:
            names = ", ".join(self.list_commands(ctx))
            raise UsageError(f"'{cut(args[0])}' is not a command of `{ctx.command_path}`: {names}", ctx=ctx)
        return super().resolve_command(ctx, args)

    def format_options(self, ctx: Any, formatter: Any) -> None:
        """Write the sub-commands, then the parameters, each in their sections."""
        self.format_commands(ctx, formatter)
        _write_parameters(self, ctx, formatter)

    def format_commands(self, ctx: Any, formatter: Any) -> None:
        """Write the sub-commands in their sections, each with the first sentence of its help."""
        width = formatter.width
        rows: list[tuple[str | None, tuple[str, str]]] = []
        for name in self.list_commands(ctx):
            command: Any = self.get_command(ctx, name)
            rows.append((command.rich_help_panel, (name, command.get_short_help_str(width))))
        _write_sections(formatter, "Commands", rows)
