"""Splits a command line into our flags, the sub-command, and what belongs to it.

Rules (features A1 and A2):

* Our flags come until the first word that is neither a flag of ours nor a sub-command. That word, also an
  unknown flag such as ``-p``, and all after it are Claude's, byte for byte. A ``--`` ends ours and is
  dropped.
* After a sub-command our flags are accepted too. For `agent` and `shell` until their own words begin,
  because ``agent --version`` is Claude's and the flags of ``shell ls -A`` are ls's. For the others anywhere.
* ``--help`` and ``--version`` are ours before the first word; ``help`` and ``help COMMAND`` say the same.
* What a later version will understand is refused now: going silently to Claude, it would change its
  meaning with an update.
* What was probably meant for us and mistyped is refused, too (see `near_misses`): as Claude's word it would
  be a paid prompt, as the guest's a VM for nothing.

Each word is looked at once, and how many there are is bounded before anything else is done with them.
"""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from claude_vm.supervisor.grammar.commands import COMMANDS, REQUESTS
from claude_vm.supervisor.grammar.declaring import cut, flags_of
from claude_vm.supervisor.grammar.flags import VERSION, Flags
from claude_vm.supervisor.grammar.near_misses import DASHES, near_commands, near_flags
from claude_vm.supervisor.grammar.requests import Group, Request


def _long_flags(record: type[Flags | Request]) -> Mapping[str, bool]:
    return {flag.name: not field.is_switch for flag, field in flags_of(record)}


def own_flags(record: type[Request]) -> Mapping[str, bool]:
    """Return the flags of a sub-command that runs another program, and whether each takes a value.

    Raises:
        ValueError: One has a short form, which could be the other program's.
    """
    short = [flag.short for flag, _ in flags_of(record) if flag.short]
    if short:
        raise ValueError(f"'{record.command}' runs another program, so its flag {short[0]} must be long")
    return _long_flags(record)


RUNTIME_FLAGS = _long_flags(Flags)
"""Our long flags, and whether each takes a value."""

SHORT_FLAGS = frozenset(flag.short.removeprefix("-") for flag, _ in flags_of(Flags) if flag.short)
"""Our one-letter flags. None takes a value, so that any of them may stand in one word (``-Av``)."""

OWN_WORDS = {c.command: own_flags(c) for c in REQUESTS if c.runs_others}
"""Sub-commands whose words belong to another program, with the flags of each that stand before these."""

LATER_FLAGS = frozenset({"--worktree", "--runtime-script", "--detach", "--no-conversations"})

LATER_COMMANDS = frozenset(
    {
        *("attach", "batch", "commit", "config", "cp", "diagnose", "diff", "exec", "land", "login", "logs"),
        *("ssh", "ssh-config", "template", "trust", "unlanded", "update", "wait", "worktree"),
    }
)

MOST_FLAGS = 1000
"""Words of ours (flags and their values) that a command line may have."""

MOST_OPERANDS = 1000
"""Words that a sub-command of ours may have besides; another program's are the wire's business."""


class WordsError(Exception):
    """The words can't be split. `command` is the sub-command that was found before, or ""."""

    def __init__(self, message: str, *, command: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.command = command


class Split(NamedTuple):
    """A command line in its parts.

    `flags` are our flags with their values, as they were given, and `own` those of a sub-command whose other
    words belong to another program. `explicit` tells a sub-command that was
    named from Claude as the default. `ended` says that a ``--`` ended our flags. `asks` is ``help``,
    ``version`` or "": a question that is answered instead of the command.
    """

    flags: tuple[str, ...]
    command: str
    operands: tuple[str, ...]
    explicit: bool
    ended: bool = False
    asks: str = ""
    own: tuple[str, ...] = ()


QUESTIONS = {"--help": "help", VERSION.name: "version"}


def split(argv: Sequence[str]) -> Split:
    """Return the parts of a command line, given without the program's name.

    Raises:
        WordsError: A flag of ours lacks its value, or has one that it does not take; a later version will
            have this flag or sub-command; a word is probably a mistyped one of ours; or there are too many.
    """
    words = tuple(argv)
    at = _flags_end(words, 0, "")
    taken, rest = words[:at], words[at:]
    if not rest:
        return Split(taken, "agent", (), explicit=False)
    first = rest[0]
    if first == "--":
        return Split(taken, "agent", rest[1:], explicit=False, ended=True)
    about = rest[1:] if first == "help" else ()
    if first in QUESTIONS or (first == "help" and len(about) <= 1 and COMMANDS.keys() >= {*about}):
        return Split(taken, "".join(about), (), explicit=bool(about), asks=QUESTIONS.get(first, "help"))
    if first in LATER_COMMANDS:
        raise WordsError(f"'{first}' is not available yet {_if_for_claude(first)}")
    if first not in COMMANDS:
        _refuse_near_miss(first)
        return Split(taken, "agent", rest, explicit=False)
    if first in OWN_WORDS:
        return _split_own_words(words, at + 1, taken, first)
    return _split_anywhere(words, at + 1, taken, first)


def _split_own_words(words: tuple[str, ...], at: int, flags: tuple[str, ...], command: str) -> Split:
    own: tuple[str, ...] = ()
    length = 1
    while length:
        end = _flags_end(words, at, command)
        flags += words[at:end]
        length = _flag_length(words, end, command, OWN_WORDS[command], frozenset()) if words[end:] else 0
        at = end + length
        own += words[end:at]
        if len(flags) + len(own) > MOST_FLAGS:
            raise _too_many(f"for flags, more than {MOST_FLAGS}", command)
    rest = words[at:]
    if rest and rest[0] == "--":
        return Split(flags, command, rest[1:], explicit=True, ended=True, own=own)
    if rest and command == "shell" and rest[0] in QUESTIONS:
        return Split(flags, command, (), explicit=True, asks=QUESTIONS[rest[0]])
    if rest and rest[0].startswith(tuple(DASHES)):
        _refuse_flag(rest[0], command)
    return Split(flags, command, rest, explicit=True, own=own)


def _split_anywhere(words: tuple[str, ...], at: int, flags: tuple[str, ...], command: str) -> Split:
    operands: list[str] = []
    taken = list(flags)
    declared = COMMANDS[command]
    later: frozenset[str] = frozenset() if isinstance(declared, Group) else declared.later
    while True:
        end = _flags_end(words, at, command)
        taken += words[at:end]
        if len(taken) > MOST_FLAGS:
            raise _too_many(f"for flags, more than {MOST_FLAGS}", command)
        if end == len(words):
            return Split(tuple(taken), command, tuple(operands), explicit=True)
        first = words[end]
        if first == VERSION.name:
            return Split(tuple(taken), command, (), explicit=True, asks="version")
        if first != "--" and first.partition("=")[0] in later:
            raise WordsError(f"{first.partition('=')[0]} is not available yet", command=command)
        operands += words[end:] if first == "--" else (first,)
        if len(operands) > MOST_OPERANDS:
            raise _too_many(f"for `{command}`, more than {MOST_OPERANDS}", command)
        if first == "--":
            return Split(tuple(taken), command, tuple(operands), explicit=True, ended=True)
        at = end + 1


def _flags_end(words: tuple[str, ...], at: int, command: str) -> int:
    """Return where our flags end that begin at a place."""
    begin = at
    while at < len(words):
        step = _flag_length(words, at, command)
        if not step:
            break
        at += step
        if at - begin > MOST_FLAGS:
            raise _too_many(f"for flags, more than {MOST_FLAGS}", command)
    return at


def _too_many(text: str, command: str) -> WordsError:
    return WordsError(f"there are too many words {text}", command=command)


def _if_for_claude(word: str) -> str:
    return f"(if the word is for Claude: claude-vm -- {word} ...)"


def _refuse_near_miss(first: str) -> None:
    """Refuse the first of Claude's words if it is probably one of ours.

    Raises:
        WordsError: It is.
    """
    if first.startswith(tuple(DASHES)):
        _refuse_flag(first, "")
    elif near := near_commands(first, sorted(COMMANDS.keys() | LATER_COMMANDS)):
        raise WordsError(f"'{first}' is not a command; {_meant(near)} {_if_for_claude(first)}")


def _refuse_flag(word: str, command: str) -> None:
    """Refuse a flag that is probably one of ours, and before a command of the guest any.

    Raises:
        WordsError: It is.
    """
    name = word.partition("=")[0]
    near = near_flags(word, sorted((*RUNTIME_FLAGS, *OWN_WORDS.get(command, ()), *LATER_FLAGS, *QUESTIONS)))
    if command == "shell":
        word, meant = cut(name), f"; {_meant(near)}" if near else ""
        msg = f"'{word}' is not one of our flags{meant} (if it is the command: claude-vm shell -- {word} ...)"
        raise WordsError(msg, command=command)
    if near:
        program = f"claude-vm {command}".rstrip()
        msg = (
            f"'{name}' is not one of our flags; {_meant(near)} (if it is for Claude: {program} -- {name} ...)"
        )
        raise WordsError(msg, command=command)


def _meant(near: Sequence[str]) -> str:
    named = [f"{name} (not available yet)" if name in _LATER else name for name in near[:3]]
    return f"did you mean {' or '.join(named)}?"


_LATER = LATER_COMMANDS | LATER_FLAGS


def _flag_length(
    words: tuple[str, ...],
    index: int,
    command: str,
    long: Mapping[str, bool] = RUNTIME_FLAGS,
    short: frozenset[str] = SHORT_FLAGS,
) -> int:
    """Return how many words the flag of these at `index` takes; 0 when there is none."""
    word = words[index]
    if not word.startswith("--"):
        return int(len(word) > 1 and word[0] == "-" and short.issuperset(word[1:]))
    name, equals, _ = word.partition("=")
    if name in LATER_FLAGS:
        raise WordsError(f"{name} is not available yet", command=command)
    takes_value = long.get(name)
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
    if following == "--" or following.partition("=")[0] in {*RUNTIME_FLAGS, *OWN_WORDS.get(command, ())}:
        raise WordsError(f"{name} needs a value", command=command)
    return 2
