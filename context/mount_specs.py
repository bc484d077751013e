r"""A mount as somebody asks for it: text, looked up nowhere.

A specification is ``HOST[:GUEST][:ro|:rw]`` (feature M2). In it ``\:`` is a colon and ``\\`` a backslash that
belong to a path; any other backslash is itself. ``~`` and ``~user`` begin a host path as in a shell; in a
guest path ``~`` is the guest user's home.
"""

import msgspec

from claude_vm.context.errors import MountError

FORMS = "/host, /host:ro, /host:/guest, /host:/guest:ro or :rw"

FLAG = "--mount"
"""What asks for a mount on the command line, and is the source of one that was asked for there."""

LONGEST_SPEC = 16 * 1024
"""Characters of a specification: two of the longest paths, each character escaped."""


class MountSpec(msgspec.Struct, frozen=True):
    """A mount as somebody asked for it. `host` and `guest` are as written, "" stands for the same path.

    `source` says who asked, for messages: ``--mount``, or a file and line.
    """

    host: str
    guest: str = ""
    writable: bool = True
    source: str = FLAG


def parse_spec(text: str, *, source: str = FLAG) -> MountSpec:
    """Return a specification in its parts.

    Raises:
        MountError: It is too long, has too many parts or an empty one, or no mode that there is.
    """
    if len(text) > LONGEST_SPEC:
        raise MountError(f"{source} '{text[:60]}…' is longer than two paths can be")
    parts = _parts(text)
    mode = "rw"
    if len(parts) > 1 and parts[-1] in {"ro", "rw"}:
        mode = parts.pop()
    problem = ""
    if len(parts) > 2:
        problem = "has too many parts; a colon in a path is written \\:"
    elif "" in parts:
        problem = "has an empty path"
    elif "\0" in text:
        problem = "has a NUL character"
    elif len(parts) == 2 and not parts[1].startswith(("/", "~")):
        problem = f"'{parts[1]}' is neither an absolute path nor a mode"
    if problem:
        raise MountError(f"{source} '{text}': {problem}", hint=f"write it as {FORMS}")
    return MountSpec(parts[0], parts[1] if len(parts) == 2 else "", mode == "rw", source)


def _parts(text: str) -> list[str]:
    parts = [""]
    characters = iter(text)
    for character in characters:
        if character == "\\":
            following = next(characters, "")
            parts[-1] += following if following in {":", "\\"} and following else "\\" + following
        elif character == ":":
            parts.append("")
        else:
            parts[-1] += character
    return parts
