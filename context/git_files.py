"""What git's own files say, read without git, so that nothing of a repository can run on the host.

A guest may have written any of these files. Reading is bounded and never waits, and what they name is only
believed where the other side agrees (see `claude_vm.context.project`).

Source: git's gitrepository-layout and git-config documentation.
"""

import os
import re
from pathlib import Path

from claude_vm.context.regular_file import read_regular

LIMIT = 256 * 1024
"""Largest file that is read, in bytes."""

_OBJECT_NAME = re.compile(rb"[0-9a-f]{40}(?:[0-9a-f]{24})?\s*")
_SECTION = re.compile(r"\s*\[\s*([^\s\]\"]+)\s*(\"(?:[^\"\\]|\\.)*\")?\s*\]")
_CONTINUED = re.compile(r"(?<!\\)((?:\\\\)*)\\\r?\n")
_VARIABLE = re.compile(r"\s*([A-Za-z][A-Za-z0-9-]*)\s*(?:=(.*))?$")


def flaw(folder: Path) -> str:
    """Return why git would not take a folder for a repository's data; "" when it would."""
    for name in ("objects", "refs"):
        if not os.path.isdir(folder / name):  # noqa: PTH112 - which never raises
            return f"{name} is not a readable folder"
    head = folder / "HEAD"
    try:
        text = os.readlink(head)  # noqa: PTH115 - text, not a Path, which normalizes
    except OSError:
        content = read_regular(head, LIMIT) or b""
    else:
        content = f"ref:{text}".encode(errors="surrogateescape")
    named = content[4:].strip().startswith(b"refs/") if content.startswith(b"ref:") else False
    return "" if named or _OBJECT_NAME.fullmatch(content) else "HEAD is missing, or names no branch or commit"


def named_by(dot_git: Path) -> Path | None:
    """Return the path that a ``.git`` file names, as it is written; None when it is no such file."""
    content = (read_regular(dot_git, LIMIT) or b"").rstrip(b"\r\n")
    text = content.removeprefix(b"gitdir: ")
    if text == content or not text or b"\0" in text:
        return None
    return dot_git.parent / os.fsdecode(text)


def line_as_path(file: Path) -> Path | None:
    """Return the path that a file's text is, relative to the file's folder, as it is written."""
    content = (read_regular(file, LIMIT) or b"").rstrip(b"\r\n")
    return None if not content or b"\0" in content else file.parent / os.fsdecode(content)


def core_value(git_directory: Path, name: str) -> str | None:
    """Return the value of ``core.<name>`` in a repository's own configuration, None when it is not set.

    Included files are not read. A variable without a value is "true".
    """
    found: str | None = None
    for file in ("config", "config.worktree"):
        content = read_regular(git_directory / file, LIMIT) or b""
        value = _core_value(os.fsdecode(content), name.lower())
        found = found if value is None else value
    return found


def _core_value(text: str, name: str) -> str | None:
    section = ""
    found = None
    for line in _CONTINUED.sub(r"\1", text).splitlines():
        header = _SECTION.match(line)
        rest = line
        if header is not None:
            section = header.group(1).lower() if header.group(2) is None else ""
            rest = line[header.end() :]
        variable = _VARIABLE.match(rest)
        if section == "core" and variable is not None and variable.group(1).lower() == name:
            value = variable.group(2)
            found = "true" if value is None else _unquoted(value)
    return found


def _unquoted(value: str) -> str:
    """Return a configuration value without its quotes, escapes and comment."""
    text: list[str] = []
    quoted = False
    kept = 0
    characters = iter(value.strip())
    for character in characters:
        if character == '"':
            quoted = not quoted
            kept = len(text)
        elif character == "\\":
            following = next(characters, "")
            text.append({"n": "\n", "t": "\t", "b": "\b"}.get(following, following))
            kept = len(text)
        elif character in "#;" and not quoted:
            break
        else:
            text.append(character)
            if quoted or not character.isspace():
                kept = len(text)
    return "".join(text[:kept])
