"""What the journal keeps, as records, and how they become text and come back."""

import contextlib
import json
from pathlib import Path
from typing import Any, TypeVar

import msgspec

from claude_vm.drivers.api import Access
from claude_vm.supervisor.core.keys import PoolKey

Record = TypeVar("Record", bound=msgspec.Struct)


class JournaledSession(msgspec.Struct, frozen=True):
    """What must be known of a session to list it, and to end it, without its client.

    `created_at` is a Unix time in seconds; `publish` are the ports, as ``[HOST:]GUEST`` or ``auto``.
    """

    session_id: str
    project: str
    command_text: str
    pty: bool
    created_at: float
    publish: tuple[str, ...] = ()


class LeftInstance(msgspec.Struct, frozen=True):
    """An instance that the journal knows and that nobody has deleted. `same_boot`: its processes may live.

    `state` is `WARM` or the kind of the last effect that was begun; `made_at` a Unix time in seconds. `key`
    and `access` are None where they were not written yet, or can't be read. `session` is the one whose main
    command had started in it. Where any of it can't be read, there is no `key`.
    """

    instance_id: str
    driver: str
    state: str
    same_boot: bool
    made_at: float = 0.0
    key: PoolKey | None = None
    access: Access | None = None
    session: JournaledSession | None = None


def to_text(record: msgspec.Struct | None) -> str | None:
    """Return a record as ASCII, whatever bytes its paths have."""
    return None if record is None else json.dumps(msgspec.to_builtins(record, enc_hook=str))


def from_text(text: str | None, kind: type[Record]) -> Record | None:
    """Return a record, or None for what is not there or not of this kind: then nothing is taken over."""
    if text is None:
        return None
    with contextlib.suppress(ValueError, msgspec.ValidationError):
        return msgspec.convert(json.loads(text), kind, dec_hook=_path)
    return None


def storable(text: str) -> str:
    """Return a text that SQLite takes: bytes that are no UTF-8 become marks."""
    return text.encode(errors="replace").decode()


def _path(kind: type, value: Any) -> Path:  # noqa: ARG001 - paths are the only foreign type of the records
    return Path(value)
