"""Log lines as limactl writes them: text for people, JSON in the host agent's files.

Source: the formats of the logging library logrus, observed.
"""

import json
import sys
import time
from collections.abc import Mapping
from typing import TextIO

_LEVELS = ("trace", "debug", "info", "warning", "error", "fatal")
LEVELS = (*_LEVELS, "warn", "panic")
_PLAIN = frozenset("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-._/@^+")


def quoted(text: object) -> str:
    """Return a text in back quotes, or in double quotes where it has something that they can't hold."""
    value = str(text)
    if "`" in value or any((ord(c) < 0x20 and c != "\t") or c in "\x7f\ufeff" for c in value):
        return json.dumps(value, ensure_ascii=False)
    return f"`{value}`"


def timestamp() -> str:
    """Return the wall clock's time to the second, with the zone."""
    zone = time.strftime("%z")
    return time.strftime("%Y-%m-%dT%H:%M:%S") + ("Z" if zone == "+0000" else f"{zone[:3]}:{zone[3:]}")


class Log:
    """One stream of log lines."""

    def __init__(self, stream: TextIO, *, as_json: bool = False, level: str = "info") -> None:
        self._stream = stream
        self._json = as_json
        self._lowest = _LEVELS.index({"warn": "warning", "panic": "fatal"}.get(level, level))
        self._terminal = not as_json and stream.isatty()
        self._begin = time.monotonic()

    @property
    def verbose(self) -> bool:
        return self._lowest <= _LEVELS.index("debug")

    def debug(self, message: str, **fields: object) -> None:
        self.write("debug", message, fields)

    def info(self, message: str, **fields: object) -> None:
        self.write("info", message, fields)

    def warning(self, message: str, **fields: object) -> None:
        self.write("warning", message, fields)

    def error(self, message: str, **fields: object) -> None:
        self.write("error", message, fields)

    def fatal(self, message: str) -> None:
        self.write("fatal", message, {})

    def write(self, level: str, message: str, fields: Mapping[str, object]) -> None:
        """Write one line in a single system call, so that several writers' lines don't mix."""
        if _LEVELS.index(level) < self._lowest:
            return
        self._stream.write(self._line(level, message, fields) + "\n")
        self._stream.flush()

    def _line(self, level: str, message: str, fields: Mapping[str, object]) -> str:
        if self._json:
            entry = {**fields, "level": level, "msg": message, "time": timestamp()}
            line = json.dumps(dict(sorted(entry.items())), separators=(",", ":"), default=str)
            return line.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")
        tail = "".join(f" {key}={_text(value)}" for key, value in sorted(fields.items()))
        if self._terminal:
            seconds = int(time.monotonic() - self._begin)
            return f"{level.upper()[:4]}[{seconds:04d}] {message}{tail}"
        return f'time="{timestamp()}" level={level} msg={_text(message)}{tail}'


def _text(value: object) -> str:
    text = str(value)
    return text if _PLAIN.issuperset(text) else json.dumps(text, ensure_ascii=False)


LOG = Log(sys.stderr)
"""The process's log. `main` replaces what it writes to, before anything is said."""


def configure(stream: TextIO, *, as_json: bool, level: str) -> None:
    """Write to another stream, or in another form, from now on."""
    LOG.__init__(stream, as_json=as_json, level=level)  # type: ignore[misc]
