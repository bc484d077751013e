"""Which word of ours somebody has probably meant. A mistyped command would be a prompt that is paid for.

A first word without blanks is taken for a command of ours if one edit makes it one (a letter too many, one
missing, another one, or two in the wrong order), if it is its beginning, or if it goes on after it by two
letters or a dash (``lists``, ``pool-status``). A long flag may have two edits. What Claude knows itself is
never taken for ours, nor are words that people say to it.
"""

from collections.abc import Iterable

from claude_vm.context.claude_command import ALIASES, OPTIONS, SUBCOMMANDS
from claude_vm.supervisor.grammar.declaring import LONGEST_SHOWN

NATURAL = frozenset({"clear", "lint", "match", "patch", "rust", "step", "watch", "work"})
"""Prompts of one word that look like commands: no finger slips from one to the other."""

DASHES = "-\u2010\u2011\u2012\u2013\u2014\u2015\u2212"
"""What texts that were set for people have in the place of a flag's dashes: mostly one long one."""

SHORTEST_BEGINNING = 3
LONGEST_ENDING = 2
FLAG_EDITS = 2


def near_commands(word: str, commands: Iterable[str]) -> list[str]:
    """Return the commands that a first word was perhaps meant to be, the nearest first."""
    if (
        len(word) > LONGEST_SHOWN
        or not word[:1].isalpha()
        or any(map(str.isspace, word))
        or word in SUBCOMMANDS
        or word in NATURAL
    ):
        return []
    lowered = word.lower()
    found = [(edits(lowered, name, 1), name) for name in commands]
    return [name for far, name in sorted(found) if far <= 1 or _cut_or_continued(lowered, name)]


def near_flags(word: str, flags: Iterable[str]) -> list[str]:
    """Return the long flags that a word was perhaps meant to be, the nearest first."""
    name = word.partition("=")[0]
    if name in OPTIONS or name in ALIASES:
        return []
    bare = name.lstrip(DASHES)
    dashes = name[: len(name) - len(bare)]
    name = f"--{bare.lower()}"
    if dashes == "-":
        return [flag for flag in flags if flag == name]
    if len(name) == len("--"):
        return []
    found = [(edits(name, flag, FLAG_EDITS), flag) for flag in flags]
    return [
        flag
        for far, flag in sorted(found)
        if far <= FLAG_EDITS or (len(name) >= len("--") + SHORTEST_BEGINNING and flag.startswith(name))
    ]


def _cut_or_continued(word: str, command: str) -> bool:
    if len(word) >= SHORTEST_BEGINNING and command.startswith(word):
        return True
    ending = word.removeprefix(command)
    if ending == word or len(command) <= SHORTEST_BEGINNING:
        return False
    return ending[0] in "-_" or len(ending) <= LONGEST_ENDING


def edits(one: str, other: str, most: int) -> int:
    """Return how many edits make one word the other, or more than `most` as soon as that is sure.

    An edit adds, removes or replaces a letter, or swaps two neighbours.
    """
    if abs(len(one) - len(other)) > most:
        return most + 1
    before: list[int] = []
    row = list(range(len(other) + 1))
    for i, letter in enumerate(one, 1):
        before, last, row = row, before, [i]
        for j, wanted in enumerate(other, 1):
            best = min(before[j] + 1, row[j - 1] + 1, before[j - 1] + (letter != wanted))
            if i > 1 and j > 1 and letter == other[j - 2] and one[i - 2] == wanted:
                best = min(best, last[j - 2] + 1)
            row.append(best)
        if min(row) > most:
            return most + 1
    return row[-1]
