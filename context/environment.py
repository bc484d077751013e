"""The variables that a user gives a session: from files, inherited by name, and one by one."""

import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from claude_vm.context.errors import VariableError
from claude_vm.context.opening import read_file
from claude_vm.drivers.programs import Guard, nobody_writes

ENV, ENV_FILE, INHERIT = "--env", "--env-file", "--inherit-env"
"""What gives variables on the command line."""

LIMIT = 1024 * 1024
"""Largest environment file, in bytes."""

MOST_VARIABLES = 10_000
"""Variables that a session may be given."""

_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_LINE = re.compile(r"\s*(?:export\s+)?([^=\s]+)\s*=\s*(.*)", flags=re.DOTALL)
_SINGLE = re.compile(r"'([^']*)'")
_DOUBLE = re.compile(r'"((?:[^"\\]|\\.)*)"')
_ESCAPE = re.compile(r"\\(.)")
_ESCAPES = {"n": "\n", "r": "\r", "t": "\t"}
_REST = re.compile(r"\s*(?:#.*)?")


def resolve_environment(
    *,
    env: Sequence[str] = (),
    env_files: Sequence[str] = (),
    inherit: Sequence[str] = (),
    environ: Mapping[str, str],
    cwd: Path,
    guard: Guard = nobody_writes,
) -> dict[str, str]:
    r"""Return the variables of ``--env-file``, ``--inherit-env`` and ``--env``; the later kind wins.

    Within a kind the later one wins. `environ` and `cwd` are the client's; files are relative to `cwd`. A
    name to inherit that is not set is left out. Messages name variables, never values: they may be secrets.

    A file has ``NAME=VALUE`` lines, perhaps after ``export``; empty lines and ``#`` comments don't count.
    Between single quotes all is literal; between double quotes ``\n``, ``\r`` and ``\t`` are control
    characters and a backslash before any other character gives that one. Without quotes, spaces around the
    value and a comment after a space are dropped. Nothing is expanded.

    Raises:
        VariableError: With every problem: a file that can't be read or has a wrong line, a wrong name.
        LinkError: A file's path leads out of where guests can write, see `claude_vm.context.opening`.
    """
    problems: list[str] = []
    found: dict[str, str] = {}
    for name in env_files:
        found.update(_from_file(name, cwd, problems, guard))
    for name in inherit:
        if not _NAME.fullmatch(name):
            problems.append(f"{INHERIT}: '{name}' is not the name of a variable")
        elif name in environ:
            found[name] = environ[name]
    for text in env:
        name, equals, value = text.partition("=")
        if not _NAME.fullmatch(name):
            problems.append(f"{ENV}: '{name}' is not the name of a variable")
        elif not equals:
            problems.append(f"{ENV} {name}: there is no value (to pass yours on: {INHERIT} {name})")
        elif "\0" in value:
            problems.append(f"{ENV} {name}: the value has a NUL character")
        else:
            found[name] = value
    problems += _too_many(len(found))
    if problems:
        raise VariableError.of(problems, "the session's variables")
    return found


def _too_many(count: int) -> list[str]:
    more = count > MOST_VARIABLES
    return [f"there are {count} variables; at most {MOST_VARIABLES} are allowed"] if more else []


def _from_file(name: str, cwd: Path, problems: list[str], guard: Guard) -> Iterator[tuple[str, str]]:
    read = read_file(cwd / name, LIMIT, guard)
    if read is None:
        problems.append(f"{ENV_FILE}: '{name}' can't be read, or is not a regular file of at most 1 MiB")
        return
    _, data = read
    if b"\0" in data:
        problems.append(f"{ENV_FILE}: '{name}' has a NUL character")
        return
    text = data.decode("utf-8", "surrogateescape").removeprefix("\ufeff")
    for number, line in enumerate(text.replace("\r\n", "\n").split("\n"), start=1):
        if not line.strip() or line.lstrip().startswith("#"):
            continue
        parts = _LINE.fullmatch(line)
        value = None
        problem = "is not NAME=VALUE"
        if parts is not None:
            if not _NAME.fullmatch(parts.group(1)):
                problem = f"'{parts.group(1)}' is not the name of a variable"
            else:
                value = _value(parts.group(2))
                problem = f"{parts.group(1)}: the quote is not closed, or text follows it"
        if parts is None or value is None:
            problems.append(f"{name}:{number}: {problem}")
        else:
            yield parts.group(1), value


def _value(text: str) -> str | None:
    """Return the value that the text behind a ``=`` means; None when its quotes are wrong."""
    if text[:1] not in {"'", '"'}:
        return re.split(r"(?:^|\s)#", text, maxsplit=1)[0].strip()
    quoted = (_SINGLE if text[0] == "'" else _DOUBLE).match(text)
    if quoted is None or not _REST.fullmatch(text, quoted.end()):
        return None
    if text[0] == "'":
        return quoted.group(1)
    return _ESCAPE.sub(lambda escape: _ESCAPES.get(escape.group(1), escape.group(1)), quoted.group(1))
