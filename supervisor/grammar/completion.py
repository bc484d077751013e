"""Shell completion: the scripts, and the candidates that they ask for.

The script of a shell runs ``_CLAUDE_VM_COMPLETE=<shell> claude-vm WORDS…`` with the words up to the cursor;
the last word is the one to complete. No candidates: the shell completes file names. typer's own
machinery is not used: it knows nothing of where Claude's words begin, splits words at blanks, and prints.
"""

from collections.abc import Sequence
from typing import Any

from claude_vm.drivers.names import WORDS
from claude_vm.supervisor.grammar.words import OWN_WORDS, WordsError, split

BASH = """\
_claude_vm_complete() {
    local IFS=$'\\n'
    COMPREPLY=( $(_CLAUDE_VM_COMPLETE=bash "$1" "${COMP_WORDS[@]:1:COMP_CWORD}" 2>/dev/null) )
}
complete -o bashdefault -o default -F _claude_vm_complete claude-vm
"""

ZSH = """\
#compdef claude-vm
_claude_vm() {
    local -a found
    found=("${(@f)$(_CLAUDE_VM_COMPLETE=zsh "${words[1]}" "${(@Q)words[2,CURRENT]}" 2>/dev/null)}")
    if [[ -n "${found[1]}" ]]; then
        _describe 'claude-vm' found
    else
        _files
    fi
}
if [[ "${funcstack[1]}" == _claude_vm ]]; then
    _claude_vm "$@"
else
    compdef _claude_vm claude-vm
fi
"""

FISH = """\
function __claude_vm_complete
    set -l typed (commandline -opc) (commandline -ct)
    env _CLAUDE_VM_COMPLETE=fish $typed 2>/dev/null
end
complete -c claude-vm -a '(__claude_vm_complete)'
"""

SCRIPTS = {"bash": BASH, "zsh": ZSH, "fish": FISH}

VALUES = {
    "--driver": tuple(WORDS.items()),
    "--publish": (
        ("auto", "the ports that the guest listens at"),
        ("none", "no port, whatever the configuration says"),
    ),
}
"""Values of our flags that can be listed."""

CURSOR = "\0"
"""Stands for the word to complete: it is no flag, no sub-command, and in no argument list."""

Candidates = Sequence[tuple[str, str]]


def script(shell: str) -> str:
    """Return the completion script of a shell (a key of `SCRIPTS`)."""
    return SCRIPTS[shell]


def completed(shell: str, words: Sequence[str], root: Any) -> tuple[str, ...]:
    """Return the candidates for the last word as the shell's script wants them; none for an unknown shell."""
    given, incomplete = (tuple(words[:-1]), words[-1]) if words else ((), "")
    rows = [row for row in candidates(given, root) if row[0].startswith(incomplete)]
    if not incomplete.startswith("-"):
        rows = [row for row in rows if not row[0].startswith("-")]
    if shell == "bash":
        lines = [f"{name}" for name, _ in rows]
    elif shell == "zsh":
        lines = [f"{name.replace(':', chr(92) + ':')}:{text}" for name, text in rows]
    elif shell == "fish":
        lines = [f"{name}\t{text}" for name, text in rows]
    else:
        lines = []
    return tuple(lines)


def candidates(given: Sequence[str], root: Any) -> Candidates:
    """Return all that may follow these words, with a short text each; nothing where files may."""
    try:
        parts = split((*given, CURSOR))
    except WordsError:
        return ()
    if CURSOR in parts.flags:
        return VALUES.get(parts.flags[-2], ())
    if parts.asks or parts.ended:
        return ()
    before = parts.operands[:-1]
    if parts.command in OWN_WORDS:
        first = () if parts.explicit else _subcommands(root)
        return () if before else (*first, *_options(root))
    return _of_command(root.commands[parts.command], before, root)


def _of_command(command: Any, before: Sequence[str], root: Any) -> Candidates:
    if hasattr(command, "commands"):
        action = next((word for word in before if word in command.commands), None)
        if action is None:
            return (*_subcommands(command), *_options(root))
        command = command.commands[action]
    return (*_choices(command, before), *_options(command), *_options(root))


def _subcommands(group: Any) -> Candidates:
    return [(name, command.get_short_help_str(60)) for name, command in group.commands.items()]


def _options(command: Any) -> Candidates:
    return [
        (name, (parameter.help or "").partition(". ")[0].rstrip("."))
        for parameter in command.params
        if parameter.param_type_name == "option"
        for name in parameter.opts
        if name.startswith("--")
    ]


def _choices(command: Any, before: Sequence[str]) -> Candidates:
    """Return the choices of the command's first argument, as long as it is not given."""
    if any(not word.startswith("-") for word in before):
        return ()
    return [
        (str(choice), "")
        for parameter in command.params
        if parameter.param_type_name == "argument"
        for choice in getattr(parameter.type, "choices", ())
    ]
