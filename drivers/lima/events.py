"""What a host agent says: states in ``ha.stdout.log``, phases and QEMU's words in ``ha.stderr.log``.

Both are lines of JSON. They are written anew at each start, but a copied instance has those of its source:
what is older than the start that is meant is not news.

Source: Lima's `pkg/hostagent/events` and `pkg/hostagent/hostagent.go` (v2.2).
"""

import re
from collections.abc import Iterator
from contextlib import suppress
from datetime import datetime
from pathlib import Path
from typing import Final

import msgspec

from claude_vm.drivers.files import last_bytes
from claude_vm.drivers.vm.spawn import printable

STATES: Final = "ha.stdout.log"
PHASES: Final = "ha.stderr.log"
CONSOLES: Final = ("serial.log", "serialp.log", "serialv.log")

_TAIL: Final = 64 * 1024
_QEMU: Final = re.compile(r"qemu\[std(?:err|out)\]: ")


class State(msgspec.Struct, frozen=True, rename="camel"):
    """What a host agent says of its VM. `errors` say why it is worse than it should be."""

    running: bool = False
    exiting: bool = False
    errors: tuple[str, ...] = ()


class StateEvent(msgspec.Struct, frozen=True):
    """A state, and since when."""

    status: State
    time: datetime


class LogLine(msgspec.Struct, frozen=True):
    """A line of the host agent's log."""

    msg: str
    time: datetime
    level: str = ""
    error: str = ""


_event = msgspec.json.Decoder(StateEvent).decode
_line = msgspec.json.Decoder(LogLine).decode


def state(folder: Path, since: float = 0) -> State | None:
    """Return the last state that was told after `since` (a Unix time, seconds); None when there is none."""
    found = None
    for text in _lines(folder / STATES):
        with suppress(msgspec.MsgspecError):
            event = _event(text)
            if event.time.timestamp() >= since:
                found = msgspec.structs.replace(
                    event.status, errors=tuple(printable(error) for error in event.status.errors)
                )
    return found


def phases(folder: Path, since: float = 0) -> Iterator[tuple[float, str]]:
    """Give what the host agent did since a Unix time, each with its own, in seconds."""
    for text in _lines(folder / PHASES):
        with suppress(msgspec.MsgspecError):
            line = _line(text)
            if line.time.timestamp() >= since and line.level == "info":
                yield line.time.timestamp(), line.msg


def said(folder: Path) -> str:
    """Return the last lines of what QEMU and the host agent have complained of, as printable text."""
    found = []
    for text in _lines(folder / PHASES):
        with suppress(msgspec.MsgspecError):
            line = _line(text)
            if _QEMU.match(line.msg):
                found.append(_QEMU.sub("", line.msg))
            elif line.level in {"warning", "error", "fatal"}:
                found.append(f"{line.msg}: {line.error}" if line.error else line.msg)
    return "\n".join(printable(line) for line in found[-20:])


def _lines(path: Path) -> list[bytes]:
    """Return the last lines of a file; the first one may be a part of one."""
    try:
        return last_bytes(path, _TAIL).splitlines()
    except OSError:
        return []
