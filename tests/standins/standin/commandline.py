"""What may stand on the command line, in the forms that limactl takes: ``-f``, ``--name X``, ``--name=X``."""

import re
from typing import Final, NamedTuple

from . import MISSING
from .errors import LimaError
from .log import LOG, quoted


class Command(NamedTuple):
    """A command's options, by their long names, and how many words it takes. `usage` is for the error."""

    usage: str
    short: str
    switches: frozenset[str] = frozenset()
    values: frozenset[str] = frozenset()
    least: int = 0
    most: int | None = None
    greedy: bool = True


def _set(words: str) -> frozenset[str]:
    return frozenset(words.split())


_NAME = _set("--name")

COMMANDS: Final = {
    "create": Command("create FILE.yaml|URL", "Create an instance of Lima", values=_NAME, most=1),
    "start": Command(
        "start NAME|FILE.yaml|URL",
        "Start an instance of Lima",
        _set("--foreground --progress"),
        _NAME | _set("--timeout"),
        most=1,
    ),
    "stop": Command("stop INSTANCE", "Stop an instance", _set("--force"), most=1),
    "delete": Command(
        "delete INSTANCE [INSTANCE, ...]", "Delete an instance of Lima", _set("--force"), least=1
    ),
    "list": Command(
        "list [flags] [INSTANCE]...",
        "List instances of Lima",
        _set("--json --quiet --all-fields"),
        _set("--format"),
    ),
    "shell": Command(
        "shell [flags] INSTANCE [COMMAND...]",
        "Execute shell in Lima",
        values=_set("--shell --workdir"),
        greedy=False,
    ),
    "copy": Command(
        "copy SOURCE ... TARGET", "Copy files between host and guest", _set("--recursive --verbose"), least=2
    ),
    "disk": Command("disk", "Lima disk management", _set("--json --force"), _set("--size --format")),
    "clone": Command("clone OLDINST NEWINST", "Clone an instance of Lima", _set("--start"), least=2, most=2),
    "rename": Command(
        "rename OLDINST NEWINST", "Rename an instance of Lima", _set("--start"), least=2, most=2
    ),
    "protect": Command(
        "protect INSTANCE [INSTANCE, ...]", "Protect an instance to prohibit accidental removal", least=1
    ),
    "unprotect": Command("unprotect INSTANCE [INSTANCE, ...]", "Unprotect an instance", least=1),
    "info": Command("info", "Show diagnostic information", most=0),
    "hostagent": Command(
        "hostagent INSTANCE", "Run hostagent", values=_set("--pidfile --socket"), least=1, most=1
    ),
}

_ALIASES: Final = {"ls": "list", "rm": "delete", "remove": "delete", "cp": "copy"}
_SWITCHES: Final = _set("--debug --tty --yes --version --help")
_VALUES: Final = _set("--log-level --log-format")
_LETTERS: Final = {
    "-y": "--yes",
    "-v": "--version",
    "-h": "--help",
    "-f": "--force",
    "-q": "--quiet",
    "-p": "--pidfile",
    "-r": "--recursive",
}

_UNIT_S: Final = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0}


class Words:
    """A parsed command line."""

    def __init__(self, command: str, options: dict[str, str], rest: list[str]) -> None:
        self.command = command
        self.rest = rest
        self._options = options

    def has(self, option: str) -> bool:
        return option in self._options

    def get(self, option: str) -> str:
        return self._options.get(option, "")

    def flag(self, option: str, *, default: bool = False) -> bool:
        return self._options[option] == "true" if option in self._options else default

    def only(self) -> str:
        return self.rest[0] if self.rest else ""

    def duration(self, option: str, *, default_s: float) -> float:
        """Return a time like ``1m30s`` in seconds; zero means the default."""
        return _seconds(option, self.get(option) or "0") or default_s


def parse(given: list[str]) -> Words:
    """Read a command line; global options may stand anywhere in it.

    Raises:
        LimaError: with limactl's words, and status 1 like any other error.
    """
    name = ""
    command: Command | None = None
    options: dict[str, str] = {}
    rest: list[str] = []
    left = list(given)
    while left:
        word = left.pop(0)
        if word == "--":
            rest += left
            break
        if word.startswith("-") and word != "-":
            key, value = _option(word, left, command)
            options[key] = value
        elif not name:
            name = _ALIASES.get(word, word)
            command = COMMANDS.get(name)
            if command is None and name != "help":
                raise LimaError(f'unknown command "{word}" for "limactl"')
        else:
            rest.append(word)
            if command is not None and not command.greedy:
                rest += left
                break
    if command is not None and not options.keys() & {"--help", "--version"}:
        _check_count(name, command, rest)
        if rest[:1] == ["create"] and name == "disk":
            disk = Command("disk create DISK", "Create a Lima disk", least=1, most=1)
            _check_count("disk create", disk, rest[1:])
    return Words(name, options, rest)


def _option(word: str, left: list[str], command: Command | None) -> tuple[str, str]:
    key, equals, value = word.partition("=")
    if not word.startswith("--"):
        long = _LETTERS.get(key)
        if command is COMMANDS["list"] and key == "-f":
            long = "--format"
        if long is None:
            raise LimaError(f"unknown shorthand flag: {word[1]!r} in {word}")
        key = long
    switches = _SWITCHES | (command.switches if command else frozenset())
    values = _VALUES | (command.values if command else frozenset())
    if key in switches:
        return key, _truth(key, value) if equals else "true"
    if key not in values:
        LOG.warning(f"{MISSING}, or limactl hasn't either: {key}")
        raise LimaError(f"unknown flag: {key}")
    if not equals and not left:
        raise LimaError(f"flag needs an argument: {key}")
    value = value if equals else left.pop(0)
    if key == "--timeout":
        _seconds(key, value)
    return key, value


def _seconds(key: str, text: str) -> float:
    parts = re.findall(r"(\d+(?:\.\d+)?)([a-zµ]+)", text)
    reason = f'invalid duration "{text}"'
    if text == "0":
        return 0.0
    if parts and "".join(number + unit for number, unit in parts) == text:
        strange = [unit for _, unit in parts if unit not in _UNIT_S]
        if not strange:
            return sum(float(number) * _UNIT_S[unit] for number, unit in parts)
        reason = f'unknown unit "{strange[0]}" in duration "{text}"'
    raise LimaError(f'invalid argument "{text}" for "{key}" flag: time: {reason}')


def _truth(key: str, value: str) -> str:
    if value in ("1", "t", "T", "true", "TRUE", "True"):
        return "true"
    if value in ("0", "f", "F", "false", "FALSE", "False"):
        return "false"
    raise LimaError(
        f'invalid argument "{value}" for "{key}" flag: strconv.ParseBool: parsing "{value}": invalid syntax'
    )


def _check_count(name: str, command: Command, rest: list[str]) -> None:
    problem = None
    if command.most == 0:
        problem = f'unknown command "{rest[0]}" for "limactl {name}"' if rest else None
    elif command.least == command.most and len(rest) != command.least:
        problem = f"accepts {command.least} arg(s), received {len(rest)}"
    elif len(rest) < command.least:
        problem = f"requires at least {command.least} arg(s), only received {len(rest)}"
    elif command.most is not None and len(rest) > command.most:
        problem = f"accepts at most {command.most} arg(s), received {len(rest)}"
    if problem is not None:
        path = f"limactl {name}"
        usage = command.usage if "[flags]" in command.usage else f"{command.usage} [flags]"
        raise LimaError(
            f"{quoted(path)} {problem}.\nSee `{path} --help`.\n\nUsage:  limactl {usage}\n\n{command.short}"
        )
