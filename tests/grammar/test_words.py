"""The splitter: where our flags end and another program's words begin."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from claude_vm.supervisor.grammar import words
from claude_vm.supervisor.grammar.words import WordsError, split


def parts(*argv):
    found = split(argv)
    return found.flags, found.command, found.operands


def test_no_words_run_claude_without_arguments():
    assert parts() == ((), "agent", ())


def test_first_unknown_word_starts_claudes_arguments():
    assert parts("fix it", "-A", "--disk", "3") == ((), "agent", ("fix it", "-A", "--disk", "3"))


def test_unknown_flag_starts_claudes_arguments():
    assert parts("-A", "-p", "x", "-v") == (("-A",), "agent", ("-p", "x", "-v"))


@pytest.mark.parametrize(
    "word", ["", "-", "-h", "-Ap", "-p", "/clear", "--model", "--disks", "\udcff", "- A"]
)
def test_word_that_is_no_flag_of_ours_is_claudes(word):
    assert parts(word, "shell") == ((), "agent", (word, "shell"))


def test_two_dashes_end_our_flags_and_are_dropped():
    assert parts("-v", "--", "shell", "--") == (("-v",), "agent", ("shell", "--"))


def test_two_dashes_of_claude_stay():
    assert parts("x", "--", "-A") == ((), "agent", ("x", "--", "-A"))


def test_values_belong_to_their_flags():
    assert parts("--disk", "30", "--mount=/a:/b", "--env", "-x=1", "shell") == (
        ("--disk", "30", "--mount=/a:/b", "--env", "-x=1"),
        "shell",
        (),
    )


def test_value_that_is_a_sub_commands_name_is_a_value():
    assert parts("--driver", "shell", "ps") == (("--driver", "shell"), "ps", ())


@pytest.mark.parametrize("bundle", ["-A", "-Av", "-vA", "-qAv", "-vv"])
def test_short_flags_of_ours_may_be_bundled(bundle):
    assert parts(bundle, "shell", bundle) == ((bundle, bundle), "shell", ())


def test_runtime_flags_mean_the_same_before_and_after_the_sub_command():
    assert parts("-A", "shell") == parts("shell", "-A")


def test_flags_of_a_command_in_the_guest_are_its_own():
    assert parts("shell", "-v", "ls", "-A", "--help", "--") == (
        ("-v",),
        "shell",
        ("ls", "-A", "--help", "--"),
    )


def test_two_dashes_after_shell_protect_a_word():
    assert parts("shell", "-A", "--", "-v") == (("-A",), "shell", ("-v",))


def test_agent_version_and_help_are_claudes():
    assert parts("agent", "--version") == ((), "agent", ("--version",))
    assert parts("agent", "-A", "--help") == (("-A",), "agent", ("--help",))


@pytest.mark.parametrize("question", ["help", "version"])
def test_help_and_version_before_the_first_word_are_ours(question):
    assert split(("-A", f"--{question}", "x")).asks == question
    assert split(("shell", f"--{question}")).asks == question
    assert split(("x", f"--{question}")).asks == ""


def test_version_anywhere_after_a_sub_command_of_ours_is_ours():
    assert split(("ps", "--json", "--version")).asks == "version"


def test_runtime_flags_stand_anywhere_among_a_sub_commands_words():
    assert parts("stop", "a", "--disk", "3", "b", "-q", "--all") == (
        ("--disk", "3", "-q"),
        "stop",
        ("a", "b", "--all"),
    )


def test_two_dashes_after_a_sub_command_of_ours_protect_its_words():
    assert parts("stop", "--", "-A") == ((), "stop", ("--", "-A"))


@pytest.mark.parametrize(
    "argv",
    [
        ("--disk",),
        ("shell", "--disk"),
        ("ps", "--disk"),
        ("--disk", "--memory", "4"),
        ("--disk", "--memory=4"),
        ("--env-file", "--", "x"),
    ],
)
def test_forgotten_value_is_an_error(argv):
    with pytest.raises(WordsError, match="needs a value"):
        split(argv)


def test_value_that_looks_like_a_flag_of_ours_goes_with_an_equals_sign():
    assert parts("--env-file=--disk") == (("--env-file=--disk",), "agent", ())


def test_value_for_a_flag_without_one_is_an_error():
    with pytest.raises(WordsError, match="--quiet takes no value"):
        split(("--quiet=1",))


@pytest.mark.parametrize("flag", sorted(words.LATER_FLAGS))
@pytest.mark.parametrize("before", [(), ("shell",), ("ps",), ("agent", "-A")])
def test_flag_of_a_later_version_is_refused_and_not_given_to_claude(flag, before):
    for word in (flag, f"{flag}=x"):
        with pytest.raises(WordsError, match=f"{flag} is not available yet"):
            split((*before, word))


@pytest.mark.parametrize("flag", sorted(words.LATER_FLAGS))
def test_flag_of_a_later_version_among_claudes_words_is_claudes(flag):
    assert parts("x", flag) == ((), "agent", ("x", flag))


@pytest.mark.parametrize("command", sorted(words.LATER_COMMANDS))
def test_sub_command_of_a_later_version_is_refused_but_can_be_quoted(command):
    with pytest.raises(WordsError, match=f"'{command}' is not available yet.*claude-vm -- {command}"):
        split((command,))
    assert parts("--", command) == ((), "agent", (command,))


def test_setup_flag_of_a_later_version_is_refused():
    with pytest.raises(WordsError, match="--docker is not available yet") as caught:
        split(("setup", "--no-agent", "--docker"))
    assert caught.value.command == "setup"


anything = st.lists(
    st.one_of(
        st.text(max_size=4),
        st.sampled_from(
            sorted(words.RUNTIME_FLAGS)
            + sorted(words.COMMANDS)
            + ["--", "-A", "-Av", "-p", "--help", "--version", "--disk=1", "--quiet=1", "x", ""]
        ),
    ),
    max_size=8,
)


@given(anything)
def test_no_word_is_lost_made_or_moved_except_the_parts_own(argv):
    try:
        found = split(argv)
    except WordsError:
        return
    if found.asks:
        return
    dropped = 1 if found.ended and found.command in words.OWN_WORDS else 0
    named = 1 if found.explicit else 0
    assert len(found.flags) + len(found.operands) + dropped + named == len(argv)
    if found.command in words.OWN_WORDS:
        assert found.operands == tuple(argv[len(argv) - len(found.operands) :])


@given(st.lists(st.text(max_size=5), max_size=5))
def test_all_after_two_dashes_reaches_claude_as_it_is(argv):
    assert parts("-A", "--", *argv) == (("-A",), "agent", tuple(argv))
