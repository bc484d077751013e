"""The command line as typer sees it, made from the declarations: the runtime flags, then one sub-command."""

import inspect
from collections.abc import Callable, Sequence
from functools import cache
from typing import Annotated, Any

import msgspec
import typer

from claude_vm.supervisor.grammar.commands import PANELS
from claude_vm.supervisor.grammar.declaring import Argument, Field, Flag, fields
from claude_vm.supervisor.grammar.flags import VERSION, Flags, help_of
from claude_vm.supervisor.grammar.layout import HelpCommand, HelpGroup, UsageError
from claude_vm.supervisor.grammar.requests import Group, Request

HELP = """\
Run Claude Code, or any command, in a disposable Linux VM.

Without a sub-command, the first word that is not one of our flags begins Claude's arguments.
They are passed on unchanged; `--` ends our flags. The current project is mounted in the VM, at the
same path, writable.
"""

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


class ParseContext(msgspec.Struct):
    """What the commands get through typer's context: our flags, and the words of another program."""

    operands: tuple[str, ...] = ()
    flags: Flags = Flags()


@cache
def application() -> Any:
    """Return the root command. Its parts come in the order in which the help shows them."""
    app = typer.Typer(
        cls=HelpGroup,
        rich_markup_mode=None,
        pretty_exceptions_enable=False,
        add_completion=False,
        help=HELP,
        epilog=EPILOG,
        options_metavar="[FLAGS]",
        subcommand_metavar="[ARGS...] | COMMAND [ARGS...]",
        context_settings=_help_by("--help"),
    )
    version = Field("version", VERSION, bool, default=False)
    app.callback()(_function(_take_flags, (*fields(Flags), version)))
    for panel, commands in PANELS.items():
        for command in commands:
            if isinstance(command, Group):
                _add_group(app, command, panel)
            else:
                _add(app, command, panel)
    return typer.main.get_command(app)


def _add(app: typer.Typer, command: type[Request], panel: str | None = None) -> None:
    app.command(
        command.command,
        cls=HelpCommand,
        help=command.__doc__,
        epilog=RUNTIME_TOO,
        options_metavar="[FLAGS]",
        rich_help_panel=panel,
        # -h is perhaps meant for the other program.
        context_settings=_help_by("--help") if command.runs_others else _help_by("--help", "-h"),
    )(_function(_maker(command), fields(command)))


def _add_group(app: typer.Typer, group: Group, panel: str) -> None:
    members = typer.Typer(cls=HelpGroup, rich_markup_mode=None, add_completion=False, help=group.help)

    def alone(context: typer.Context) -> Request | None:
        if group.alone is None or context.invoked_subcommand is not None:
            return None
        return group.alone(flags=_invocation(context).flags)

    members.callback(invoke_without_command=group.alone is not None)(alone)
    for command in group.commands:
        _add(members, command)
    app.add_typer(
        members,
        name=group.command,
        rich_help_panel=panel,
        cls=HelpGroup,
        context_settings=_help_by("--help", "-h"),
    )


def _help_by(*names: str) -> dict[str, Any]:
    return {"help_option_names": [*names]}


def _invocation(context: typer.Context) -> ParseContext:
    found = context.obj
    if not isinstance(found, ParseContext):  # pragma: no cover - parse() always gives one
        raise TypeError(found)
    return found


def _take_flags(context: typer.Context, given: dict[str, Any]) -> None:
    given.pop("version", None)
    flags = Flags(**given)
    if flags.flaw:
        raise UsageError(flags.flaw, ctx=context)
    _invocation(context).flags = flags


def _maker(command: type[Request]) -> Callable[[typer.Context, dict[str, Any]], Request]:
    def make(context: typer.Context, given: dict[str, Any]) -> Request:
        invocation = _invocation(context)
        if command.runs_others:  # typer never sees these words
            words = (each.name for each in fields(command) if isinstance(each.declared, Argument))
            given |= dict.fromkeys(words, invocation.operands)
        request = command(flags=invocation.flags, **given)
        if request.flaw:
            raise UsageError(request.flaw, ctx=context)
        return request

    return make


def _function(
    use: Callable[[typer.Context, dict[str, Any]], Any], declared: Sequence[Field]
) -> Callable[..., Any]:
    """Return a function with these parameters, as typer wants it, that has `use` make something of them."""

    def function(context: typer.Context, **values: Any) -> Any:
        given = {name: tuple(v) if isinstance(v, list) else v for name, v in values.items() if v is not None}
        for value in values.values():
            if isinstance(value, list):
                value.clear()  # typer keeps each function's last arguments, and these may have secrets
        return use(context, given)

    context = inspect.Parameter("context", inspect.Parameter.KEYWORD_ONLY, annotation=typer.Context)
    parameters = [context, *map(_parameter, declared)]
    function.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    function.__annotations__ = {each.name: each.annotation for each in parameters}
    return function


def _parameter(field: Field) -> inspect.Parameter:
    declared = field.declared
    hint: Any = list[str] | None if field.may_repeat else field.type
    if declared.read is not None:
        hint = str | None  # one text, whatever is made of it
    default = inspect.Parameter.empty if field.default is msgspec.NODEFAULT else field.default or None
    if field.is_switch:
        default = False
    info: Any
    if isinstance(declared, Flag):
        names = [name for name in (declared.short, declared.name) if name]
        shown = f"{help_of(declared)} May be repeated." if field.may_repeat else help_of(declared)
        info = typer.Option(
            *names,
            metavar=declared.metavar or None,
            help=shown,
            rich_help_panel=declared.panel or None,
            parser=_reader(declared),
        )
    else:
        info = typer.Argument(metavar=declared.metavar, help=declared.help, parser=_reader(declared))
    return inspect.Parameter(
        field.name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=Annotated[hint, info]
    )


def _reader(declared: Flag | Argument) -> Callable[[str], object] | None:
    read = declared.read
    if read is None:
        return None

    def parser(text: str) -> object:
        try:
            return read(text)
        except ValueError as error:
            raise typer.BadParameter(str(error)) from error

    return parser
