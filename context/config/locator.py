"""The lines on which the keys of a TOML text stand, which the standard library's parser does not tell.

The text has been parsed already, so it is valid; the scanner only has to keep in step. It understands what
keys and values are made of: dotted and quoted keys, headers, strings over several lines, arrays and inline
tables.

Source: TOML 1.0.
"""

import re
from collections.abc import Iterator

KeyPath = tuple[str | int, ...]
"""A key as a path: names, and for items of arrays their index."""

_BLANK = re.compile(r"(?:[ \t\r\n,]|#[^\n]*)*")
_BARE = re.compile(r"[A-Za-z0-9_-]+")
_STRINGS = (
    re.compile(r'"""(?:[^\\"]|\\(?s:.)|"(?!""))*"{3,5}'),
    re.compile(r"'''(?:[^']|'(?!''))*'{3,5}"),
    re.compile(r'"(?:[^"\\]|\\.)*"'),
    re.compile(r"'[^']*'"),
)
_SCALAR = re.compile(r"[^,\]}#\n]*")
_DEEPEST = 16
"""Parts of a key that have lines; no setting has so many. Each costs a copy of all before it."""

_SEPARATOR = re.compile(r"[ \t]*[.=][ \t]*")


def key_lines(text: str) -> dict[KeyPath, int]:
    """Return the line (from 1) of each key, table and array item of a valid TOML text."""
    return _Scanner(text.replace("\r\n", "\n")).scan()


def line_of(lines: dict[KeyPath, int], path: KeyPath) -> int:
    """Return the line of a path, or of the nearest one above it; 0 when there is none."""
    while path:
        if path in lines:
            return lines[path]
        path = path[:-1]
    return 0


class _Scanner:
    def __init__(self, text: str) -> None:
        self.text = text
        self.at = 0
        self.lines: dict[KeyPath, int] = {}
        self.counts: dict[KeyPath, int] = {}
        self.counted_to = 0
        self.line = 1

    def scan(self) -> dict[KeyPath, int]:
        table: KeyPath = ()
        self._skip(_BLANK)
        while self.at < len(self.text):
            if self.text[self.at] == "[":
                table = self._header()
            else:
                self._pair(table)
            self._skip(_BLANK)
        return self.lines

    def _header(self) -> KeyPath:
        array = self.text.startswith("[[", self.at)
        line = self._line()
        self.at += 2 if array else 1
        path = self._inside(tuple(self._key()))
        self.at += 2 if array else 1
        if array:
            index = self.counts.get(path, -1) + 1
            self.counts[path] = index
            self.lines.setdefault(path, line)
            path = (*path, index)
        self.lines[path] = line
        return path

    def _inside(self, names: tuple[str, ...]) -> KeyPath:
        """Return the path that a header's names mean: in arrays of tables, the last one counts."""
        path: KeyPath = ()
        for position, name in enumerate(names[:_DEEPEST]):
            path = (*path, name)
            if path not in self.counts:
                self.lines.setdefault(path, self.line)
            if path in self.counts and position < len(names) - 1:
                path = (*path, self.counts[path])
        return path

    def _pair(self, table: KeyPath) -> None:
        line = self._line()
        path = table
        for name in self._key():
            if len(path) < _DEEPEST:
                path = (*path, name)
                self.lines.setdefault(path, line)
        self._value(path)

    def _key(self) -> Iterator[str]:
        """Yield the parts of a key; stop behind the ``=``, or before the ``]`` of a header."""
        self._skip(re.compile(r"[ \t]*"))
        while True:
            start = self.at
            if self.text[start] in "\"'":
                self._string()
                yield _unquoted(self.text[start : self.at])
            else:
                self._skip(_BARE)
                yield self.text[start : self.at]
            separator = _SEPARATOR.match(self.text, self.at)
            if separator is None:
                self._skip(re.compile(r"[ \t]*"))
                return
            self.at = separator.end()
            if "=" in separator.group():
                return

    def _value(self, path: KeyPath) -> None:
        first = self.text[self.at]
        if first in "\"'":
            self._string()
        elif first == "[":
            self._array(path)
        elif first == "{":
            self.at += 1
            self._skip(_BLANK)
            while self.text[self.at] != "}":
                self._pair(path)
                self._skip(_BLANK)
            self.at += 1
        else:
            self._skip(_SCALAR)

    def _array(self, path: KeyPath) -> None:
        self.at += 1
        index = 0
        self._skip(_BLANK)
        while self.text[self.at] != "]":
            self.lines[*path, index] = self._line()
            self._value((*path, index))
            index += 1
            self._skip(_BLANK)
        self.at += 1

    def _string(self) -> None:
        self.at = next(found.end() for p in _STRINGS if (found := p.match(self.text, self.at)) is not None)

    def _skip(self, pattern: re.Pattern[str]) -> None:
        found = pattern.match(self.text, self.at)
        self.at = found.end() if found is not None else self.at

    def _line(self) -> int:
        self.line += self.text.count("\n", self.counted_to, self.at)
        self.counted_to = self.at
        return self.line


def _unquoted(name: str) -> str:
    import tomllib  # noqa: PLC0415 - quoted keys are rare

    (key,) = tomllib.loads(f"{name} = 0")
    return key
