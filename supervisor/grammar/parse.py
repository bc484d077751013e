"""From a command line to a request, or to the text that answers it at once."""

from collections.abc import Sequence
from typing import Any

import msgspec

from claude_vm.supervisor.grammar import usage
from claude_vm.supervisor.grammar.application import ParseContext, application
from claude_vm.supervisor.grammar.commands.installation import Completion
from claude_vm.supervisor.grammar.completion import SCRIPTS
from claude_vm.supervisor.grammar.flags import Flags
from claude_vm.supervisor.grammar.layout import HelpRequestedError, UsageError
from claude_vm.supervisor.grammar.requests import Request
from claude_vm.supervisor.grammar.words import OWN_WORDS, Split, WordsError, split
from claude_vm.supervisor.statuses import USAGE

MIN_COLUMNS, MAX_COLUMNS = 50, 100


class Printout(msgspec.Struct, frozen=True, kw_only=True):
    """The whole answer to a command line that runs nothing: help, a version, a usage error.

    `status` is the exit status; `to_stderr` tells where the lines belong. Words of the command line come back
    in them as they are: whoever prints them makes them harmless.
    """

    lines: tuple[str, ...]
    status: int = 0
    to_stderr: bool = False


def parse(argv: Sequence[str], *, columns: int = 80, program: str = "claude-vm") -> Request | Printout:
    """Return what a command line asks for.

    `argv` is without the program's name; bytes that are no UTF-8 may stand in it as surrogate escapes. Help
    is laid out for `columns`. Nothing is printed, and nothing exits.

    Raises:
        Nothing: a wrong command line gives an `Printout` with status 2.
    """
    try:
        parts = split(argv)
    except WordsError as error:
        return _wrong(error.message, f"{program} {error.command}".rstrip())
    if parts.asks == "version":
        return _version(program)
    return _run(parts, columns, program)


def _run(parts: Split, columns: int, program: str) -> Request | Printout:
    root = application()
    given = ParseContext()
    arguments = [*parts.flags]
    if parts.command:
        arguments.append(parts.command)
    if parts.asks == "help":
        # Flags before the question are of no interest, not even wrong ones.
        arguments = [parts.command, "--help"] if parts.command else ["--help"]
    elif parts.command in OWN_WORDS:
        given.operands = parts.operands
        arguments.extend(parts.own)
    else:
        arguments.extend(parts.operands)
    width = min(max(columns, MIN_COLUMNS), MAX_COLUMNS)
    try:
        with root.make_context(program, arguments, obj=given, terminal_width=width) as context:
            try:
                answer = root.invoke(context)
            finally:
                context.params.clear()
    except HelpRequestedError as asked:
        return Printout(lines=tuple(asked.text.rstrip("\n").split("\n")))
    except UsageError as error:
        return _wrong(usage.message(error), _path(error, program), _usage(error))
    finally:  # typer keeps each function's last arguments, and these may have secrets
        given.operands, given.flags = (), Flags()
    if isinstance(answer, Completion):
        return Printout(lines=tuple(SCRIPTS[answer.shell].splitlines()))
    if not isinstance(answer, Request):  # pragma: no cover - every command makes one
        raise TypeError(answer)
    return answer


def _path(error: Any, program: str) -> str:
    return str(error.ctx.command_path) if error.ctx is not None else program


def _usage(error: Any) -> str:
    return str(error.ctx.get_usage()) if error.ctx is not None else ""


def _wrong(message: str, path: str, forms: str = "") -> Printout:
    lines = (f"claude-vm: {message} [usage]", *(forms.split("\n") if forms else ()), f"Try '{path} --help'.")
    return Printout(lines=lines, status=USAGE, to_stderr=True)


def _version(program: str) -> Printout:
    from importlib.metadata import version  # noqa: PLC0415 - only when it is asked for

    return Printout(lines=(f"{program} {version('claude-vm')}",))
