"""One layer's values, read from what the user wrote: a TOML file, the environment, flags.

Whatever is wrong becomes a `Problem`; a value that is wrong is left out, so that one report has all.
"""

import os
import re
import tomllib
from collections.abc import Iterable, Iterator, Mapping
from difflib import get_close_matches
from pathlib import Path

import msgspec

from claude_vm.context.config.kinds import BadValueError, PathBase, type_name
from claude_vm.context.config.locator import KeyPath, key_lines, line_of
from claude_vm.context.config.problems import Problem, shown
from claude_vm.context.config.schema import ALIASES, LATER, Entry, settings_table
from claude_vm.context.config.setting import Layer, Value
from claude_vm.context.opening import read_file as read_host_file
from claude_vm.drivers.programs import Guard, nobody_writes

LIMIT = 64 * 1024
"""Largest configuration file, in bytes."""


class Source(msgspec.Struct, frozen=True):
    """What one layer sets, by dotted key."""

    layer: Layer
    values: Mapping[str, Value]


class _ConfigFile(msgspec.Struct, frozen=True):
    """A file while it is read."""

    layer: Layer
    name: str
    lines: dict[KeyPath, int]
    place: PathBase
    problems: list[Problem]

    def report(self, path: KeyPath, message: str, **more: str) -> None:
        """Add a problem at a key."""
        line = line_of(self.lines, path)
        self.problems.append(Problem(where=self.name, line=line, message=message, **more))


def read_file(
    path: Path, layer: Layer, home: Path, problems: list[Problem], guard: Guard = nobody_writes
) -> Source:
    """Return what a configuration file sets. A missing file sets nothing.

    Raises:
        LinkError: It leads out of where guests can write, see `claude_vm.context.opening`.
    """
    name = _short(path, home)
    if not os.path.lexists(path):
        return Source(layer, {})
    found = read_host_file(path, LIMIT, guard)
    if found is None:
        problems.append(
            Problem(where=name, message="can't be read, or is not a regular file of at most 64 KiB")
        )
        return Source(layer, {})
    real, data = found
    try:
        text = data.decode()
        content = tomllib.loads(text)
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        problems.append(Problem(where=name, line=line, message="is not UTF-8"))
        return Source(layer, {})
    except (tomllib.TOMLDecodeError, RecursionError) as error:
        problems.append(_syntax(name, str(error), text.count("\n") + 1))
        return Source(layer, {})
    place = PathBase(folder=real.parent, home=home)
    file = _ConfigFile(layer, name, key_lines(text), place, problems)
    return Source(layer, dict(_file_values(file, content)))


def read_variables(environ: Mapping[str, str], home: Path, problems: list[Problem]) -> Source:
    """Return what the environment sets."""
    names = {entry.setting.variable: entry for entry in settings_table().values() if entry.setting.variable}
    given = [(name, names[name], environ[name]) for name in names if name in environ]
    return Source(Layer.ENVIRONMENT, dict(_texts(given, "environment", home, problems)))


def read_flags(flags: Mapping[str, Value], home: Path, problems: list[Problem]) -> Source:
    """Return what flags set, given by dotted key; the texts of a repeated flag are read as a list.

    Raises:
        KeyError: There is no such setting: a mistake of the caller.
    """
    table = settings_table()
    given = [(found.where, table[key], found.value) for key, found in flags.items()]
    return Source(Layer.FLAG, dict(_texts(given, "command line", home, problems)))


def _texts(
    given: Iterable[tuple[str, Entry, object]], where: str, home: Path, problems: list[Problem]
) -> Iterator[tuple[str, Value]]:
    place = PathBase(folder=home, home=home)
    for name, entry, text in given:
        kind = entry.setting.kind
        try:
            value = kind.from_text(text, place) if isinstance(text, str) else kind.read(text, place)
            yield entry.key, Value(value, name, shown(text))
        except BadValueError as error:
            wrong = text[error.item] if error.item is not None and isinstance(text, tuple) else text
            problems.append(
                Problem(
                    where=where,
                    key=name,
                    value=shown(wrong),
                    message=error.message,
                    valid=entry.setting.kind.valid,
                    near=error.near,
                )
            )


def _file_values(file: _ConfigFile, content: Mapping[str, object]) -> Iterator[tuple[str, Value]]:
    seen: dict[str, str] = {}
    for key, path, value in _flat(file, content):
        real = ALIASES.get(key, key)
        entry = settings_table().get(real)
        if entry is None:
            near = "".join(get_close_matches(key, [*settings_table(), *ALIASES], n=1))
            file.report(path, "is not a key", key=key, value=shown(value), near=near)
            continue
        if file.layer not in entry.files:
            file.report(path, "can't be set here; set it in ~/.claude-vm.toml", key=key, value=shown(value))
            continue
        if real in seen:
            file.report(path, f"is the same as {seen[real]}; set only one of them", key=key)
            continue
        seen[real] = key
        try:
            read = entry.setting.kind.read(value, file.place)
        except BadValueError as error:
            wrong, place = value, path
            if isinstance(value, list) and error.item is not None:
                wrong, place = value[error.item], (*path, error.item)
            file.report(
                place,
                error.message,
                key=key,
                value=shown(wrong),
                valid=entry.setting.kind.valid,
                near=error.near,
            )
            continue
        if read is None:  # as if it were not there
            continue
        yield real, Value(read, f"{file.name}:{line_of(file.lines, path)}", shown(value))


def _flat(file: _ConfigFile, content: Mapping[str, object]) -> Iterator[tuple[str, KeyPath, object]]:
    """Yield each key of the sections with its path and value."""
    sections = {key.partition(".")[0] for key in settings_table() if "." in key}
    for name, value in content.items():
        if name in sections:
            if isinstance(value, dict):
                yield from ((f"{name}.{key}", (name, key), item) for key, item in value.items())
            else:
                file.report((name,), f"is {type_name(value)}, not a table", key=name, value=shown(value))
        elif name in LATER:
            file.report((name,), "is not available yet", key=name)
        elif name in settings_table():
            yield name, (name,), value
        else:
            near = "".join(get_close_matches(name, [*sections, "mounts", "ports"], n=1))
            what = "is not a section" if isinstance(value, dict) else "is not a key"
            file.report((name,), what, key=name, near=near)


def _syntax(name: str, message: str, last: int) -> Problem:
    found = re.fullmatch(r"(.*) \(at line (\d+), column (\d+)\)", message, flags=re.DOTALL)
    if found is None:
        line = last if message.endswith("(at end of document)") else 0
        return Problem(where=name, line=line, message=f"is not TOML: {message}")
    text, row, column = found.groups()
    return Problem(where=name, line=int(row), message=f"is not TOML: {text} (column {column})")


def _short(path: Path, home: Path) -> str:
    return f"~/{path.relative_to(home)}" if path.is_relative_to(home) else str(path)
