"""The argument list of Claude Code in a session: what the user typed, then what is configured (feature C5).

``claude ARGS… claude_args…``, with four cares that need to know which options take words after them:

* configured options go before the ``--`` of ARGS, because after it everything is prompt;
* a configured word never becomes the value of an option that ends ARGS, and none of ours that of another;
* an option that ARGS give is left out of what is configured, with its values. The options that choose how
  permissions work count as one: who asks for ``--permission-mode plan`` does not want them skipped;
* Claude's sub-commands (``claude mcp list``) know none of these options, and get none.

Source: ``claude --help`` of Claude Code 2.1 (a test compares the tables with it), and how the library behind
it reads options: ``<value>`` takes the next word whatever it looks like, ``[value]`` and the further words of
``<values...>`` only words that don't begin with a dash.
"""

from collections.abc import Sequence
from enum import Enum
from typing import NamedTuple

SKIP_PERMISSIONS = "--dangerously-skip-permissions"

PERMISSION_OPTIONS = frozenset(
    {
        SKIP_PERMISSIONS,
        "--allow-dangerously-skip-permissions",
        "--permission-mode",
        "--permission-prompt-tool",
        "--permission-prompts",
        "--restricted",  # refuses to run with permissions skipped
    }
)


class Takes(Enum):
    """What follows an option."""

    NOTHING = ""
    VALUE = "<value>"
    OPTIONAL = "[value]"
    VARIADIC = "<values...>"
    UNKNOWN = "?"


ALIASES = {
    "-c": "--continue",
    "-d": "--debug",
    "-h": "--help",
    "-n": "--name",
    "-p": "--print",
    "-r": "--resume",
    "-v": "--version",
    "-w": "--worktree",
    "--allowed-tools": "--allowedTools",
    "--background": "--bg",
    "--disallowed-tools": "--disallowedTools",
}

_TABLE = {
    Takes.VALUE: """
        --agent --agents --append-system-prompt --append-system-prompt-file --autocompact
        --debug-file --effort --environment --fallback-model --input-format --json-schema
        --max-budget-usd --max-thinking-tokens --max-turns --model --name --output-format
        --permission-mode --permission-prompt-tool --permission-prompts --plugin-dir --plugin-url
        --remote-control-session-name-prefix --session-id --setting-sources --settings
        --system-prompt --system-prompt-file --system-prompt-snapshot
    """,
    Takes.OPTIONAL: """
        --cloud --debug --from-pr --prompt-suggestions --remote-control --resume --teleport
        --worktree
    """,
    Takes.VARIADIC: """
        --add-dir --allowedTools --betas --disallowedTools --file --mcp-config --tools
    """,
    Takes.NOTHING: """
        --allow-dangerously-skip-permissions --ax-screen-reader --bare --bg --brief --chrome
        --continue --dangerously-skip-permissions --desktop --disable-slash-commands
        --exclude-dynamic-system-prompt-sections --fork-session --forward-subagent-text --help --ide
        --include-hook-events --include-partial-messages --no-chrome --no-session-persistence
        --print --replay-user-messages --restricted --safe-mode --strict-mcp-config --tmux --verbose
        --version
    """,
}

OPTIONS: dict[str, Takes] = {name: takes for takes, names in _TABLE.items() for name in names.split()}
"""Each known option by its long name. An option that is not here is `Takes.UNKNOWN`."""

_SUBCOMMANDS = """
    agents attach auth auto-mode doctor gateway import install logs mcp plugin plugins purge
    respawn rm setup-token stop kill ultrareview update upgrade
"""
SUBCOMMANDS = frozenset(_SUBCOMMANDS.split())

BACKGROUND = "--bg"
BACKGROUND_COMMANDS = frozenset(["agents", "attach", "daemon", "kill", "logs", "respawn", "rm", "stop"])
"""Sub-commands for what ``--bg`` has left behind, as the first word: elsewhere Claude takes them for text.
``daemon`` stands in no help."""


class _Part(NamedTuple):
    """One option (or a bundle of short ones) with its values, or one plain word (no `options`).

    `hungry`: it would take a following plain word. `starving`: it would take any following word.
    """

    options: tuple[str, ...]
    words: tuple[str, ...]
    hungry: bool = False
    starving: bool = False


def claude_argv(args: Sequence[str], claude_args: Sequence[str] | None) -> list[str]:
    """Return the words after ``claude``.

    `args` are the user's, and stay byte for byte and in order. `claude_args` is what the configuration says;
    None means that it says nothing, an empty list that nothing shall be added.
    """
    given, rest = _split(args)
    parts = _parse(given)
    configured, configured_rest = _split(_configured(claude_args))
    first_word = next((part.words[0] for part in parts if not part.options), None)
    if first_word in SUBCOMMANDS or (parts and parts[-1].starving):
        # A sub-command, or a value is missing at the end: Claude itself must say so, not take ours for it.
        return list(args)
    names = {name for part in parts for name in part.options}
    if names & PERMISSION_OPTIONS:
        names |= PERMISSION_OPTIONS
    kept = [
        part for part in _without_repeats(_parse(configured)) if not part.options or set(part.options) - names
    ]

    command = list(given)
    late: list[str] = []
    hungry = bool(parts) and parts[-1].hungry
    for part in kept:
        if not part.options and (hungry or late):
            late += part.words
            continue
        command += part.words
        hungry = part.hungry
    late += configured_rest or ()
    if rest is not None or late:
        command += ["--", *(rest or ()), *late]
    return command


def background_word(words: Sequence[str]) -> str:
    """Return the word that asks for work in the background or for what was left there, as it is written.

    Empty: there is none. Such work outlives the main command, which a session's VM does not.
    """
    if words and words[0] in BACKGROUND_COMMANDS:
        return words[0]
    found = (part.words[0] for part in _parse(_split(words)[0]) if BACKGROUND in part.options)
    return next(found, "")


def _configured(claude_args: Sequence[str] | None) -> list[str]:
    """Return what is configured with the flag that is kept unless a permission option is named."""
    if claude_args is None:
        return [SKIP_PERMISSIONS]
    if not claude_args:
        return []
    before, _ = _split(claude_args)
    if any(PERMISSION_OPTIONS.intersection(part.options) for part in _parse(before)):
        return list(claude_args)
    return [SKIP_PERMISSIONS, *claude_args]


def _without_repeats(parts: Sequence[_Part]) -> list[_Part]:
    """Leave out the repetition of an option that takes nothing."""
    kept: list[_Part] = []
    seen: set[tuple[str, ...]] = set()
    for part in parts:
        flag = part.options and all(OPTIONS.get(name) is Takes.NOTHING for name in part.options)
        if not flag or part.options not in seen:
            kept.append(part)
        seen.add(part.options)
    return kept


def _split(words: Sequence[str]) -> tuple[list[str], list[str] | None]:
    """Return what is before a ``--`` that is no option's value, and what is after it (None: no ``--``)."""
    position = 0
    while position < len(words):
        if words[position] == "--":
            return list(words[:position]), list(words[position + 1 :])
        _, position = _next_part(words, position)
    return list(words), None


def _parse(words: Sequence[str]) -> list[_Part]:
    """Return the parts of words that have no ``--`` of their own."""
    parts = []
    position = 0
    while position < len(words):
        part, position = _next_part(words, position)
        parts.append(part)
    return parts


def _next_part(words: Sequence[str], position: int) -> tuple[_Part, int]:
    """Return the part that begins at a position, and where the next one begins."""
    word = words[position]
    end = position + 1
    if not _looks_like_option(word):
        return _Part((), (word,)), end
    names, takes, has_value = _read_option(word)
    variadic = takes is Takes.VARIADIC
    starving = takes in {Takes.VALUE, Takes.VARIADIC} and not has_value and end == len(words)
    hungry = variadic
    if takes in {Takes.VALUE, Takes.VARIADIC} and not has_value and not starving:
        end += 1
    if variadic:
        end = _words_end(words, end)
    if takes in {Takes.OPTIONAL, Takes.UNKNOWN} and not has_value:
        # A plain word after an option that we don't know is taken for its value.
        end = min(_words_end(words, end), end + 1)
        hungry = end == position + 1
    return _Part(names, tuple(words[position:end]), hungry=hungry, starving=starving), end


def _words_end(words: Sequence[str], position: int) -> int:
    """Return the position of the first word that is an option (or ``--``), from a position on."""
    while position < len(words) and not _looks_like_option(words[position]) and words[position] != "--":
        position += 1
    return position


def _looks_like_option(word: str) -> bool:
    """Whether a word begins an option: a lone ``-`` and ``--`` don't."""
    return len(word) > 1 and word[0] == "-" and word != "--"


def _read_option(word: str) -> tuple[tuple[str, ...], Takes, bool]:
    """Return the long names in a word, what the last one takes, and whether its value is in the word too.

    Short options may be bundled, and the last may have its value attached: ``-pc``, ``-pdfilter``.
    """
    if word.startswith("--"):
        name, equals, _ = word.partition("=")
        name = ALIASES.get(name, name)
        return (name,), OPTIONS.get(name, Takes.UNKNOWN), bool(equals)
    names: list[str] = []
    takes = Takes.UNKNOWN
    for offset, letter in enumerate(word[1:], start=1):
        names.append(ALIASES.get(f"-{letter}", f"-{letter}"))
        takes = OPTIONS.get(names[-1], Takes.UNKNOWN)
        if takes is not Takes.NOTHING:
            return tuple(names), takes, offset < len(word) - 1
    return tuple(names), takes, False
