"""What is wrong with a command line, in our words: the library's repeat values as Python spells them."""

from typing import Any

from claude_vm.supervisor.grammar.declaring import cut
from claude_vm.supervisor.grammar.near_misses import FLAG_EDITS, edits

_EXTRA = "Got unexpected extra argument"
_MISSING_COMMAND = "Missing command"


def message(error: Any) -> str:
    """Return what a usage error says."""
    said = str(error.message or "").rstrip(".")
    path = error.ctx.command_path if error.ctx is not None else "claude-vm"
    match type(error).__name__:
        case "NoSuchOption":
            near = _near(error.option_name, error.ctx)
            said = f"'{cut(error.option_name)}' is not a flag of `{path}`" + (
                near and f"; did you mean {near}?"
            )
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
