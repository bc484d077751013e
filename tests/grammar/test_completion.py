"""Shell completion: candidates, and the scripts in the shells that this host has."""

import shutil
import subprocess
import sys

import pytest

from claude_vm.supervisor.grammar import words
from claude_vm.supervisor.grammar.commands import COMMANDS
from claude_vm.supervisor.grammar.completion import SCRIPTS, completed
from claude_vm.supervisor.grammar.parse import Printout, parse


def complete(*argv):
    return list(completed("bash", argv))


def test_first_word_completes_to_sub_commands():
    assert set(complete("")) == COMMANDS.keys()
    assert set(complete()) == COMMANDS.keys()
    assert complete("cle") == ["clean", "clean-all"]


def test_dashes_complete_to_runtime_flags():
    assert set(complete("--")) == {*words.RUNTIME_FLAGS, "--help", "--version"} - {"--help"}
    assert complete("-A", "--env-") == ["--env-file"]


def test_driver_completes_to_its_names():
    assert complete("--driver", "") == ["auto", "lima", "qemu", "sim"]
    assert complete("ps", "--driver", "s") == ["sim"]
    assert complete("--publish", "") == ["auto", "none"]


@pytest.mark.parametrize(
    "argv",
    [
        ("--disk", ""),
        ("--mount", ""),
        ("x", ""),
        ("x", "--"),
        ("-p", ""),
        ("--", ""),
        ("shell", "ls", "--"),
        ("agent", "--", ""),
        ("shell", "--help", ""),
        ("ps", "--", ""),
        ("--quiet=1", ""),
        ("--worktree", ""),
    ],
)
def test_words_that_are_not_ours_get_no_candidates(argv):
    assert complete(*argv) == []


def test_sub_command_completes_to_its_flags_and_the_runtime_flags():
    found = complete("list", "--")
    assert {"--disk-usage", "--unused", "--json", "--memory"} <= set(found)
    assert "--force" not in found


def test_actions_and_choices_complete():
    assert complete("daemon", "") == ["run", "status", "stop"]
    assert "--force" in complete("daemon", "stop", "--f")
    assert complete("pool", "") == ["status", "fill", "drain"]
    assert complete("pool", "fill", "--no-w") == ["--no-wait"]
    assert "--all" in complete("pool", "drain", "--")
    assert "--all" not in complete("pool", "status", "--")
    assert "--all" in complete("ps", "--")
    assert complete("completion", "") == ["bash", "zsh", "fish"]
    assert complete("completion", "zsh", "") == []


@pytest.mark.parametrize(
    ("shell", "row"), [("zsh", "ps:List the running sessions."), ("fish", "ps\tList the running sessions.")]
)
def test_candidates_come_with_descriptions_where_the_shell_shows_them(shell, row):
    assert completed(shell, ["ps"]) == (row,)


def test_unknown_shell_gets_nothing():
    assert completed("tcsh", ["ps"]) == ()


@pytest.mark.parametrize("shell", sorted(SCRIPTS))
def test_script_is_printed_by_its_sub_command(shell):
    assert parse(["completion", shell]) == Printout(lines=tuple(SCRIPTS[shell].splitlines()))


@pytest.fixture
def stand_in(tmp_path):
    """A folder with a `claude-vm` that only completes."""
    program = tmp_path / "claude-vm"
    program.write_text(
        f"#!{sys.executable}\nimport sys\nsys.path[:0] = {sys.path!r}\n"
        "from claude_vm.supervisor.cli.main import main\nsys.exit(main())\n"
    )
    program.chmod(0o755)
    return tmp_path


def run_shell(shell, code, folder):
    found = subprocess.run(
        [shutil.which(shell), *(["--norc", "--noprofile"] if shell == "bash" else []), "-c", code],
        capture_output=True,
        text=True,
        check=True,
        env={"PATH": f"{folder}:/usr/bin:/bin", "HOME": str(folder)},
    )
    assert found.stderr == ""
    return found.stdout.split("\n")[:-1]


def test_script_completes_in_bash(stand_in):
    code = SCRIPTS["bash"] + (
        'ask() { COMP_WORDS=("$@"); COMP_CWORD=$(($# - 1)); _claude_vm_complete claude-vm;'
        ' printf "%s|" "${COMPREPLY[@]}"; echo; }\n'
        'ask claude-vm cle\nask claude-vm --env "A=b c" d\nask claude-vm "a b" ""\n'
    )
    assert run_shell("bash", code, stand_in) == ["clean|clean-all|", "doctor|daemon|", "|"]


@pytest.mark.skipif(shutil.which("fish") is None, reason="fish is not installed")
def test_script_completes_in_fish(stand_in):
    code = SCRIPTS["fish"] + "complete -C 'claude-vm cle'\n"
    assert [line.partition("\t")[0] for line in run_shell("fish", code, stand_in)] == ["clean", "clean-all"]


@pytest.mark.skipif(shutil.which("zsh") is None, reason="zsh is not installed")
def test_script_offers_candidates_in_zsh(stand_in):
    code = (
        "compdef() { :; }\n_describe() { print -rl -- ${(P)2}; }\n_files() { print files; }\n"
        + SCRIPTS["zsh"]
        + "words=(claude-vm --env 'A=b\\ c' cle); CURRENT=4; _claude_vm\n"
        + "words=(claude-vm x ''); CURRENT=3; _claude_vm\n"
    )
    found = run_shell("zsh", code, stand_in)
    assert [line.partition(":")[0] for line in found] == ["clean", "clean-all", "files"]
