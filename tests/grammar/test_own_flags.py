"""A command that runs others may have flags of its own: they stand before the others' words."""

from typing import Annotated

import pytest

from claude_vm.supervisor.grammar import application, commands, completion, words
from claude_vm.supervisor.grammar.commands.sessions import Shell
from claude_vm.supervisor.grammar.completion import completed
from claude_vm.supervisor.grammar.declaring import Flag
from claude_vm.supervisor.grammar.parse import Printout, parse


@pytest.fixture(autouse=True, scope="module")
def labelled():
    """`shell` as it would be with two flags of its own."""
    with pytest.MonkeyPatch.context() as patch:

        class Labelled(Shell, frozen=True):
            __doc__ = Shell.__doc__
            label: Annotated[str | None, Flag("--label", "A name for it.", metavar="TEXT")] = None
            loud: Annotated[bool, Flag("--loud", "Say so.")] = False

        panels = {
            panel: tuple(Labelled if each is Shell else each for each in found)
            for panel, found in commands.PANELS.items()
        }
        patch.setattr(application, "PANELS", panels)
        patch.setitem(completion.COMMANDS, "shell", Labelled)
        patch.setitem(words.OWN_WORDS, "shell", {"--label": True, "--loud": False})
        application.application.cache_clear()
        yield Labelled
    application.application.cache_clear()
    Labelled.command = ""  # it is no command of ours any longer


@pytest.mark.parametrize(
    ("argv", "label", "loud", "rest"),
    [
        ("shell true", None, False, ("true",)),
        ("shell --label x true", "x", False, ("true",)),
        ("shell --loud --memory 4 --label=x -A ls --label y", "x", True, ("ls", "--label", "y")),
        ("shell --label x -- --loud", "x", False, ("--loud",)),
        ("--memory 4 shell --label x", "x", False, ()),
    ],
)
def test_its_flags_stand_before_the_words_among_ours(argv, label, loud, rest):
    found = parse(argv.split())
    assert (found.label, found.loud, found.words) == (label, loud, rest)
    assert found.flags.memory == ("4" if "--memory" in argv else None)


@pytest.mark.parametrize(
    ("argv", "problem"),
    [
        ("shell --label", "--label needs a value"),
        ("shell --label --loud", "--label needs a value"),
        ("shell --label --memory 4", "--label needs a value"),
        ("shell --memory --label x", "--memory needs a value"),
        ("shell --loud=1", "--loud takes no value"),
        ("shell --lable x true", "did you mean --label?"),
    ],
)
def test_what_is_wrong_with_them_is_said(argv, problem):
    found = parse(argv.split())
    assert isinstance(found, Printout)
    assert problem in found.lines[0]


def test_too_many_are_refused():
    assert "too many words" in parse(["shell", *["--loud"] * 1001, "true"]).lines[0]


def test_they_are_completed_and_stand_in_the_help():
    assert {"--label", "--loud", "--memory"} <= set(completed("bash", ["shell", "--"]))
    assert completed("bash", ["shell", "--lo"]) == ("--loud",)
    assert completed("bash", ["shell", "--loud", "--la"]) == ("--label",)
    assert completed("bash", ["shell", "--label", ""]) == ()
    assert any("--label TEXT" in line for line in parse(["shell", "--help"]).lines)


def test_a_flag_of_such_a_command_has_no_short_form():
    class Short(Shell, frozen=True):
        __doc__ = Shell.__doc__
        label: Annotated[str | None, Flag("--label", "A name for it.", metavar="TEXT", short="-L")] = None

    try:
        with pytest.raises(ValueError, match="flag -L must be long"):
            words.own_flags(Short)
    finally:
        Short.command = ""
