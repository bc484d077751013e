"""Splits a command line into our flags, the sub-command, and what belongs to it.

Rules (features A1 and A2):

* Our flags come until the first word that is neither a flag of ours nor a sub-command. That word, also an
  unknown flag such as ``-p``, and all after it are Claude's, byte for byte. A ``--`` ends ours and is
  dropped.
* After a sub-command our flags are accepted too. For `agent` and `shell` until their own words begin,
  because ``agent --version`` is Claude's and the flags of ``shell ls -A`` are ls's. For the others anywhere.
* ``--help`` and ``--version`` are ours before the first word.
* What a later version will understand is refused now: going silently to Claude, it would change its
  meaning with an update.
"""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

RUNTIME_FLAGS: Mapping[str, bool] = {
    "--disk": True,
    "--memory": True,
    "--cpus": True,
    "--driver": True,
    "--mount": True,
    "--publish": True,
    "--env": True,
    "--env-file": True,
    "--inherit-env": True,
    "--forward-ssh-agent": False,
    "--auto-setup": False,
    "--any-directory": False,
    "--no-daemon": False,
    "--verbose": False,
    "--quiet": False,
}
"""Our long flags, and whether each takes a value."""

SHORT_FLAGS: Mapping[str, str] = {"A": "--forward-ssh-agent", "v": "--verbose", "q": "--quiet"}
"""Our one-letter flags. None takes a value, so that any of them may stand in one word (``-Av``)."""

COMMANDS = frozenset(
    {
        *("agent", "shell", "setup", "ps", "stop", "pool", "list", "info", "clean", "clean-all"),
        *("bench", "daemon", "doctor", "version", "completion"),
    }
)

LATER_FLAGS = frozenset({"--worktree", "--runtime-script", "--detach", "--no-conversations"})

LATER_COMMANDS = frozenset({"logs", "attach", "batch", "trust", "worktree", "config", "update"})

LATER_COMMAND_FLAGS: Mapping[str, frozenset[str]] = {
    "setup": frozenset(
        {
            *("--docker", "--node", "--python", "--chromium", "--gpg", "--gh", "--git", "--rust", "--all"),
            "--setup-script",
        }
    )
}


class WordsError(Exception):
    """The words can't be split. `command` is the sub-command that was found before, or ""."""

    def __init__(self, message: str, *, command: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.command = command


class Split(NamedTuple):
    """A command line in its parts.

    `flags` are our flags with their values, as they were given. `explicit` tells a sub-command that was
    named from Claude as the default. `ended` says that a ``--`` ended our flags. `asks` is ``help``,
    ``version`` or "": a question that is answered instead of the command.
    """

    flags: tuple[str, ...]
    command: str
    operands: tuple[str, ...]
    explicit: bool
    ended: bool = False
    asks: str = ""


QUESTIONS = {"--help": "help", "--version": "version"}
OWN_WORDS = frozenset({"agent", "shell"})
"""Sub-commands whose words belong to another program."""


def split(argv: Sequence[str]) -> Split:
    """Return the parts of a command line, given without the program's name.

    Raises:
        WordsError: A flag of ours lacks its value, or has one that it does not take; or a later version
            will have this flag or sub-command.
    """
    taken, rest = _take_flags(argv, "")
    if not rest:
        return Split(taken, "agent", (), explicit=False)
    first, after = rest[0], rest[1:]
    if first == "--":
        return Split(taken, "agent", after, explicit=False, ended=True)
    if first in QUESTIONS:
        return Split(taken, "", (), explicit=False, asks=QUESTIONS[first])
    if first in LATER_COMMANDS:
        msg = f"'{first}' is not available yet (if the word is for Claude: claude-vm -- {first} ...)"
        raise WordsError(msg)
    if first not in COMMANDS:
        return Split(taken, "agent", rest, explicit=False)
    if first in OWN_WORDS:
        return _split_own_words(taken, first, after)
    return _split_anywhere(taken, first, after)


def _split_own_words(flags: tuple[str, ...], command: str, words: Sequence[str]) -> Split:
    more, rest = _take_flags(words, command)
    flags += more
    if rest and rest[0] == "--":
        return Split(flags, command, rest[1:], explicit=True, ended=True)
    if rest and command == "shell" and rest[0] in QUESTIONS:
        return Split(flags, command, (), explicit=True, asks=QUESTIONS[rest[0]])
    return Split(flags, command, rest, explicit=True)


def _split_anywhere(flags: tuple[str, ...], command: str, words: Sequence[str]) -> Split:
    operands: list[str] = []
    later = LATER_COMMAND_FLAGS.get(command, frozenset())
    rest = tuple(words)
    while rest:
        more, rest = _take_flags(rest, command)
        flags += more
        if not rest:
            break
        first = rest[0]
        if first == "--":
            return Split(flags, command, (*operands, *rest), explicit=True, ended=True)
        if first == "--version":
            return Split(flags, command, (), explicit=True, asks="version")
        if first.partition("=")[0] in later:
            raise WordsError(f"{first.partition('=')[0]} is not available yet", command=command)
        operands.append(first)
        rest = rest[1:]
    return Split(flags, command, tuple(operands), explicit=True)


def _take_flags(words: Sequence[str], command: str) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Return our flags at the beginning of the words, and the rest."""
    index = 0
    while index < len(words):
        step = _flag_length(words, index, command)
        if not step:
            break
        index += step
    return tuple(words[:index]), tuple(words[index:])


def _flag_length(words: Sequence[str], index: int, command: str) -> int:
    """Return how many words the flag of ours at `index` takes; 0 when there is none."""
    word = words[index]
    if not word.startswith("--"):
        return int(len(word) > 1 and word[0] == "-" and all(letter in SHORT_FLAGS for letter in word[1:]))
    name, equals, _ = word.partition("=")
    if name in LATER_FLAGS:
        raise WordsError(f"{name} is not available yet", command=command)
    takes_value = RUNTIME_FLAGS.get(name)
    if takes_value is None:
        return 0
    if not takes_value:
        if equals:
            raise WordsError(f"{name} takes no value", command=command)
        return 1
    if equals:
        return 1
    following = words[index + 1] if index + 1 < len(words) else "--"
    # A flag where the value should be is a forgotten value; `--env=--x` still says otherwise.
    if following == "--" or following.partition("=")[0] in RUNTIME_FLAGS:
        raise WordsError(f"{name} needs a value", command=command)
    return 2
