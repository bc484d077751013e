"""What is wrong with a configuration: every problem at once, each with its place and what is right."""

import msgspec

from claude_vm.context.errors import MOST_TOLD, ContextError

SHOWN = 60
"""Longest value that a report repeats, in characters."""


class Problem(msgspec.Struct, frozen=True, kw_only=True):
    """One thing that is wrong. Empty fields say nothing.

    `where` is a file, ``environment`` or ``command line``; `line` counts from 1, 0 means no line. `value` is
    text as it was given. `valid` says what would be right, `near` is a key or value that was perhaps meant.
    """

    where: str
    line: int = 0
    key: str = ""
    value: str = ""
    message: str
    valid: str = ""
    near: str = ""

    def __str__(self) -> str:
        """One line: place, key and value, what is wrong, what is right."""
        place = f"{self.where}:{self.line}" if self.line else self.where
        given = " = ".join(part for part in (self.key, self.value) if part)
        text = f"{place}: {given}: {self.message}" if given else f"{place}: {self.message}"
        if self.valid:
            text += f"; valid: {self.valid}"
        if self.near:
            text += f" (did you mean {self.near}?)"
        return text


class ConfigError(ContextError):
    """The configuration can't be used. `problems` has them all, in the order of the layers."""

    code = "bad-config"

    def __init__(self, problems: tuple[Problem, ...]) -> None:
        more = len(problems) - MOST_TOLD
        count = "1 problem" if len(problems) == 1 else f"{len(problems)} problems"
        super().__init__(
            f"{count} in the configuration",
            lines=[*map(str, problems[:MOST_TOLD]), *([f"and {more} more"] if more > 0 else [])],
            hint="docs/configuration.md has every key",
        )
        self.problems = problems


def shown(value: object) -> str:
    """Return a value for a report, bounded; what is in it stays as it is until it is printed."""
    text = _spelled(value)
    return text if len(text) <= SHOWN else text[: SHOWN - 3] + "..."


def _spelled(value: object) -> str:
    match value:
        case bool():
            return str(value).lower()
        case str():
            return f"'{value}'"
        case list():
            return f"[{', '.join(_spelled(item) for item in value)}]"
        case dict():
            return f"{{{', '.join(f'{key} = {_spelled(item)}' for key, item in value.items())}}}"
        case _:
            return str(value)
