"""What is wrong with a command line, in our words: the library's repeat values as Python spells them."""

from collections.abc import Callable
from typing import Any

import typer

from claude_vm.supervisor.grammar.near_misses import FLAG_EDITS, cut, edits

_EXTRA = "Got unexpected extra argument"
_MISSING_COMMAND = "Missing command"


def whole_number(least: int, most: int) -> Callable[[str], int]:
    """Return what reads a whole number in a range, both ends included."""

    def read(text: str) -> int:
        digits = str(text)  # a default is a number already
        if digits.isascii() and digits.isdigit() and len(digits) < 10 and least <= int(digits) <= most:
            return int(digits)
        raise typer.BadParameter(f"is a whole number from {least} to {most}, not '{cut(digits)}'")

    return read


def message(error: Any) -> str:
    """Return what a usage error says."""
    said = str(error.message or "").rstrip(".")
    path = error.ctx.command_path if error.ctx is not None else "claude-vm"
    match type(error).__name__:
        case "NoSuchOption":
            near = _near(error.option_name, error.ctx)
            said = f"'{cut(error.option_name)}' is no flag of `{path}`" + (near and f"; did you mean {near}?")
        case "MissingParameter":
            choices = _choices(error.param)
            said = f"{_name(error.param)} is missing" + (choices and f": one of {choices}")
        case "BadParameter" if error.param is not None:
            choices = _choices(error.param)
            said = f"{_name(error.param)} " + (f"is one of {choices}" if choices else said)
        case "BadOptionUsage":
            said = f"{error.option_name} {'takes no' if 'does not' in said else 'needs a'} value"
        case _ if said.startswith(_EXTRA):
            words = said.partition(" (")[2].removesuffix(")")
            said = f"'{cut(words)}' is more than `{path}` takes"
        case _ if said.startswith(_MISSING_COMMAND):
            names = ", ".join(error.ctx.command.list_commands(error.ctx))
            said = f"`{path}` needs one of its commands: {names}"
    return said


def _name(parameter: Any) -> str:
    name = parameter.metavar if parameter.param_type_name == "argument" else parameter.opts[0]
    return str(name).strip("[]")


def _choices(parameter: Any) -> str:
    known = [getattr(choice, "value", choice) for choice in getattr(parameter.type, "choices", ())]
    return ", ".join(known)


def _near(word: str, context: Any) -> str:
    if context is None:
        return ""
    known = sorted({name for p in context.command.get_params(context) for name in p.opts if name[:2] == "--"})
    found = [name for name in known if edits(word, name, FLAG_EDITS) <= FLAG_EDITS]
    return " or ".join(found)
