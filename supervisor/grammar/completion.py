"""Shell completion: the scripts, and the candidates that they ask for.

The script of a shell runs ``_CLAUDE_VM_COMPLETE=<shell> claude-vm WORDS…`` with the words up to the cursor;
the last word is the one to complete. No candidates: the shell completes file names. typer is not used,
and not even loaded: it knows nothing of where Claude's words begin, splits words at blanks, and prints.
"""

from collections.abc import Iterable, Sequence
from enum import Enum

from claude_vm.supervisor.grammar.commands import COMMANDS, Declaration
from claude_vm.supervisor.grammar.commands.installation import ShellName
from claude_vm.supervisor.grammar.declaring import Argument, Flag, fields, flags_of
from claude_vm.supervisor.grammar.flags import VERSION, Flags, help_of, words_of
from claude_vm.supervisor.grammar.requests import Group, Request
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

SCRIPTS = {ShellName.BASH: BASH, ShellName.ZSH: ZSH, ShellName.FISH: FISH}

CURSOR = "\0"
"""Stands for the word to complete: it is no flag, no sub-command, and in no argument list."""

Candidates = Sequence[tuple[str, str]]


def completed(shell: str, words: Sequence[str]) -> tuple[str, ...]:
    """Return the candidates for the last word as the shell's script wants them; none for an unknown shell."""
    given, incomplete = (tuple(words[:-1]), words[-1]) if words else ((), "")
    rows = [row for row in candidates(given) if row[0].startswith(incomplete)]
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


def candidates(given: Sequence[str]) -> Candidates:
    """Return all that may follow these words, with a short text each; nothing where files may."""
    try:
        parts = split((*given, CURSOR))
    except WordsError:
        return ()
    if CURSOR in parts.flags:
        return _values(parts.flags[-2])
    if parts.asks or parts.ended or CURSOR in parts.own:
        return ()
    before = parts.operands[:-1]
    if parts.command in OWN_WORDS:
        first = _own_flags(COMMANDS[parts.command]) if parts.explicit else _names(COMMANDS.values())
        return () if before else (*first, *_OURS)
    command = COMMANDS[parts.command]
    if isinstance(command, Group):
        named = next((c for c in command.commands if c.command in before), None)
        if named is None:
            return (*_names(command.commands), *_OURS)
        command = named
    return (*_choices(command, before), *_flags(command), *_OURS)


def _values(flag: str) -> Candidates:
    return [row for known, _ in flags_of(Flags) if known.name == flag for row in words_of(known).items()]


def _names(commands: Iterable[Declaration]) -> Candidates:
    texts = ((c.command, c.help if isinstance(c, Group) else c.__doc__ or "") for c in commands)
    return [(name, text.partition("\n")[0]) for name, text in texts]


def _own_flags(command: Declaration) -> Candidates:
    return () if isinstance(command, Group) else _flags(command)


def _flags(record: type[Request] | type[Flags]) -> Candidates:
    return [_row(flag) for flag, _ in flags_of(record)]


def _row(flag: Flag) -> tuple[str, str]:
    return flag.name, help_of(flag).partition(". ")[0].rstrip(".")


_OURS = (*_flags(Flags), _row(VERSION))


def _choices(command: type[Request], before: Sequence[str]) -> Candidates:
    """Return the choices of the command's first argument, as long as it is not given."""
    if any(not word.startswith("-") for word in before):
        return ()
    types = [field.type for field in fields(command) if isinstance(field.declared, Argument)]
    choices = next((kind for kind in types if isinstance(kind, type) and issubclass(kind, Enum)), ())
    return [(str(choice), "") for choice in choices]
