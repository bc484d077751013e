"""The splitter: where our flags end and another program's words begin."""

import contextlib
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from claude_vm.context.claude_command import ALIASES, OPTIONS
from claude_vm.supervisor.grammar import words
from claude_vm.supervisor.grammar.commands import COMMANDS
from claude_vm.supervisor.grammar.near_misses import edits
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
    "word", ["", "-", "-h", "-Ap", "-p", "/clear", "--model", "--disk-size", "\udcff", "- A"]
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
            + sorted(COMMANDS)
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


@pytest.mark.parametrize(
    ("word", "meant"),
    [
        *(("shel", "shell"), ("shelll", "shell"), ("sehll", "shell"), ("shlel", "shell"), ("she", "shell")),
        *(("polo", "pool"), ("pol", "pool"), ("poool", "pool"), ("pools", "pool"), ("pool-status", "pool")),
        *(("stpo", "stop"), ("sotp", "stop"), ("sto", "stop"), ("stopp", "stop"), ("stop-all", "stop")),
        *(("lsit", "list"), ("lits", "list"), ("lis", "list"), ("lists", "list"), ("List", "list")),
        *(("setpu", "setup"), ("set", "setup"), ("stup", "setup"), ("setups", "setup"), ("Setup", "setup")),
        *(
            ("clean-al", "clean-all"),
            ("clean_all", "clean-all"),
            ("cleanall", "clean-all"),
            ("claen", "clean"),
        ),
        *(("cleanup", "clean"), ("pss", "ps"), ("sp", "ps"), ("agnet", "agent"), ("agen", "agent")),
        *(
            ("inof", "info"),
            ("infos", "info"),
            ("bnech", "bench"),
            ("deamon", "daemon"),
            ("daemno", "daemon"),
        ),
        *(("docter", "doctor"), ("doc", "doctor"), ("versoin", "version"), ("ver", "version")),
        *(("completions", "completion"), ("comp", "completion"), ("attahc", "attach"), ("log", "logs")),
        *(("batches", "batch"), ("updat", "update"), ("worktrees", "worktree"), ("confg", "config")),
    ],
)
def test_a_mistyped_command_is_refused_with_what_was_meant_and_the_way_out(word, meant):
    with pytest.raises(WordsError) as caught:
        split(("-A", word, "x"))
    assert f"'{word}' is not a command; did you mean" in caught.value.message
    assert meant in caught.value.message
    assert f"claude-vm -- {word} ..." in caught.value.message
    assert parts("-A", "--", word, "x") == (("-A",), "agent", (word, "x"))
    assert parts("agent", word, "x") == ((), "agent", (word, "x"))


@pytest.mark.parametrize("words", [("-v", "help"), ("help", "pool"), ("help", "shell")])
def test_help_is_what_everybody_tries_and_no_prompt(words):
    found = split(words)
    command = words[1] if words[0] == "help" else ""
    assert (found.asks, found.command, found.operands) == ("help", command, ())


@pytest.mark.parametrize(
    "words", [("help", "me"), ("help", "fix", "it"), ("--", "help"), ("help", "ps", "x")]
)
def test_help_with_more_words_is_a_prompt(words):
    assert parts(*words) == ((), "agent", words[words[0] == "--" :])


@pytest.mark.parametrize(
    "prompt",
    [
        *("fix", "help me", "test", "hello", "explain", "review", "refactor", "debug", "continue", "go"),
        *("hi", "ok", "yes", "build", "deploy", "document", "format", "lint", "patch", "clear", "watch"),
        *(
            "match",
            "rust",
            "work",
            "stopping",
            "information",
            "listing",
            "shellcheck",
            "benchmark",
            "cleaning",
        ),
        *("agentic-loop", "summarise", "optimise", "rebase", "merge", "release", "status", "why", "todo"),
        *(
            "stop the server",
            "list the files",
            "clean up",
            "ps aux",
            "shel ls",
            "poolside",
            "setting",
            "logging",
        ),
        *(
            "/clear",
            "/stop",
            "/logs",
            "@README.md",
            "!ls",
            "42",
            "日本語",
            "",
            " stop",
            "stop ",
            "mcp",
            "agents",
        ),
        *("plugin", "auth", "kill", "rm", "install", "upgrade", "import", "doctrine", "trustworthy"),
    ],
)
def test_a_prompt_is_no_mistyped_command(prompt):
    assert parts(prompt) == ((), "agent", (prompt,))


@pytest.mark.parametrize(
    ("flag", "meant"),
    [
        *(("--memroy", "--memory"), ("--memorys", "--memory"), ("--memry=4", "--memory")),
        *(("--dsik", "--disk"), ("--disks", "--disk"), ("--cpu", "--cpus"), ("--divrer", "--driver")),
        *(("--mounts", "--mount"), ("--mnt", "--mount"), ("--publsh", "--publish"), ("--pub", "--publish")),
        *(("--env-fiel", "--env-file"), ("--inherit-evn", "--inherit-env"), ("--envs", "--env")),
        *(("--forward-ssh-agnet", "--forward-ssh-agent"), ("--auto-stup", "--auto-setup")),
        *(("--any-dirctory", "--any-directory"), ("--no-deamon", "--no-daemon"), ("--verbsoe", "--verbose")),
        *(("--queit", "--quiet"), ("--hlep", "--help"), ("--versoin", "--version"), ("--detahc", "--detach")),
        *(("-memory", "--memory"), ("-help", "--help"), ("-verbose", "--verbose"), ("-disk", "--disk")),
        *(("\u2014memory", "--memory"), ("\u2013disk=9", "--disk"), ("\u2212\u2212mount", "--mount")),
        *(("\u2010-driver", "--driver"), ("--MEMORY=4", "--memory"), ("-Disk", "--disk")),
    ],
)
def test_a_mistyped_flag_is_refused_with_what_was_meant_and_the_way_out(flag, meant):
    name = flag.partition("=")[0]
    for before in ((), ("-A",), ("agent",), ("shell", "-A")):
        with pytest.raises(WordsError) as caught:
            split((*before, flag, "4", "x"))
        assert f"'{name}' is not one of our flags; did you mean" in caught.value.message
        assert meant in caught.value.message
        assert f"-- {name} ..." in caught.value.message


@pytest.mark.parametrize("flag", sorted({*OPTIONS, *ALIASES} - set(words.RUNTIME_FLAGS) - words.LATER_FLAGS))
def test_no_flag_of_claudes_is_taken_for_a_mistyped_one_of_ours(flag):
    if flag in {"--help", "--version", "-v"}:
        return  # ours before the first word
    assert parts(flag, "x") == ((), "agent", (flag, "x"))
    assert parts("agent", flag, "x") == ((), "agent", (flag, "x"))


def test_a_flag_that_is_like_none_of_ours_is_claudes():
    for flag in ("--frobnicate", "--frob=1", "-z", "-pc", "-pdfilter", "--"):
        assert parts("agent", flag, "x")[1] == "agent"


@pytest.mark.parametrize(
    "prompt", ["\u2014", "\u2014 memory is short", "\u2013x", "\u2212", "- \u2014memory"]
)
def test_a_prompt_that_begins_with_a_dash_is_claudes(prompt):
    assert parts(prompt) == ((), "agent", (prompt,))


def test_a_flag_after_claudes_words_have_begun_is_claudes():
    assert parts("-p", "x", "--memroy", "4") == ((), "agent", ("-p", "x", "--memroy", "4"))


@pytest.mark.parametrize("flag", ["--memroy", "-c", "-", "--frobnicate", "--json=1", "-la", "---", "\u2014x"])
def test_after_shell_a_word_with_a_dash_that_is_no_flag_of_ours_is_refused(flag):
    with pytest.raises(WordsError, match=r"is not one of our flags.*claude-vm shell -- ") as caught:
        split(("shell", "-A", flag, "true"))
    assert caught.value.command == "shell"
    assert parts("shell", "-A", "--", flag, "true") == (("-A",), "shell", (flag, "true"))
    assert parts("shell", "true", flag) == ((), "shell", ("true", flag))


def test_a_wrong_word_of_any_length_is_told_briefly():
    with pytest.raises(WordsError) as caught:
        split(("shell", "-" * 100_000))
    assert len(caught.value.message) < 300


@pytest.mark.parametrize(
    "later", ["exec", "cp", "ssh", "wait", "land", "diff", "login", "commit", "template"]
)
def test_the_commands_to_come_are_refused_already(later):
    with pytest.raises(WordsError, match="not available yet"):
        split((later, "x"))


@pytest.mark.parametrize("command", sorted(COMMANDS.keys() - words.OWN_WORDS))
def test_more_words_than_a_command_of_ours_may_have_are_refused(command):
    most = words.MOST_OPERANDS
    assert len(split((command, *["y"] * most)).operands) == most
    for many in (["y"] * (most + 1), ["--", *["y"] * most], ["-q"] * (words.MOST_FLAGS + 1)):
        with pytest.raises(WordsError, match="too many words"):
            split((command, *many))


@pytest.mark.parametrize("before", [(), ("shell",), ("agent",)])
def test_more_flags_than_a_session_may_have_are_refused(before):
    with pytest.raises(WordsError, match="too many words for flags"):
        split((*before, *["--env", "A=1"] * words.MOST_FLAGS))


@pytest.mark.parametrize(
    "words_of_a_command", [["ps"], ["shell"], ["-A"], ["stop", "-q"], ["agent", "--"], []]
)
def test_splitting_many_words_takes_time_in_proportion(words_of_a_command):
    """A hundred thousand words in well under a second; what grew with their square took seven."""
    begun = time.thread_time()
    with contextlib.suppress(WordsError):
        split((*words_of_a_command, *["y"] * 100_000))
    assert time.thread_time() - begun < 0.5


@given(st.text(max_size=8), st.text(max_size=8))
def test_edits_are_symmetric_and_none_for_the_same_word(one, other):
    assert edits(one, one, 2) == 0
    assert (edits(one, other, 8) == 0) == (one == other)
    assert edits(one, other, 8) == edits(other, one, 8)
    assert edits(one + "x", one, 1) == 1
    assert edits(one + "ab", one + "ba", 1) == 1
